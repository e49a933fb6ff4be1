"""`prune` frees all that killed runs have left, and nothing that a build or a running process needs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from phi4local.actions.adopt import adopt
from phi4local.actions.prune import Pruned, prune
from phi4local.files import take_lock
from phi4local.settings import nano_folder
from phi4local.store import builds, find, manifest_path
from quant.journal import lock_path, partial_path
from tests import shapes
from tests.checkpoints import write_checkpoint
from tests.foreign import sha256
from tests.running import finish, json_of, phi4local

LEFT = (".partial", ".journal", ".header", ".lock")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 MB: a build that takes long enough to be killed or watched."""
    shape = dataclasses.replace(shapes.PHI4_TINY, hidden=512, intermediate=1536, layers=4, heads=8, vocab=864)
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "phi-4-tiny", shape, shards=8)


@pytest.fixture
def target(home: Path) -> Path:
    """Where a build would be."""
    path = home / "models/phi-4/phi-4-Q4_K_M.gguf"
    path.parent.mkdir(parents=True)
    return path


def leave(target: Path) -> None:
    """Everything that a killed pull may leave; its partial file is mostly a hole."""
    for suffix in LEFT[1:]:
        target.with_name(target.name + suffix).write_bytes(b"x" * 5000)
    with partial_path(target).open("wb") as file:
        file.write(b"x" * 5000)
        file.truncate(1 << 30)
    shard = target.with_name(target.name + ".source") / ("0" * 40) / "phi-4" / "model.safetensors"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"x" * 20_000)
    (target.parent / ".0123456789abcdef.tmp").write_bytes(b"x" * 100)


def nano_build() -> dict[str, Any]:
    made: dict[str, Any] = json_of(phi4local("quantize", nano_folder(), "--to", "Q4_0", "--json"))
    return made


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}


def removed(pruned: Pruned, folder: Path) -> set[str]:
    return {str(one.path.relative_to(folder)) for one in pruned.removed}


def test_an_empty_store(home: Path) -> None:
    assert json_of(phi4local("prune", "--json")) == {
        "freed_bytes": 0,
        "removed": [],
        "busy": [],
        "unlisted": [],
        "kept_sources_bytes": 0,
        "dry_run": False,
    }
    assert not home.exists()
    assert "Nothing is left over" in phi4local("prune").stderr


def test_what_a_killed_pull_leaves(target: Path, home: Path) -> None:
    made = nano_build()
    leave(target)
    leave(Path(made["path"]))
    kept = {f"phi4-nano/{Path(made['path']).name}", f"phi4-nano/{manifest_path(Path(made['path'])).name}"}
    before = names(home / "models")
    asked = json_of(phi4local("prune", "--dry-run", "--json"))
    assert names(home / "models") == before
    freed = json_of(phi4local("prune", "--json"))
    assert asked == freed | {"dry_run": True}
    assert names(home / "models") == kept
    assert not target.parent.exists()
    assert sum(entry["bytes"] for entry in freed["removed"]) == freed["freed_bytes"]
    assert 60_000 < freed["freed_bytes"] < 200_000  # two sparse files of a GiB each take a few blocks
    assert [build.manifest.sha256 for build in builds()] == [made["sha256"]] == [sha256(Path(made["path"]))]


def test_a_killed_build_is_freed_to_the_last_byte(weights: Path, home: Path) -> None:
    command = [sys.executable, "-m", "phi4local", "quantize", str(weights), "--to", "IQ4_XS"]
    landed = 0
    for seconds in (0, 0.1, 0.2, 0.3):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 30
        while not list(home.glob("models/*/*.partial")) and child.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(seconds)
        child.kill()
        if child.wait() == -signal.SIGKILL and not builds():
            landed += 1
            assert json_of(phi4local("prune", "--json"))["freed_bytes"] > 0
            assert list((home / "models").iterdir()) == []
        shutil.rmtree(home)
    assert landed


@pytest.mark.parametrize("kind", ["manifest", "link", "folder"])
def test_halves_of_a_build(kind: str, target: Path, tmp_path: Path) -> None:
    if kind == "manifest":
        manifest_path(target).write_text("{}")
    elif kind == "link":
        target.symlink_to(tmp_path / "gone.gguf")
        manifest_path(target).write_text("{}")
    pruned = prune(sources=False, dry_run=False)
    assert pruned.removed
    assert not os.path.lexists(target.parent)


def test_a_file_without_a_manifest_may_be_the_users(target: Path, home: Path) -> None:
    target.write_bytes(b"GGUF" * 5000)
    pruned = prune(sources=False, dry_run=False)
    assert (pruned.removed, pruned.unlisted) == ((), (target,))
    assert target.exists()
    assert str(target) in phi4local("prune").stderr
    result = phi4local("verify", "--json")
    assert (result.returncode, [one["path"] for one in json.loads(result.stdout)["damaged"]]) == (5, [str(target)])


def test_what_is_not_ours_to_judge_stays(target: Path, home: Path) -> None:
    made = nano_build()
    manifest_path(Path(made["path"])).write_text("{")  # `verify` tells of it, and the file may be whole
    (target.parent / "notes.txt").write_text("the user's own")
    (target.parent / "other.partial").write_text("of something else")
    target.mkdir()
    before = names(home)
    assert prune(sources=True, dry_run=False).removed == ()
    assert names(home) == before
    assert target.is_dir()


def test_a_busy_build_is_left_alone(target: Path, home: Path) -> None:
    leave(target)
    other = target.with_name("phi-4-Q8_0.gguf")
    partial_path(other).write_bytes(b"x")
    kept = home / "sources" / ("0" * 40) / "phi-4" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x" * 10_000)
    before = names(target.parent)
    with contextlib.ExitStack() as held:
        lock_path(target).unlink()
        lock = take_lock(lock_path(target))
        assert lock
        held.enter_context(lock)
        asked = json_of(phi4local("prune", "--sources", "--dry-run", "--json"))
        freed = json_of(phi4local("prune", "--sources", "--json"))
        assert freed["busy"] == asked["busy"] == [str(target), str(home / "sources")]
        assert [Path(entry["path"]) for entry in freed["removed"]] == [partial_path(other)]
        assert freed["kept_sources_bytes"] >= 10_000
        assert names(target.parent) == before - {partial_path(other).name}
        assert "another process" in phi4local("prune").stderr
    prune(sources=False, dry_run=False)
    assert not target.parent.exists()


def test_a_lock_that_cannot_be_one(target: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    partial_path(target).write_bytes(b"x")
    lock_path(target).symlink_to(tmp_path / "precious")
    for dry_run in (True, False):
        assert prune(sources=False, dry_run=dry_run).busy == (target,)
    assert (tmp_path / "precious").read_text() == "x"


def test_kept_weights_go_only_when_told_so(home: Path) -> None:
    shard = home / "sources" / ("0" * 40) / "phi-4" / "model.safetensors"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"x" * 100_000)
    told = phi4local("prune")
    assert "`phi4local prune --sources`" in told.stderr
    assert json_of(phi4local("prune", "--json"))["kept_sources_bytes"] >= 100_000
    freed = json_of(phi4local("prune", "--sources", "--json"))
    assert (freed["freed_bytes"] >= 100_000, freed["kept_sources_bytes"]) == (True, 0)
    assert names(home / "sources") == set()


def test_an_old_scrap_of_the_state(home: Path) -> None:
    state = home / "state"
    state.mkdir(parents=True)
    for name, age in ((".new.tmp", 0), (".old.tmp", 7200), ("measured.json", 7200)):
        (state / name).write_text("{}")
        os.utime(state / name, (time.time() - age,) * 2)
    assert removed(prune(sources=False, dry_run=False), state) == {".old.tmp"}


def test_an_imported_file_is_never_the_price(tmp_path: Path, home: Path) -> None:
    made = nano_build()
    path = tmp_path / "model.gguf"
    shutil.copyfile(made["path"], path)
    finish(adopt(path, "mine:x"))
    imported = find("mine").path
    assert prune(sources=False, dry_run=False).removed == ()
    imported.rename(partial_path(imported))  # as a `remove` that was killed leaves it
    pruned = prune(sources=False, dry_run=False)
    assert removed(pruned, home / "models") == {"mine/mine-x.gguf.partial", "mine/mine-x.gguf.manifest.json", "mine"}
    assert pruned.freed_bytes < 10_000  # the manifest's
    assert sha256(path) == made["sha256"]


@pytest.mark.slow
def test_beside_a_running_build(weights: Path, home: Path) -> None:
    command = [sys.executable, "-m", "phi4local", "quantize", str(weights), "--to", "IQ4_XS", "--force"]
    digests = set()
    for _ in range(3):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while child.poll() is None:
            prune(sources=False, dry_run=False)
        assert child.returncode == 0, child.stderr.read() if child.stderr else ""
        child.communicate()
        [build] = builds()
        assert sha256(build.path) == build.manifest.sha256
        digests.add(build.manifest.sha256)
    assert len(digests) == 1


@pytest.mark.slow
def test_killed_in_the_middle(target: Path, home: Path) -> None:
    made = nano_build()
    command = [sys.executable, "-m", "phi4local", "prune"]
    for number in range(8):
        for build in range(60):
            path = target.with_name(f"phi-4-{build}.gguf")
            path.parent.mkdir(exist_ok=True)
            for suffix in LEFT:
                path.with_name(path.name + suffix).write_bytes(b"x" * 1000)
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 30
        while len(list(target.parent.glob("*"))) > 230 - 25 * number and time.monotonic() < until:
            pass
        child.kill()
        child.wait()
        assert [build.manifest.sha256 for build in builds()] == [made["sha256"]]
    prune(sources=False, dry_run=False)
    assert {path.name for path in (home / "models").iterdir()} == {"phi4-nano"}
