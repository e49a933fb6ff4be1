"""Damaged and lying checkpoints: one clear error, bounded time and memory, never an output file (R12, R14, R18)."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phi4local.errors import FormatError, NotFound, Phi4LocalError
from quant.safetensors import read_checkpoint, read_shard
from quant.source import read_source
from tests import shapes
from tests.checkpoints import write_checkpoint
from tests.running import phi4local

Header = dict[str, Any]


def write(path: Path, header: Header | bytes, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header at all."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "BF16") -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HANDMADE: dict[str, tuple[Header | bytes, bytes]] = {
    "empty name": ({"": entry(0, 4, [2])}, bytes(4)),
    "control characters in a name": ({"a\x1b[2J": entry(0, 4, [2])}, bytes(4)),
    "overlap": ({"a": entry(0, 4, [2]), "b": entry(2, 6, [2])}, bytes(6)),
    "gap": ({"a": entry(0, 4, [2]), "b": entry(6, 10, [2])}, bytes(10)),
    "range and shape differ": ({"a": entry(0, 4, [3])}, bytes(4)),
    "range beyond the file": ({"a": entry(0, 1 << 50, [1 << 49])}, bytes(4)),
    "range backwards": ({"a": entry(4, 0, [2])}, bytes(4)),
    "negative size": ({"a": entry(0, 4, [-2])}, bytes(4)),
    "product overflows 64 bits": ({"a": entry(0, 0, [1 << 33, 1 << 33])}, b""),
    "size is a float": (b'{"a": {"dtype": "BF16", "shape": [2.0], "data_offsets": [0, 4]}}', bytes(4)),
    "size is true": (b'{"a": {"dtype": "BF16", "shape": [true], "data_offsets": [0, 2]}}', bytes(2)),
    "unknown dtype": ({"a": entry(0, 4, [2], "Q4")}, bytes(4)),
    "dtype is a list": ({"a": {"dtype": [], "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
    "entry is a number": ({"a": 7}, b""),
    "header is a list": (b"[]", b""),
    "header is not JSON": (b"{" * 50, b""),
    "nested ten thousand deep": (b"[" * 10_000, b""),
    "repeated key": (b'{"a": {"dtype":"BF16","shape":[1],"data_offsets":[0,2]}, "a": 1}', bytes(2)),
    "bytes after the last tensor": ({"a": entry(0, 4, [2])}, bytes(5)),
    "number of 5,000 digits": (
        b'{"a": {"dtype": "BF16", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}',
        b"",
    ),
    "not UTF-8": (b'{"\xff": 1}', b""),
}


@pytest.mark.parametrize("case", HANDMADE)
def test_handmade_headers_are_refused(case: str, tmp_path: Path) -> None:
    header, data = HANDMADE[case]
    with pytest.raises(FormatError) as caught:
        read_shard(write(tmp_path / "model.safetensors", header, data))
    assert all(c.isprintable() for c in caught.value.message)


@pytest.mark.parametrize("length", [1 << 20, 1 << 62, (1 << 64) - 1, 2_000_001])
def test_header_lengths_that_lie(length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", b"{}", length=length)
    if length == 2_000_001:
        with path.open("r+b") as file:
            file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(FormatError):
        read_shard(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_every_truncation_is_refused(tiny: Path, tmp_path: Path) -> None:
    source = tiny / "model-00001-of-00002.safetensors"
    data = source.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    lengths = [*range(0, header, 37), *range(header, len(data), len(data) // 50), len(data) - 1]
    for length in lengths:
        (tmp_path / "cut.safetensors").write_bytes(data[:length])
        with pytest.raises(FormatError):
            read_shard(tmp_path / "cut.safetensors")


def test_flipped_header_bytes_are_read_or_refused(tmp_path: Path) -> None:
    """Five hundred mutants of a whole folder: each is a checkpoint still, or one of our errors."""
    folder = write_checkpoint(tmp_path / "weights", shapes.PHI4_TINY)
    shard = folder / "model-00001-of-00002.safetensors"
    data = shard.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(3)
    refused = 0
    for _ in range(500):
        position = rng.randrange(header)
        with shard.open("r+b") as file:
            file.seek(position)
            file.write(bytes([data[position] ^ (1 << rng.randrange(8))]))
            file.flush()
            try:
                read_source(folder)
            except Phi4LocalError as error:
                refused += 1
                assert error.message.isprintable()
            file.seek(position)
            file.write(data[position : position + 1])
    assert refused > 400  # what passes are flips inside __metadata__ or white space


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
def test_flipped_bytes_of_the_json_files(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "weights", shapes.PHI4_TINY)
    data = (folder / name).read_bytes()
    rng = random.Random(5)
    for _ in range(120):
        position = rng.randrange(len(data))
        flipped = bytes([data[position] ^ (1 << rng.randrange(8))])
        (folder / name).write_bytes(data[:position] + flipped + data[position + 1 :])
        try:
            read_source(folder)
        except Phi4LocalError as error:
            assert error.message.isprintable()


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _send(target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit_json(folder / "model.safetensors.index.json", lambda v: v["weight_map"].update({"lm_head.weight": target}))

    return change


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit_json(folder / "config.json", lambda v: v.update(changes))

    return change


def _without(key: str) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", lambda v: v.pop(key))


def _delete(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _big(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(1 << 30)

    return change


def _pickled(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


FOLDERS: dict[str, tuple[Callable[[Path], None], type[Phi4LocalError], str]] = {
    "missing shard": (_delete("model-00002-of-00002.safetensors"), NotFound, "model-00002-of-00002"),
    "missing config": (_delete("config.json"), NotFound, "config.json"),
    "missing tokenizer": (_delete("tokenizer.json"), NotFound, "tokenizer.json"),
    "index leaves the folder": (_send("../../etc/passwd.safetensors"), FormatError, "not plain"),
    "index names an absolute path": (_send("/etc/passwd.safetensors"), FormatError, "not plain"),
    "index sends a tensor elsewhere": (_send("model-00001-of-00002.safetensors"), FormatError, "lm_head"),
    "pickled weights": (_pickled, FormatError, "run code"),
    "config of one gigabyte": (_big("config.json"), FormatError, "larger than"),
    "tokenizer of one gigabyte": (_big("tokenizer.json"), FormatError, "larger than"),
    "no hidden size": (_without("hidden_size"), FormatError, "`hidden_size` is missing"),
    "no rope": (_without("rope_theta"), FormatError, "`rope_theta` is missing"),
    "no architecture": (_without("architectures"), FormatError, "architecture"),
    "another width": (_config(hidden_size=512), FormatError, "shape"),
    "more layers": (_config(num_hidden_layers=5), FormatError, "missing"),
    "fewer layers": (_config(num_hidden_layers=3), FormatError, "no place"),
    "heads that do not divide": (_config(num_key_value_heads=3), FormatError, "num_key_value_heads"),
    "a number as text": (_config(hidden_size="256"), FormatError, "hidden_size"),
    "a huge vocabulary": (_config(vocab_size=1 << 40), FormatError, "vocab_size"),
    "a small vocabulary": (_config(vocab_size=100), FormatError, "shape"),
    "epsilon of zero": (_config(rms_norm_eps=0), FormatError, "rms_norm_eps"),
    "unknown rope": (_config(rope_scaling={"type": "yarn", "factor": 2}), FormatError, "yarn"),
    "already quantized": (_config(quantization_config={"bits": 4}), FormatError, "already quantized"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_not_what_they_claim(case: str, tmp_path: Path) -> None:
    change, kind, words = FOLDERS[case]
    folder = write_checkpoint(tmp_path / "weights", shapes.PHI4_TINY)
    change(folder)
    with pytest.raises(kind, match=words.replace("(", r"\(")) as caught:
        read_source(folder)
    assert "\n" not in caught.value.message


REFUSED = {
    "FLASH": "flash",
    "MULTIMODAL": "multimodal",
    "VISION": "vision",
    "LLAMAFIED": "Llama-architecture",
    "LLAMA": "Llama-architecture",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_named_and_refused(name: str, tmp_path: Path) -> None:
    from tests.checkpoints import write_configs

    folder = tmp_path / "weights"
    folder.mkdir()
    write_configs(folder, getattr(shapes, name))
    with pytest.raises(FormatError, match=REFUSED[name]) as caught:
        read_source(folder)
    assert caught.value.hint


def test_a_refusal_on_the_command_line(tiny: Path, tmp_path: Path) -> None:
    """Exit code, one line, a hint, no traceback, no output file, no leftovers."""
    folder = tmp_path / "weights"
    shutil.copytree(tiny, folder)
    shard = folder / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    out = tmp_path / "out"
    out.mkdir()
    result = phi4local("quantize", folder, "--to", "Q4_K_M", "--out", out)
    assert (result.returncode, result.stdout) == (5, "")
    assert result.stderr.startswith("error: `model-00002-of-00002.safetensors` is truncated")
    assert "\nhint: " in result.stderr
    assert list(out.iterdir()) == []


def test_a_single_file_needs_no_index(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "weights", shapes.PHI4_TINY, shards=1)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        index.unlink()
        next(folder.glob("*.safetensors")).rename(folder / "model.safetensors")
    assert len(read_checkpoint(folder).shards) == 1
