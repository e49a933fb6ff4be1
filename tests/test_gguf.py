"""The strict reader against the `gguf` package, both ways, and against every truncation and every flipped byte."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4local.errors import FormatError, Phi4LocalError
from quant.gguf import read_header
from quant.sound import read_model_header
from tests.gguf_models import smollm2
from tests.running import make


@pytest.fixture(scope="module")
def built(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "tiny.gguf"
    make(tiny, "Q4_K_M", path)
    return path


def test_gguf_package_reads_ours(built: Path) -> None:
    ours, theirs = read_header(built), gguf.GGUFReader(built)
    assert {t.name: (t.offset, t.size_bytes) for t in ours.tensors} == {
        t.name: (t.data_offset, t.n_bytes) for t in theirs.tensors
    }
    keys = {name for name in theirs.fields if not name.startswith("GGUF.")}
    assert keys == ours.metadata.keys()
    for name in keys:
        assert theirs.fields[name].contents() == pytest.approx(ours.metadata[name]), name


values = st.one_of(
    st.integers(0, 2**32 - 1), st.booleans(), st.text(max_size=20).filter(bool), st.floats(width=32, allow_nan=False)
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}\.[a-z]{1,8}", fullmatch=True), values, max_size=8))
def test_we_read_what_the_package_writes(tmp_path_factory: pytest.TempPathFactory, facts: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("written") / "a.gguf"
    writer = gguf.GGUFWriter(path, "phi3")
    for key, value in facts.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    assert header.metadata == {"general.architecture": "phi3", **facts}
    assert header.tensors[0].shape == (3, 2)


def small_file(path: Path) -> bytes:
    """A GGUF of a few hundred bytes with every kind of value."""
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_uint32("a.u", 7)
    writer.add_float32("a.f", 0.5)
    writer.add_bool("a.b", True)
    writer.add_array("a.texts", ["x", "yz"])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_tensor("t", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = small_file(tmp_path / "a.gguf")
    for length in range(len(data)):
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(FormatError):
            read_header(tmp_path / "cut.gguf")


def test_every_flipped_bit_is_read_or_refused(tmp_path: Path) -> None:
    data = bytearray(small_file(tmp_path / "a.gguf"))
    path = tmp_path / "flipped.gguf"
    for position in range(len(data) - 256):  # the header and the padding, without the tensor's own bytes
        for bit in range(8):
            data[position] ^= 1 << bit
            path.write_bytes(data)
            try:
                read_header(path)
            except FormatError as error:
                assert error.message.isprintable()
            data[position] ^= 1 << bit


def number(value: int) -> bytes:
    return struct.pack("<Q", value)


START = b"GGUF" + struct.pack("<I", 3)
ONE_KEY = START + number(0) + number(1) + number(1) + b"a"
LIARS = {
    "tensor count 2^63": START + number(1 << 63) + number(0),
    "key count 2^40": START + number(0) + number(1 << 40),
    "string of 2^63 bytes": START + number(0) + number(1) + number(1 << 63),
    "array of 2^61 items": START
    + number(0)
    + number(1)
    + number(1)
    + b"a"
    + struct.pack("<II", 9, 4)
    + number(1 << 61),
    "array of arrays": ONE_KEY + struct.pack("<II", 9, 9) + number(1),
    "another version": b"GGUF" + struct.pack("<I", 9) + bytes(64),
    "big-endian": b"GGUF" + struct.pack(">I", 3) + bytes(64),
    "another format": b"PK\x03\x04" + bytes(64),
    "nothing": b"",
}


@pytest.mark.parametrize("case", LIARS)
def test_headers_that_lie_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(LIARS[case].ljust(64, b"\0") if LIARS[case] else b"")
    with pytest.raises(FormatError):
        read_header(path)


HUGE = 1 << 30
ONE_TEXT = ONE_KEY + struct.pack("<I", 8)
ONE_LIST = struct.pack("<II", 9, 8)
SPARSE = {
    "a key of 1 MiB": START + number(0) + number(1) + number(1 << 20),
    "a text of 17 MiB": ONE_TEXT + number(17 << 20),
    "a tensor name of 1 MiB": START + number(1) + number(0) + number(1 << 20),
    "two lists that are too long together": START
    + number(0)
    + number(2)
    + (number(1) + b"a" + ONE_LIST + number(300_000)).ljust(25 + 8 * 300_000, b"\0")
    + (number(1) + b"b" + ONE_LIST + number(3_900_000)),
}


@pytest.mark.parametrize("case", SPARSE)
def test_huge_claims_that_the_file_could_hold(case: str, tmp_path: Path) -> None:
    """The file is large enough for what it claims, and yet nothing of it is read."""
    path = tmp_path / "a.gguf"
    path.write_bytes(SPARSE[case])
    os.truncate(path, HUGE)
    tracemalloc.start()
    with pytest.raises(FormatError, match="cannot be true"):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6


def test_the_whole_header_is_bounded(tmp_path: Path) -> None:
    text = number(16 << 20)
    path = tmp_path / "a.gguf"
    with path.open("wb") as file:
        file.write(START + number(0) + number(20))
        for i in range(20):
            file.write(number(1) + bytes([97 + i]) + struct.pack("<I", 8) + text)
            file.seek(16 << 20, os.SEEK_CUR)
        file.write(b"\0")
    with pytest.raises(FormatError, match="header is longer"):
        read_header(path)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(FormatError, match="not a file"):
            read_header(path)


def change(path: Path, target: Path, key: str, value: bytes) -> Path:
    """A copy of a GGUF in which the bytes after a key's name and type are others."""
    data = bytearray(path.read_bytes())
    position = data.index(number(len(key)) + key.encode()) + 8 + len(key) + 4
    data[position : position + len(value)] = value
    target.write_bytes(data)
    return target


BROKEN = {
    "phi3.block_count": struct.pack("<I", 5),
    "phi3.embedding_length": struct.pack("<I", 128),
    "phi3.feed_forward_length": struct.pack("<I", 1),
    "phi3.attention.head_count": struct.pack("<I", 0),
    "phi3.attention.head_count_kv": struct.pack("<I", 3),
    "phi3.attention.layer_norm_rms_epsilon": struct.pack("<f", float("nan")),
    "phi3.rope.dimension_count": struct.pack("<I", 7),
    "tokenizer.ggml.eos_token_id": struct.pack("<I", 1 << 30),
    "phi3.context_length": struct.pack("<I", 0),
}


@pytest.mark.parametrize("key", BROKEN)
def test_metadata_that_would_kill_the_engine(key: str, built: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be loaded"):
        read_model_header(change(built, tmp_path / "broken.gguf", key, BROKEN[key]))


def test_a_sound_file_is_sound(built: Path) -> None:
    assert read_model_header(built).text("general.architecture") == "phi3"


def test_a_published_file_is_sound() -> None:
    assert read_model_header(smollm2()).text("general.architecture") == "llama"


def test_a_token_that_is_there_twice(built: Path, tmp_path: Path) -> None:
    data = built.read_bytes()
    first, second = (number(1) + letter for letter in (b"A", b"B"))
    start = data.index(b"tokenizer.ggml.tokens")
    position = data.index(second, start)
    (tmp_path / "twice.gguf").write_bytes(data[:position] + first + data[position + len(second) :])
    with pytest.raises(FormatError, match="same token twice"):
        read_model_header(tmp_path / "twice.gguf")


def test_a_part_of_a_model(tmp_path: Path) -> None:
    """Only the first of several parts has keys; every part says how many there are."""
    writer = gguf.GGUFWriter(tmp_path / "phi.gguf", "phi3", split_max_tensors=1)
    writer.add_block_count(1)
    for name in ("token_embd.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 2
    for part in parts:
        with pytest.raises(FormatError, match="one of 2 parts") as caught:
            read_model_header(part)
        assert "llama-gguf-split --merge" in caught.value.hint


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(Phi4LocalError, match="No file"):
        read_header(tmp_path / "nothing.gguf")
