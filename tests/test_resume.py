"""A build that is killed, disturbed or starved leaves nothing half-done under its name, and goes on when run again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from phi4local.actions.quantize import quantize
from phi4local.errors import FormatError, InsufficientResources, UsageError
from quant.convert import convert
from quant.gguf import read_header
from quant.journal import Journal, journal_path, partial_path
from tests import shapes
from tests.checkpoints import write_checkpoint
from tests.running import finish, json_of, make, phi4local, plan, start

KILLS = 20


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 MB in eight shards: a few seconds of work, so that a kill meets every stage of it."""
    shape = dataclasses.replace(shapes.PHI4_TINY, hidden=512, intermediate=1536, layers=4, heads=8, vocab=864)
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "phi-4-tiny", shape, shards=8)


@pytest.fixture(scope="module")
def undisturbed(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """sha256 of the build that nobody disturbed."""
    return make(weights, "IQ4_XS", tmp_path_factory.mktemp("undisturbed") / "out.gguf").sha256


def _command(weights: Path, target: Path) -> list[str]:
    command = f"-m phi4local quantize {weights} --to IQ4_XS --out {target} --json"
    return [sys.executable, *command.split()]


@pytest.mark.slow
def test_killed_at_any_moment(weights: Path, undisturbed: str, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    moments = random.Random(7)
    landed = 0
    for _ in range(KILLS):
        child = subprocess.Popen(_command(weights, target), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 5
        while not partial_path(target).exists() and child.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.25))
        child.kill()
        if child.wait() == -signal.SIGKILL:
            landed += 1
            if target.exists():  # between the rename and the end of the process it is whole
                assert hashlib.sha256(target.read_bytes()).hexdigest() == undisturbed
    result = json_of(subprocess.run(_command(weights, target), capture_output=True, text=True, check=False))
    assert landed >= KILLS // 2
    assert result["sha256"] == undisturbed == hashlib.sha256(target.read_bytes()).hexdigest()
    assert {path.name for path in tmp_path.iterdir()} == {target.name, target.name + ".manifest.json"}


def test_goes_on_where_it_was_stopped(weights: Path, undisturbed: str, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    work = start(weights, "IQ4_XS", target)
    total = next(work).total_bytes
    while next(work).done_bytes < 0.7 * total:
        pass
    work.close()
    assert not target.exists()
    built = make(weights, "IQ4_XS", target)
    assert built.sha256 == undisturbed
    assert built.resumed_bytes > 0.3 * total
    assert not partial_path(target).exists()
    assert not journal_path(target).exists()


def test_a_stop_keeps_what_is_finished_within_a_shard(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "weights", shapes.PHI4_TINY, shards=1)
    expected = make(folder, "IQ4_XS", tmp_path / "undisturbed.gguf").sha256
    work = start(folder, "IQ4_XS", tmp_path / "out.gguf")
    while (event := next(work)).done_bytes < 0.7 * event.total_bytes:
        pass
    work.close()
    built = make(folder, "IQ4_XS", tmp_path / "out.gguf")
    assert built.sha256 == expected
    assert built.resumed_bytes > 0.3 * event.total_bytes


def test_another_source_does_not_continue(weights: Path, undisturbed: str, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    _stop_half_way(weights, target)
    shard = weights / "model-00001-of-00008.safetensors"
    status = shard.stat()
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    built = make(weights, "IQ4_XS", target)
    assert (built.resumed_bytes, built.sha256) == (0, undisturbed)


def test_a_lost_partial_file_does_not_continue(weights: Path, undisturbed: str, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    _stop_half_way(weights, target)
    partial_path(target).unlink()
    built = make(weights, "IQ4_XS", target)
    assert (built.resumed_bytes, built.sha256) == (0, undisturbed)


@pytest.mark.parametrize("cut", [0, 1, 40, -1, -30])
def test_a_damaged_journal_costs_time_only(cut: int, weights: Path, undisturbed: str, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    _stop_half_way(weights, target)
    data = journal_path(target).read_bytes()
    journal_path(target).write_bytes(data[:cut] + b"\xff{]")
    assert make(weights, "IQ4_XS", target).sha256 == undisturbed


def _stop_half_way(weights: Path, target: Path) -> None:
    work = start(weights, "IQ4_XS", target)
    while (event := next(work)).done_bytes < 0.6 * event.total_bytes:
        pass
    work.close()


def test_a_lying_journal_is_found_by_the_check(weights: Path, tmp_path: Path) -> None:
    """The last check compares rows with their source, so work that was never done cannot pass."""
    target = tmp_path / "out.gguf"
    _stop_half_way(weights, target)
    facts = [{"tensor": tensor.name} for tensor in plan(weights, "IQ4_XS").tensors]
    with journal_path(target).open("a") as file:
        file.writelines(json.dumps(fact) + "\n" for fact in facts)
    with pytest.raises(FormatError, match="not what was written"):
        make(weights, "IQ4_XS", target)
    assert not target.exists()


def test_one_build_of_a_target_at_a_time(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    first = quantize(plan(weights, "IQ4_XS"), target, force=False)
    next(first)
    with pytest.raises(UsageError, match="already building"):
        finish(quantize(plan(weights, "IQ4_XS"), target, force=False))
    first.close()


def test_the_journal_keeps_what_it_was_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", "f")
    journal.append({"tensor": "a"}, {"file": "s", "sha256": "00"})
    journal.close()
    again = Journal(tmp_path / "j", "f")
    assert (again.finished, again.hashes) == ({"a"}, {"s": "00"})
    again.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_in_the_middle(weights: Path, undisturbed: str, small_disk: Path) -> None:
    target = small_disk / "out.gguf"
    work = start(weights, "IQ4_XS", target)
    while (event := next(work)).done_bytes < 0.4 * event.total_bytes:
        pass
    other = small_disk / "other"
    with other.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with pytest.raises(InsufficientResources, match="needed"):
        finish(work)
    assert not target.exists()
    with pytest.raises(InsufficientResources, match="needed"):
        make(weights, "IQ4_XS", target)
    other.unlink()
    assert make(weights, "IQ4_XS", target).sha256 == undisturbed


def test_a_limit_on_file_sizes_is_a_full_disk(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    command = _command(weights, target)
    result = subprocess.run(
        ["bash", "-c", 'ulimit -f 4000; exec "$@"', "bash", *command], capture_output=True, text=True, check=False
    )
    assert result.returncode == 6
    assert "needed" in result.stderr
    assert "Traceback" not in result.stderr
    assert not target.exists()


def test_the_same_build_again_is_no_work(weights: Path, home: Path) -> None:
    first = json_of(phi4local("quantize", weights, "--to", "Q8_0", "--json"))
    again = phi4local("quantize", weights, "--to", "Q8_0", "--json")
    assert json_of(again)["sha256"] == first["sha256"]
    assert json_of(again)["resumed_bytes"] > 0
    assert read_header(Path(first["path"])).text("general.architecture") == "phi3"


def test_another_build_is_not_overwritten_unasked(weights: Path, tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    json_of(phi4local("quantize", weights, "--to", "Q8_0", "--out", target, "--json"))
    refused = phi4local("quantize", tiny, "--to", "Q8_0", "--out", target)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    replaced = json_of(phi4local("quantize", tiny, "--to", "Q8_0", "--out", target, "--force", "--json"))
    assert replaced["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()


def test_killed_between_certificate_and_name(weights: Path, undisturbed: str, tmp_path: Path) -> None:
    """The manifest comes before the name; what is left when the rename does not happen is finished by the next run."""
    target = tmp_path / "out.gguf"

    class Killed(BaseException):
        pass

    def certify(_built: object) -> None:
        target.with_name(target.name + ".manifest.json").write_text("{}")
        raise Killed

    with pytest.raises(Killed):
        finish(convert(plan(weights, "IQ4_XS"), target, threads=2, certify=certify))
    assert not target.exists()
    built = make(weights, "IQ4_XS", target)
    assert built.sha256 == undisturbed
    assert built.resumed_bytes > 0


@pytest.mark.parametrize("name", ["config.json", "model-00008-of-00008.safetensors"])
@pytest.mark.parametrize("deed", ["touch", "delete"])
def test_a_source_that_changes_is_not_certified(name: str, deed: str, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    work = start(folder, "IQ4_XS", tmp_path / "out.gguf")
    next(work)
    if deed == "delete":
        (folder / name).unlink()
    else:
        os.utime(folder / name, ns=(0, 0))
    with pytest.raises(FormatError, match="changed while it was read"):
        finish(work)
    assert not (tmp_path / "out.gguf").exists()


def test_a_planted_link_is_not_followed(weights: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    partial_path(tmp_path / "out.gguf").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        make(weights, "IQ4_XS", tmp_path / "out.gguf")
    assert victim.read_text() == "mine"


def test_a_damaged_build_is_made_again(weights: Path, home: Path) -> None:
    made = json_of(phi4local("quantize", weights, "--to", "Q8_0", "--json"))
    path = Path(made["path"])
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)
    assert phi4local("verify").returncode == 5
    again = json_of(phi4local("quantize", weights, "--to", "Q8_0", "--force", "--json"))
    assert again["sha256"] == made["sha256"]
    assert phi4local("verify").returncode == 0
