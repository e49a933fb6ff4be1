"""Sizes of builds that nobody has made here: against what is published, and against what llama.cpp's quantizer says."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from phi4local.backends.ask import tensor_types
from phi4local.catalog import Model, find_model, models
from phi4local.settings import nano_folder
from quant import mlx
from quant.config import Config, read_config
from quant.ggml import BUILDS, TYPES
from quant.gguf import read_header
from quant.metadata import config_of
from quant.mix import published_types
from quant.mlx_size import weights_bytes
from quant.skeleton import Types, source_types, tensor_bytes, tensor_shapes, write_skeleton
from quant.sound import read_model_header
from tests.running import make

READY_MADE = {model.name: model.described for model in models() if model.described}
FILES = [(name, build) for name, files in READY_MADE.items() for build in files]


def model_of(name: str) -> Model:
    model = find_model(name)
    assert model
    return model


@pytest.fixture(scope="module")
def todays(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Types]:
    """What the quantizer gives each tensor today, in every build that is published."""
    folder = tmp_path_factory.mktemp("skeletons")
    for name in READY_MADE:
        config = model_of(name).config
        write_skeleton(folder / name, config, "BF16", source_types(tensor_shapes(config)))

    def ask(file: tuple[str, str]) -> Types:
        name, build = file
        if build == "BF16":
            return source_types(tensor_shapes(model_of(name).config))
        return {tensor: TYPES[kind] for tensor, kind in tensor_types(folder / name, BUILDS[build]).items()}

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FILES, pool.map(ask, FILES), strict=True))


def file_bytes(name: str, types: Types) -> int:
    model = model_of(name)
    return tensor_bytes(tensor_shapes(model.config), types) + model.header_bytes


@pytest.mark.parametrize(("name", "build"), FILES, ids=[f"{name}-{build}" for name, build in FILES])
def test_published_sizes_are_met(name: str, build: str, todays: Mapping[tuple[str, str], Types]) -> None:
    types = published_types(build, todays[name, build])
    assert file_bytes(name, types) == READY_MADE[name][build].bytes


def test_todays_mixes_are_others(todays: Mapping[tuple[str, str], Types]) -> None:
    """The rule that came later gives `attn_qkv` more bits in these, and fewer in Q5_K_M."""
    larger = {"Q2_K", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS"}
    for (name, build), types in todays.items():
        more = file_bytes(name, types) - READY_MADE[name][build].bytes
        assert (more > 0) == (build in larger), (name, build, more)
        assert (more < 0) == (build == "Q5_K_M"), (name, build, more)


def test_only_the_fused_attention_differs(todays: Mapping[tuple[str, str], Types]) -> None:
    for (_, build), types in todays.items():
        published = published_types(build, types)
        assert list(published) == list(types)
        assert all(name.endswith(".attn_qkv.weight") for name in types if published[name] != types[name])


@pytest.mark.parametrize(
    ("name", "build", "gigabytes"),
    [("phi-4", "mlx-4bit", "8.25"), ("phi-4", "mlx-8bit", "15.6"), ("phi-4-mini", "mlx-4bit", "2.16")],
)
def test_mlx_sizes_are_the_published_ones(name: str, build: str, gigabytes: str) -> None:
    config = model_of(name).config
    assert config is not None
    assert f"{weights_bytes(config, mlx.BUILDS[build]) / 1e9:.3g}" == gigabytes


def test_an_mlx_cache_grows_with_the_context() -> None:
    config = model_of("phi-4").config
    assert mlx.kv_bytes(config, 1) == 2 * 40 * 10 * 128 * 2  # keys and values, layers, heads, head's size, bf16
    assert mlx.kv_bytes(config, 16384) == 16384 * mlx.kv_bytes(config, 1)


def for_memory(config: Config) -> dict[str, object]:
    """The fields that say how much memory a load takes; of the rope's factors it is how many there are."""
    factors = config.long_rope and (len(config.long_rope.long), len(config.long_rope.short))
    names = (
        *("hidden", "intermediate", "layers", "heads", "kv_heads", "vocabulary", "context", "original_context"),
        *("rotary_dimensions", "sliding_window", "tied", "head_size"),
    )
    return {name: getattr(config, name) for name in names} | {"factors": factors}


@pytest.mark.parametrize(("source", "build"), [("nano", "Q4_0"), ("tiny", "Q8_0"), ("mini", "BF16")])
def test_a_build_tells_the_shape_that_it_was_made_from(
    source: str, build: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = nano_folder() if source == "nano" else request.getfixturevalue(source)
    make(folder, build, tmp_path / "model.gguf")
    original = read_config(folder)
    found = config_of(read_model_header(tmp_path / "model.gguf"))
    assert found
    assert for_memory(found) == for_memory(original)
    assert (found.rope_theta, found.rms_epsilon) == pytest.approx((original.rope_theta, original.rms_epsilon))
    assert tensor_shapes(found) == tensor_shapes(original)


@pytest.mark.parametrize("name", list(READY_MADE))
def test_a_skeleton_tells_its_shape(name: str, tmp_path: Path) -> None:
    config = model_of(name).config
    types = source_types(tensor_shapes(config))
    write_skeleton(tmp_path / "model.gguf", config, "BF16", types)
    header = read_header(tmp_path / "model.gguf")  # `read_model_header` refuses a file without a vocabulary
    found = config_of(header)
    assert found
    assert for_memory(found) == for_memory(config)
    assert sum(tensor.size_bytes for tensor in header.tensors) == tensor_bytes(tensor_shapes(config), types)
