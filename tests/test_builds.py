"""Every build against llama.cpp's own quantizer: the same bytes, tensor by tensor, and the same keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from phi4local.errors import FormatError, InsufficientResources
from quant.convert import check_disk
from quant.ggml import BUILDS
from quant.gguf import Header, read_header
from quant.repair import PHI4_TEMPLATE
from quant.source import read_source
from tests import shapes
from tests.checkpoints import write_checkpoint, write_sparse_checkpoint
from tests.running import make, plan


@llama_cpp.llama_log_callback
def _silent(_level: int, _text: bytes, _data: Any) -> None: ...


def quantize_by_llama(source: Path, target: Path, build: str) -> None:
    """llama.cpp's quantizer on a bf16 GGUF: the oracle."""
    llama_cpp.llama_log_set(_silent, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = BUILDS[build], 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0


SHAPES = {
    "phi-4": shapes.PHI4_RELEASE_TINY,
    "mini": shapes.MINI_TINY,
    "rows of 320 and 672": shapes.ODD,
    "rows of 304 and 336": shapes.ODDER,
}


@pytest.fixture(scope="module", params=SHAPES, ids=list(SHAPES))
def official(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of official weights and its BF16 build."""
    work = tmp_path_factory.mktemp("official")
    folder = write_checkpoint(work / "weights", SHAPES[request.param])
    make(folder, "BF16", work / "bf16.gguf")
    return folder, work / "bf16.gguf"


@pytest.mark.parametrize("build", [build for build in BUILDS if build != "BF16"])
def test_same_bytes_and_keys_as_llama(official: tuple[Path, Path], build: str, tmp_path: Path) -> None:
    folder, bf16 = official
    make(folder, build, tmp_path / "ours.gguf")
    quantize_by_llama(bf16, tmp_path / "theirs.gguf", build)
    ours, theirs = read_header(tmp_path / "ours.gguf"), read_header(tmp_path / "theirs.gguf")
    assert ours.metadata == theirs.metadata
    assert [(t.name, t.shape, t.type) for t in ours.tensors] == [(t.name, t.shape, t.type) for t in theirs.tensors]
    assert _weights(tmp_path / "ours.gguf", ours) == _weights(tmp_path / "theirs.gguf", theirs)


def _weights(path: Path, header: Header) -> bytes:
    return path.read_bytes()[header.data_offset :]


def test_bf16_holds_the_official_weights(tiny: Path, tmp_path: Path) -> None:
    make(tiny, "BF16", tmp_path / "out.gguf")
    source = read_source(tiny)
    header = read_header(tmp_path / "out.gguf")
    data = (tmp_path / "out.gguf").read_bytes()
    built = {t.name: data[t.offset : t.offset + t.size_bytes] for t in header.tensors}
    shard_of = {r.name: s.path for s in source.checkpoint.shards for r in s.records}
    record = source.checkpoint.records["model.layers.1.self_attn.qkv_proj.weight"]
    raw = shard_of[record.name].read_bytes()[record.offset : record.offset + record.size_bytes]
    assert built["blk.1.attn_qkv.weight"] == raw
    norm = source.checkpoint.records["model.norm.weight"]
    raw = shard_of[norm.name].read_bytes()[norm.offset : norm.offset + norm.size_bytes]
    widened = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(np.frombuffer(built["output_norm.weight"], np.float32), widened)


DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_other_source_dtypes(dtype: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "weights", dataclasses.replace(shapes.PHI4_TINY, dtype=DTYPES[dtype]))
    make(folder, "Q4_K_M", tmp_path / "ours.gguf")
    make(folder, "F16", tmp_path / "f16.gguf")
    if dtype == "F16":
        quantize_by_llama(tmp_path / "f16.gguf", tmp_path / "theirs.gguf", "Q4_K_M")
        ours, theirs = read_header(tmp_path / "ours.gguf"), read_header(tmp_path / "theirs.gguf")
        assert _weights(tmp_path / "ours.gguf", ours) == _weights(tmp_path / "theirs.gguf", theirs)


def test_repairs_of_the_first_release(tiny: Path, tmp_path: Path) -> None:
    found = plan(tiny, "Q8_0")
    assert [repair.key for repair in found.repairs] == [
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.padding_token_id",
        "tokenizer.chat_template",
    ]
    make(tiny, "Q8_0", tmp_path / "out.gguf")
    header = read_header(tmp_path / "out.gguf")
    tokens = header.items("tokenizer.ggml.tokens")
    assert tokens is not None
    assert tokens[header.count("tokenizer.ggml.eos_token_id") or 0] == "<|im_end|>"
    assert tokens[header.count("tokenizer.ggml.padding_token_id") or 0] == "<|dummy_85|>"
    assert header.text("tokenizer.chat_template") == PHI4_TEMPLATE


@pytest.mark.parametrize("shape", [shapes.PHI4_TINY, shapes.MINI_TINY, shapes.REASONING_TINY], ids=lambda s: s.name)
def test_a_mended_copy_needs_no_repair(shape: shapes.Shape, tmp_path: Path) -> None:
    assert plan(write_checkpoint(tmp_path / "weights", shape), "Q8_0").repairs == ()


@pytest.mark.parametrize("pair", [("PHI4_TINY", "PHI4_TINY_V5"), ("MINI_TINY", "MINI_TINY_V5")], ids=lambda p: p[0])
def test_both_config_spellings_give_the_same_file(pair: tuple[str, str], tmp_path: Path) -> None:
    headers = []
    for name in pair:
        folder = write_checkpoint(tmp_path / name / "weights", getattr(shapes, name))
        make(folder, "Q4_0", tmp_path / f"{name}.gguf")
        headers.append(read_header(tmp_path / f"{name}.gguf"))
    assert headers[0].metadata == headers[1].metadata
    assert (tmp_path / f"{pair[0]}.gguf").read_bytes() == (tmp_path / f"{pair[1]}.gguf").read_bytes()


def test_a_name_that_llama_would_misread_is_changed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "my-phi3-copy", shapes.PHI4_TINY)
    found = plan(folder, "Q8_0")
    assert [repair.key for repair in found.repairs] == ["general.name"]


# Published sizes of microsoft/phi-4-gguf and bartowski's mini, which carry the same tensors and other metadata.
PUBLISHED = {
    ("PHI4_14B_SHAPE", "Q3_K_M"): 7_363_268_800,
    ("PHI4_14B_SHAPE", "Q4_K_M"): 9_053_114_560,
    ("PHI4_14B_SHAPE", "Q6_K"): 12_030_251_200,
    ("PHI4_14B_SHAPE", "Q8_0"): 15_580_500_160,
    ("PHI4_14B_SHAPE", "BF16"): 29_323_399_360,
    ("MINI_SHAPE", "Q4_K_M"): 2_491_874_688,
    ("MINI_SHAPE", "Q8_0"): 4_084_611_456,
}


@pytest.mark.parametrize(("shape", "build"), PUBLISHED, ids=lambda value: str(value))
def test_the_plan_of_real_shapes_meets_the_published_sizes(shape: str, build: str, tmp_path: Path) -> None:
    folder = write_sparse_checkpoint(tmp_path / "weights", getattr(shapes, shape))
    found = plan(folder, build)
    assert found.size_bytes == found.tensors[-1].offset + -(-found.tensors[-1].size_bytes // 32) * 32
    assert abs(found.size_bytes - PUBLISHED[shape, build]) < 0.002 * PUBLISHED[shape, build]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_damaged_weights_are_refused_by_name(dtype: str, value: float, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "weights", dataclasses.replace(shapes.PHI4_TINY, dtype=DTYPES[dtype]))
    source = read_source(folder)
    shard = source.checkpoint.shards[-1]
    record = max(shard.records, key=lambda record: record.size_bytes)
    width = {"BF16": 2, "F16": 2, "F32": 4}[dtype]
    pattern = np.float16(value).tobytes() if dtype == "F16" else np.float32(value).tobytes()[-width:]
    with shard.path.open("r+b") as file:
        file.seek(record.offset + record.size_bytes // 2 // width * width)
        file.write(pattern)
    name = next(tensor.name for tensor in plan(folder, "BF16").tensors if tensor.record and tensor.record == record)
    with pytest.raises(FormatError, match=f"Tensor `{name}` holds NaN or infinity"):
        make(folder, "Q4_K_M", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_zeros_are_weights_like_others(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "weights", shapes.PHI4_TINY)
    shard = read_source(folder).checkpoint.shards[0]
    with shard.path.open("r+b") as file:
        file.seek(shard.data_offset)
        file.write(bytes(shard.size_bytes - shard.data_offset))
    make(folder, "Q2_K", tmp_path / "out.gguf")


def test_overflow_of_f16_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "weights", shapes.PHI4_TINY)
    shard = read_source(folder).checkpoint.shards[0]
    record = max(shard.records, key=lambda record: record.size_bytes)
    with shard.path.open("r+b") as file:
        file.seek(record.offset)
        file.write(np.float32(1e30).tobytes()[2:])
    make(folder, "BF16", tmp_path / "bf16.gguf")
    with pytest.raises(FormatError, match="overflows in F16"):
        make(folder, "F16", tmp_path / "f16.gguf")


def test_a_full_disk_is_told_before_the_first_byte(tmp_path: Path) -> None:
    with pytest.raises(InsufficientResources, match="needed"):
        check_disk(1 << 60, tmp_path / "out.gguf")
