"""Predicted memory against what llama.cpp's own log says of a real load, and what is refused before one."""

from __future__ import annotations

import shlex
from pathlib import Path

import psutil
import pytest

from phi4local.backends.ask import tensor_types
from phi4local.backends.child import ChildEngine, Host
from phi4local.backends.load_settings import Budget, LoadSettings
from phi4local.backends.safe_mode import machine_and_build, memory_file, remember_crash
from phi4local.backends.survey import Question, Surveyed, Wanted, survey
from phi4local.errors import DoesNotFit
from phi4local.fit import HOST, Room, total
from phi4local.settings import nano_folder
from quant.config import Config, read_config
from quant.ggml import BUILDS, TYPES
from quant.skeleton import source_types, tensor_shapes, write_skeleton
from tests import shapes
from tests.checkpoints import write_configs
from tests.gguf_models import Geometry, write_random
from tests.loads import load
from tests.running import make, phi4local

GIB, MIB = 1 << 30, 1 << 20
MAIN = Room(HOST, 256 * GIB, 250 * GIB)


def predict(config: Config, build: str, context: int, kv_type: str, state: Path) -> Surveyed:
    """What the program says before there is a file; with safe settings, which make no difference between machines."""
    remember_crash(memory_file(state), machine_and_build(), "SIGSEGV")
    found = survey(Question(config, (Wanted(build),), MAIN, context, kv_type), state)
    assert found.problems == ()
    return found.builds[0]


def check(predicted: Surveyed, took: dict[str, int]) -> None:
    """Every kind within 1 % and 1 MiB: the promise is 1 % and 16 MiB, which would hide much of a small model."""
    for kind, took_bytes in took.items():
        assert abs(getattr(predicted.placement.total, kind) - took_bytes) <= took_bytes / 100 + MIB, kind


def config_of(shape: shapes.Shape, folder: Path) -> Config:
    folder.mkdir()
    write_configs(folder, shape)
    return read_config(folder)


def weightless(config: Config, build: str, folder: Path) -> Path:
    """A file that llama.cpp loads like the build, but for the vocabulary; its weights are a hole."""
    types = source_types(tensor_shapes(config))
    source, path = folder / "source.gguf", folder / "model.gguf"
    write_skeleton(source, config, "BF16", types)
    if build != "BF16":
        types = {name: TYPES[kind] for name, kind in tensor_types(source, BUILDS[build]).items()}
    write_skeleton(path, config, build, types)
    return path


# --- prediction and real load: flash attention is used for the quantized caches here, and not for the others ---


@pytest.mark.parametrize(
    ("build", "context", "kv_type"),
    [
        ("BF16", 512, "f16"),
        ("Q8_0", 4096, "f16"),
        ("Q4_K_M", 4096, "q8_0"),
        ("Q2_K", 1024, "f32"),
        ("Q5_0", 4096, "q4_0"),
    ],
)
def test_nano_takes_what_was_predicted(build: str, context: int, kv_type: str, tmp_path: Path) -> None:
    predicted = predict(read_config(nano_folder()), build, context, kv_type, tmp_path / "state")
    path = tmp_path / "nano.gguf"
    make(nano_folder(), build, path)
    check(predicted, load(path, {"context_tokens": context, "kv_type": kv_type, "safe_mode": True}))


@pytest.mark.parametrize(
    ("shape", "build", "context", "kv_type"),
    [
        (shapes.MINI_TINY, "Q4_K_M", 512, "f16"),
        (shapes.MINI_TINY, "Q8_0", 16384, "f16"),
        (shapes.MINI_TINY, "Q3_K_M", 16384, "q8_0"),
        (shapes.HALF_BILLION, "Q4_K_M", 8192, "f16"),
        (shapes.HALF_BILLION, "Q4_K_M", 16384, "q8_0"),
        (shapes.HALF_BILLION, "Q2_K", 1024, "f16"),
        (shapes.HALF_BILLION, "Q6_K", 4096, "q4_0"),
        (shapes.HALF_BILLION, "BF16", 2048, "f32"),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_other_shapes_take_what_was_predicted(
    shape: shapes.Shape, build: str, context: int, kv_type: str, tmp_path: Path
) -> None:
    config = config_of(shape, tmp_path / "configs")
    predicted = predict(config, build, context, kv_type, tmp_path / "state")
    path = weightless(config, build, tmp_path)
    check(predicted, load(path, {"context_tokens": context, "kv_type": kv_type, "safe_mode": True}))


def test_a_file_says_the_same_as_its_skeleton(tmp_path: Path) -> None:
    predicted = predict(read_config(nano_folder()), "Q4_K_M", 4096, "f16", tmp_path / "state")
    path = tmp_path / "nano.gguf"
    make(nano_folder(), "Q4_K_M", path)
    asked = Question(None, (Wanted("Q4_K_M", path=path),), MAIN, 4096)
    found = survey(asked, tmp_path / "state").builds[0]
    assert found.placement == predicted.placement
    assert (found.work, found.trained, found.most_context) == (
        predicted.work,
        predicted.trained,
        predicted.most_context,
    )


@pytest.mark.parametrize("safe_mode", [False, True])
def test_a_load_is_compared_with_its_prediction(tmp_path: Path, safe_mode: bool) -> None:
    path = tmp_path / "model.gguf"
    write_random(path, Geometry(hidden=512, layers=4, context=4096))
    settings = LoadSettings(str(path), threads=1, safe_mode=safe_mode)
    engine = ChildEngine(settings, Host(tmp_path / "state"), lambda: Budget(64 * GIB, 60 * GIB))
    found = engine.info.load
    engine.close()
    predicted, took = total(found.predicted), total(found.took)
    assert (found.where, found.gpu_layers, found.layers, found.kv_type) == ("cpu", 0, 4, "f16")
    assert abs(took.total_bytes - predicted.total_bytes) <= predicted.total_bytes / 100
    assert found.resident_bytes is not None
    assert found.resident_bytes <= predicted.total_bytes + path.stat().st_size + 64 * MIB


# --- what cannot fit -------------------------------------------------------------------------------------------------


def wide(path: Path) -> Path:
    """A model with so much memory of a conversation that 100,000 tokens take 3 GB."""
    write_random(path, Geometry(hidden=512, layers=8, heads=8, kv_heads=8, context=1 << 20))
    return path


def refusal(path: Path, folder: Path, budget: Budget, **settings: object) -> DoesNotFit:
    with pytest.raises(DoesNotFit) as caught:
        ChildEngine(LoadSettings(str(path), threads=1, **settings), Host(folder / "state"), lambda: budget)
    return caught.value


def test_a_smaller_cache_type_is_offered_first(tmp_path: Path) -> None:
    path = wide(tmp_path / "wide.gguf")
    error = refusal(path, tmp_path, Budget(4 * GIB, 2 * GIB), context_tokens=100_000, safe_mode=True)
    assert "needs 3." in error.message
    assert "1.50 GiB can be used (512.0 MiB more stay free)" in error.message
    assert error.exit_code == 6
    assert error.options[:2] == ("--kv", "q8_0")


def test_what_is_offered_fits(tmp_path: Path) -> None:
    path = wide(tmp_path / "wide.gguf")
    budget = Budget(2 * GIB, 1 * GIB)
    options = refusal(path, tmp_path, budget, context_tokens=500_000).options
    found = dict(zip(options[::2], options[1::2], strict=True))
    settings = LoadSettings(
        str(path), int(found["--context"]), threads=1, kv_type=found.get("--kv", "f16"), gpu_layers=-1
    )
    engine = ChildEngine(settings, Host(tmp_path / "state"), lambda: budget)
    assert total(engine.info.load.took).total_bytes <= 0.75 * GIB * 1.01
    engine.close()


def test_nothing_is_offered_where_nothing_fits(tmp_path: Path) -> None:
    path = wide(tmp_path / "wide.gguf")
    assert refusal(path, tmp_path, Budget(64 * MIB, 8 * MIB)).options == ()


def test_unknown_memory_is_not_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_random(path, Geometry(hidden=64, layers=1, context=512))
    engine = ChildEngine(LoadSettings(str(path), threads=1), Host(tmp_path / "state"))
    engine.close()


def test_chat_refuses_before_it_loads_and_names_a_command(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    context = min(1 << 24, int(psutil.virtual_memory().total * 2 / (8 * 2 * 512 * 2)))
    write_random(path, Geometry(hidden=512, layers=8, heads=8, kv_heads=8, context=context))
    refused = phi4local("chat", path, "-p", "Hi", "--context", str(context))
    assert refused.returncode == 6
    assert refused.stdout == ""
    assert " of memory with a context of " in refused.stderr
    hint = shlex.split(refused.stderr.split("hint: phi4local ")[1])
    assert hint[:2] == ["chat", str(path)]
    assert "--context" in hint or "--kv" in hint  # that it fits is tested above: here it would fill the memory
