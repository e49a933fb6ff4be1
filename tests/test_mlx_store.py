"""MLX builds in the store: listed, shown, verified, removed, pruned like any other, though they are folders."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from phi4local.actions import quantize as action
from phi4local.actions.prune import prune
from phi4local.actions.quantize import plan_build, quantize
from phi4local.actions.verify import Verdict, verify
from phi4local.errors import FormatError, NotFound, UsageError
from phi4local.files import take_lock
from phi4local.store import build_path, builds, find, is_complete, manifest_path, own_bytes, read_manifest, remove
from quant.journal import aside_path, journal_path, lock_path, partial_path
from quant.plan import Plan
from tests.mlx_process import MlxProcess
from tests.running import finish, json_of, phi4local

LABEL = "phi-4-tiny:mlx-4bit"


@pytest.fixture(scope="module")
def planned(tiny: Path) -> Plan:
    """The plan of the build that every test here has."""
    return plan_build(tiny, "mlx-4bit")


@pytest.fixture
def folder(planned: Plan, home: Path) -> Path:
    """That build, in a store of its own."""
    build, built = finish(quantize(planned, build_path("phi-4-tiny", "mlx-4bit"), force=False))
    assert built
    return build.path


def verdict(label: str | None = None) -> Verdict:
    return finish(verify(label))


def test_it_is_listed_and_shown(folder: Path) -> None:
    (row,) = json_of(phi4local("list", "--json"))
    assert (row["name"], row["build"], row["format"]) == ("phi-4-tiny", "mlx-4bit", "mlx")
    assert row["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    for name in (LABEL, str(folder)):
        shown = json_of(phi4local("show", name, "--json"))
        assert {file["name"] for file in shown["files"]} == {path.name for path in folder.iterdir()}
        assert shown["versions"].keys() == {"phi4local", "mlx", "mlx-lm", "numpy"}
    assert "model.safetensors" in phi4local("show", LABEL).stdout


def test_it_is_listed_with_a_manifest_only(folder: Path) -> None:
    manifest = manifest_path(folder).read_bytes()
    manifest_path(folder).unlink()
    assert builds() == []
    assert [damage.path for damage in verdict().damaged] == [folder]
    assert prune(sources=False, dry_run=False).unlisted == (folder,)
    manifest_path(folder).write_bytes(manifest)
    shutil.rmtree(folder)
    assert builds() == []
    assert [(damage.path, damage.problem) for damage in verdict().damaged] == [(folder, "the folder is missing")]


def test_damage_of_every_file_is_found(folder: Path) -> None:
    assert (verdict().checked, verdict().damaged) == (1, ())
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for wrong in (whole[:-1], whole + b" ", whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]):
            path.write_bytes(wrong)
            assert [damage.path for damage in verdict(LABEL).damaged] == [path]
        path.unlink()
        assert [(damage.path, damage.got) for damage in verdict(str(folder)).damaged] == [(path, None)]
        path.write_bytes(whole)
    (folder / ".DS_Store").write_bytes(b"x")
    assert verdict().damaged == ()
    (folder / "model-2.safetensors").write_bytes(b"x")
    (damage,) = verdict().damaged
    assert (damage.path.name, damage.build) == ("model-2.safetensors", folder)
    assert "does not belong" in damage.problem


def test_damage_on_the_command_line(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    for name in ((), (LABEL,), (str(folder),)):
        result = phi4local("verify", *name, "--json")
        assert result.returncode == 5
        (damage,) = json.loads(result.stdout)["damaged"]
        assert damage["path"] == str(folder / "config.json")
        assert damage["expected"] != damage["got"]
    assert "quantize FOLDER --to mlx-4bit" in phi4local("verify").stderr


def test_a_manifest_that_names_foreign_files_is_damaged(folder: Path) -> None:
    values = json.loads(manifest_path(folder).read_bytes())
    for name in ("../secret", "/etc/passwd", "a/b", "..", "", 7, "a\n"):
        wrong = values | {"files": [{"name": name, "bytes": 1, "sha256": "0"}]}
        manifest_path(folder).write_text(json.dumps(wrong))
        with pytest.raises(FormatError, match="damaged"):
            read_manifest(folder)
    del values["files"]  # as the manifests of GGUFs were written before
    manifest_path(folder).write_text(json.dumps(values))
    assert read_manifest(folder).files == []


def test_removing_frees_it(folder: Path) -> None:
    build = find(LABEL)
    assert own_bytes(build) == build.manifest.bytes
    partial_path(folder).mkdir()
    (partial_path(folder) / "x").write_bytes(b"x")
    freed = json_of(phi4local("remove", LABEL, "--json"))["freed_bytes"]
    assert freed == build.manifest.bytes
    assert not folder.parent.exists()


def test_removing_what_is_damaged_tells_what_it_freed(folder: Path, tmp_path: Path) -> None:
    lost = (folder / "config.json").stat().st_size
    (folder / "config.json").unlink()
    (folder / ".cache").mkdir()  # a folder has two links
    os.link(folder / "tokenizer.json", tmp_path / "kept")
    wanted = find(LABEL, missing=True).manifest.bytes - lost - (tmp_path / "kept").stat().st_size
    assert json_of(phi4local("remove", LABEL, "--json"))["freed_bytes"] == wanted
    assert not folder.parent.exists()


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(NotFound, match=r"`config\.json` of phi-4-tiny:mlx-4bit is missing") as error:
        find(LABEL)
    assert f"verify {LABEL}" in error.value.hint
    shutil.rmtree(folder)
    with pytest.raises(NotFound, match="is gone"):
        find(LABEL)


def test_all_builds_of_a_model_are_named(folder: Path) -> None:
    for build in ("mlx-2bit", "mlx-mixed-3-6"):
        other = build_path("phi-4-tiny", build)
        shutil.copytree(folder, other)
        values = json.loads(manifest_path(folder).read_bytes())
        manifest_path(other).write_text(json.dumps(values | {"build": build}))
    with pytest.raises(NotFound) as error:
        find("phi-4-tiny:mlx-mixed-3-4")
    near = [f"phi-4-tiny:mlx-{build}" for build in ("mixed-3-6", "2bit", "4bit")]
    assert error.value.hint == f"There is {', '.join(near)}"


def test_what_is_linked_is_not_freed(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    build = find(LABEL)
    assert own_bytes(build) == 0
    remove(build)
    assert builds() == []
    assert (elsewhere / "model.safetensors").exists()


def test_prune_frees_what_is_left(folder: Path) -> None:
    other = build_path("phi-4-tiny", "mlx-8bit")
    for left in (partial_path(other), aside_path(other), aside_path(folder)):
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"x" * 5000)
    journal_path(other).write_bytes(b"x")
    held = take_lock(lock_path(other))
    assert held
    with held:
        assert prune(sources=False, dry_run=True).busy == (other,)
    pruned = prune(sources=False, dry_run=False)
    freed = {one.path for one in pruned.removed}
    assert freed == {partial_path(other), aside_path(other), aside_path(folder), journal_path(other)}
    assert pruned.freed_bytes >= 15_000
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, manifest_path(folder).name]
    assert verdict().damaged == ()


def test_only_a_build_is_replaced(planned: Plan, folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "documents"
    precious.mkdir()
    (precious / "letter").write_text("mine")
    for target in (precious, precious / "letter"):
        with pytest.raises(UsageError, match="no MLX build"):
            finish(quantize(planned, target, force=True))
    assert (precious / "letter").read_text() == "mine"
    manifest_path(folder).write_text(manifest_path(folder).read_text().replace(read_manifest(folder).fingerprint, "0"))
    with pytest.raises(UsageError, match="another build"):
        finish(quantize(planned, folder, force=False))
    (folder / "old").write_text("x")
    build, built = finish(quantize(planned, folder, force=True))
    assert built
    assert is_complete(build)
    assert verdict().damaged == ()
    assert not aside_path(folder).exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert finish(quantize(planned, empty, force=False))[0].path == empty


def test_a_folder_inside_a_build(planned: Plan, folder: Path, tmp_path: Path) -> None:
    """In the store all is ours; elsewhere it may be somebody's."""
    outside = tmp_path / "outside"
    shutil.copytree(folder, outside)
    for place in (folder, outside):
        (place / ".cache").mkdir()
        (place / "config.json").write_text('{"quantization": {}}')
    assert finish(quantize(planned, folder, force=True))[1]
    assert not (folder / ".cache").exists()
    with pytest.raises(UsageError, match=r"holds the folder `\.cache`"):
        finish(quantize(planned, outside, force=True))
    assert (outside / ".cache").is_dir()


def test_where_out_leads(planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    assert action.target_of(planned, link) == real
    assert action.target_of(planned, tmp_path / "x/..") == tmp_path
    with pytest.raises(UsageError) as error:
        action.target_of(planned, Path("/"))
    assert error.value.hint == "--out /phi-4-tiny-mlx-4bit"
    with pytest.raises(UsageError) as error:
        action.target_of(planned, Path("foo.gguf"))
    assert error.value.hint == "--out foo"
    monkeypatch.chdir(link)
    before = real.stat().st_ino
    with pytest.raises(UsageError, match="the folder that you are in") as error:
        finish(quantize(planned, action.target_of(planned, Path()), force=True))
    assert "--out phi-4-tiny-mlx-4bit" in error.value.hint
    assert (real.stat().st_ino, list(real.iterdir()), link.is_symlink()) == (before, [], True)
    made, _ = finish(quantize(planned, action.target_of(planned, Path("phi-4-tiny-mlx-4bit")), force=False))
    assert made.path == real / "phi-4-tiny-mlx-4bit"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_folder_in_which_nothing_can_be_made(tiny: Path) -> None:
    for out, build in (("/proc/y.gguf", "Q4_0"), ("/proc/y", "mlx-4bit")):
        refused = phi4local("quantize", tiny, "--to", build, "--out", out)
        assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
        assert "/proc/y" in refused.stderr


def test_a_planted_link_is_not_followed(planned: Plan, home: Path, tmp_path: Path) -> None:
    target = build_path("phi-4-tiny", "mlx-4bit")
    target.parent.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "mine").write_text("mine")
    partial_path(target).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        finish(quantize(planned, target, force=False))
    assert os.listdir(victim) == ["mine"]  # noqa: PTH208


def test_every_name_of_a_build(home: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--out` names the folder, wherever that is; the builds of one model lie side by side."""
    with MlxProcess() as mlx_lm:
        monkeypatch.setattr(action.mlx_ask, "tensor_forms", mlx_lm.ask)
        seen: list[Any] = []
        for build in ("mlx-3bit", "mlx-bf16"):
            plan = plan_build(tiny, build)
            seen += [finish(quantize(plan, action.target_of(plan, None), force=False))[0].label]
            out = action.target_of(plan, tmp_path / f"{build}.out")
            assert finish(quantize(plan, out, force=False))[0].path == tmp_path / f"{build}.out"
            assert verdict(str(out)).damaged == ()
    assert [build.label for build in builds()] == seen
