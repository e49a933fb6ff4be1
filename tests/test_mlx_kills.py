"""MLX builds that are killed, stopped, starved of room or made twice at once: nothing half-written is ever listed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from phi4local.actions.official import build_official, check_room, plan_official
from phi4local.actions.quantize import quantize
from phi4local.actions.verify import verify
from phi4local.errors import FormatError, UsageError
from phi4local.hub.repository import look_up
from phi4local.store import builds, manifest_path
from quant.convert import Built, convert
from quant.journal import aside_path, journal_path, partial_path
from quant.mlx_plan import MlxPlan, make_mlx_plan
from quant.progress import Progress
from quant.source import read_source
from tests import shapes
from tests.checkpoints import write_checkpoint
from tests.hub import Hub
from tests.mlx_process import MlxProcess
from tests.running import finish, json_of

KILLS = int(os.environ.get("PHI4LOCAL_KILLS", "10"))
BUILD = "mlx-mxfp4"  # the slowest one to make
NAME = f"phi-4-tiny-{BUILD}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 MB in eight shards: a second or two of work."""
    shape = dataclasses.replace(shapes.PHI4_TINY, hidden=512, intermediate=1536, layers=3, heads=8, vocab=864)
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "phi-4-tiny", shape, shards=8)


@pytest.fixture(scope="module")
def mlx_lm() -> Iterator[MlxProcess]:
    """mlx-lm, imported once."""
    with MlxProcess() as running:
        yield running


@pytest.fixture(scope="module")
def planned(weights: Path, mlx_lm: MlxProcess) -> MlxPlan:
    """The plan of the build."""
    return make_mlx_plan(read_source(weights, for_mlx=True), BUILD, mlx_lm.ask)


@pytest.fixture(scope="module")
def undisturbed(planned: MlxPlan, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The build that nobody disturbed."""
    return finish(start(planned, tmp_path_factory.mktemp("undisturbed") / "out"))


def start(planned: MlxPlan, target: Path) -> Generator[Progress, None, Built]:
    return convert(planned, target, threads=2, certify=lambda _built: None)


def stop_half_way(planned: MlxPlan, target: Path) -> None:
    work = start(planned, target)
    while (event := next(work)).done_bytes < 0.6 * event.total_bytes:
        pass
    work.close()
    assert not target.exists()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def command(weights: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "phi4local", "quantize", str(weights), "--to", BUILD, "--json", *more]


def written(target: Path) -> tuple[bool, int]:
    """When the partial build was last written to."""
    path = partial_path(target) / "model.safetensors"
    return path.exists(), path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.slow
def test_killed_at_any_moment(weights: Path, undisturbed: Built, home: Path) -> None:
    """The first kills meet a new build, those after its end one that takes the place of another."""
    target = home / "models/phi-4-tiny" / NAME
    moments, landed = random.Random(7), 0
    for _ in range(KILLS):
        before = written(target)
        more = ["--force"] if builds() else []
        child = subprocess.Popen(command(weights, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while written(target) == before and child.poll() is None:  # while it plans
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.5))
        child.kill()
        landed += child.wait() == -signal.SIGKILL
        for build in builds():
            assert build.manifest.sha256 == undisturbed.sha256
            assert not finish(verify(build.label)).damaged
    result = json_of(subprocess.run(command(weights, "--force"), capture_output=True, text=True, check=False))
    assert landed >= KILLS // 2
    assert result["sha256"] == undisturbed.sha256
    assert not finish(verify(None)).damaged
    assert names(target.parent) == {NAME, manifest_path(target).name}


def test_goes_on_where_it_was_stopped(planned: MlxPlan, undisturbed: Built, tmp_path: Path) -> None:
    target = tmp_path / "out"
    stop_half_way(planned, target)
    (partial_path(target) / ".0123.tmp").write_bytes(b"what was being written")
    built = finish(start(planned, target))
    assert (built.sha256, built.files) == (undisturbed.sha256, undisturbed.files)
    assert built.resumed_bytes > 0
    assert names(target) == set(built.files)
    assert names(tmp_path) == {"out"}


def test_a_whole_folder_that_nobody_vouches_for(planned: MlxPlan, undisturbed: Built, tmp_path: Path) -> None:
    """As a `remove` leaves it that was killed: its bytes are not trusted."""
    target = tmp_path / "out"
    finish(start(planned, target))
    (target / "extra").mkdir()
    target.rename(partial_path(target))
    built = finish(start(planned, target))
    assert (built.sha256, built.resumed_bytes) == (undisturbed.sha256, 0)
    assert names(target) == set(built.files)


@pytest.mark.parametrize("moment", ["before the certificate", "after it"])
def test_killed_while_it_takes_the_place_of_another(
    moment: str, planned: MlxPlan, undisturbed: Built, home: Path
) -> None:
    target = home / "models/phi-4-tiny" / NAME
    build, _ = finish(quantize(planned, target, force=False))
    certificate = manifest_path(target).read_bytes()
    (target / "config.json").write_text("{}")  # an older build

    class Killed(BaseException):
        pass

    def certify(_built: Built) -> None:
        if moment == "after it":
            manifest_path(target).write_bytes(certificate)
        raise Killed

    with pytest.raises(Killed):
        finish(convert(planned, target, threads=2, certify=certify))
    assert builds() == []
    assert aside_path(target).is_dir()
    again, built = finish(quantize(planned, target, force=True))
    assert built
    assert built.resumed_bytes > 0
    assert again.manifest.sha256 == build.manifest.sha256 == undisturbed.sha256
    assert not finish(verify(None)).damaged
    assert names(target.parent) == {NAME, manifest_path(target).name}


def test_a_lying_journal_is_found_by_the_check(planned: MlxPlan, tmp_path: Path) -> None:
    target = tmp_path / "out"
    stop_half_way(planned, target)
    with journal_path(target).open("a") as file:
        file.writelines(json.dumps({"tensor": tensor.name}) + "\n" for tensor in planned.tensors)
    with pytest.raises(FormatError, match="not what was written"):
        finish(start(planned, target))
    assert not target.exists()


@pytest.mark.parametrize("name", ["special_tokens_map.json", "model-00008-of-00008.safetensors"])
def test_a_source_that_changes_is_not_certified(name: str, weights: Path, mlx_lm: MlxProcess, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    plan = make_mlx_plan(read_source(folder, for_mlx=True), "mlx-4bit", mlx_lm.ask)
    work = start(plan, tmp_path / "out")
    next(work)
    os.utime(folder / name, ns=(0, 0))
    with pytest.raises(FormatError, match="changed while it was read"):
        finish(work)
    assert not (tmp_path / "out").exists()


def test_two_writers(weights: Path, planned: MlxPlan, undisturbed: Built, home: Path) -> None:
    target = home / "models/phi-4-tiny" / NAME
    first = quantize(planned, target, force=False)
    next(first)
    with pytest.raises(UsageError, match="already building"):
        finish(quantize(planned, target, force=False))
    first.close()
    pair = [subprocess.Popen(command(weights), stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    outputs = [child.communicate(timeout=100) for child in pair]
    for child, (_, errors) in zip(pair, outputs, strict=True):
        assert child.returncode == 0 or b"already building" in errors
    assert {child.returncode for child in pair} <= {0, 2}
    assert [build.manifest.sha256 for build in builds()] == [undisturbed.sha256]
    assert not finish(verify(None)).damaged


def test_made_while_the_weights_arrive(
    weights: Path, undisturbed: Built, mlx_lm: MlxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a hub, shard by shard; stopped half-way, it goes on without what it has quantized already."""
    monkeypatch.setattr("phi4local.backends.mlx_ask.tensor_forms", mlx_lm.ask)
    shutil.copytree(weights, tmp_path / "hub/acme/phi-4-tiny")
    target = tmp_path / "out"
    with Hub(tmp_path / "hub") as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)  # read when it was imported
        work = _arriving(target)
        while (event := next(work)).stage != "build" or event.done_bytes < 0.7 * event.total_bytes:
            pass
        work.close()
        assert not target.exists()
        built = finish(_arriving(target))
    assert (built.sha256, built.files) == (undisturbed.sha256, undisturbed.files)
    assert built.resumed_bytes > 0
    assert "special_tokens_map.json" in built.source_sha256


def _arriving(target: Path) -> Generator[Progress, None, Built]:
    snapshot = look_up("acme/phi-4-tiny", None)
    planned = yield from plan_official(snapshot, BUILD, target, keep=None)
    check_room(planned, target)
    with contextlib.closing(planned.shards):
        return (yield from build_official(planned, target, threads=2, certify=lambda _built: None))


def test_a_limit_on_file_sizes_is_a_full_disk(weights: Path, home: Path) -> None:
    limited = ["bash", "-c", 'ulimit -f 3000; exec "$@"', "bash", *command(weights)]
    result = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert result.returncode == 6
    assert "needed" in result.stderr
    assert "Traceback" not in result.stderr
    assert builds() == []
