"""A published header with its repairs: nothing else of it changes, and the tensors' bytes stay what they are."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi4local.errors import FormatError
from quant.gguf import Header, read_header
from quant.mend import Mended, find_repairs, mend
from quant.repair import PHI4_TEMPLATE, Repair
from tests.gguf_models import CONTROLS
from tests.pulling import EOS, PAD, TEMPLATE, write_out
from tests.shapes import MINI_TEMPLATE, PHI4_RELEASE_TEMPLATE, REASONING_TEMPLATE

TOKENS = ["a", "b", *CONTROLS, "<|dummy_85|>"]
END, TURN, DUMMY = (TOKENS.index(text) for text in ("<|endoftext|>", "<|im_end|>", "<|dummy_85|>"))
FLAWED = "<|im_sep|>"  # what a template of the first release has, without what it lacks
DATA = {"first": np.arange(40, dtype=np.float32), "second.weight": np.ones((3, 8), np.float16)}


def write(path: Path, *, alignment: int = 32, more: tuple[str, ...] = (), **keys: object) -> Path:
    """A small file of the 14B line: keys before, between and behind those that are repaired."""
    values = {"eos": END, "pad": END, "template": PHI4_RELEASE_TEMPLATE, "tokens": TOKENS, "model": "gpt2"} | keys
    writer = gguf.GGUFWriter(path, "phi3")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_name("A tiny one")
    if values["eos"] is not None:
        writer.add_eos_token_id(values["eos"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    if values["template"] is not None:
        writer.add_string(TEMPLATE, values["template"])
    writer.add_tokenizer_model(values["model"])
    writer.add_token_list(values["tokens"])
    if values["pad"] is not None:
        writer.add_pad_token_id(values["pad"])
    for key in more:
        writer.add_string(key, "more")
    for name, data in DATA.items():
        writer.add_tensor(name, data)
    return write_out(writer)


def mended_copy(path: Path, repairs: tuple[Repair, ...] | None = None) -> tuple[Header, Mended, Path]:
    """The header as published, what became of it, and the whole file with it."""
    header, data = read_header(path), path.read_bytes()
    found = mend(data[: header.data_offset], header, find_repairs(header) if repairs is None else repairs)
    copy = path.with_name("mended.gguf")
    copy.write_bytes(found.header + data[header.data_offset :])
    assert len(found.header) == header.data_offset + found.shift_bytes
    assert found.shift_bytes >= 0
    assert found.shift_bytes % header.alignment == 0
    return header, found, copy


def check_same_but(before: Header, copy: Path, changed: dict[str, object]) -> None:
    """Our reader and the `gguf` package's agree: only these keys are others, and every tensor has its bytes."""
    after = read_header(copy)
    filler = after.metadata.pop("phi4local.filler", "")
    assert isinstance(filler, str)
    assert filler.strip() == ""
    assert after.metadata == before.metadata | changed
    reader = gguf.GGUFReader(copy)
    assert {tensor.name for tensor in reader.tensors} == DATA.keys()
    for tensor in reader.tensors:
        assert np.array_equal(tensor.data, DATA[tensor.name])
    for key, value in changed.items():
        assert reader.fields[key].contents() == value


REPAIRED = {EOS: TURN, PAD: DUMMY, TEMPLATE: PHI4_TEMPLATE}


@pytest.mark.parametrize("length", [len(FLAWED), 300, len(PHI4_TEMPLATE) - 1, len(PHI4_TEMPLATE), 601, 2000])
def test_template_of_any_length(length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", template=FLAWED.ljust(length))
    before, mended, copy = mended_copy(path)
    check_same_but(before, copy, REPAIRED)
    assert [repair.key for repair in mended.repairs] == list(REPAIRED)
    assert mended.shift_bytes == 0 or length <= len(PHI4_TEMPLATE)
    assert find_repairs(read_header(copy)) == ()


def test_every_other_byte_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf")
    before, _, copy = mended_copy(path)
    after = read_header(copy)
    old, new = path.read_bytes(), copy.read_bytes()
    assert old[before.keys_end : before.end] == new[after.keys_end : after.end]
    for key in before.metadata.keys() - REPAIRED.keys():
        assert old[slice(*before.spans[key])] == new[slice(*after.spans[key])]
    assert list(after.metadata)[: len(before.metadata)] == list(before.metadata)
    assert old[:16] == new[:16]


@pytest.mark.parametrize(
    ("absent", "found"),
    [("eos", {EOS, PAD, TEMPLATE}), ("pad", {EOS, TEMPLATE}), ("template", {EOS, PAD, TEMPLATE})],
)
def test_absent_keys(absent: str, found: set[str], tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", **{absent: None})
    before, mended, copy = mended_copy(path)
    assert {repair.key for repair in mended.repairs} == found
    check_same_but(before, copy, {key: REPAIRED[key] for key in found})


@pytest.mark.parametrize("alignment", [8, 64, 4096])
@pytest.mark.parametrize("length", [len(FLAWED), 1500])
def test_other_alignments(alignment: int, length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", alignment=alignment, template=FLAWED.ljust(length))
    before, _, copy = mended_copy(path)
    assert before.alignment == alignment
    check_same_but(before, copy, REPAIRED)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mend") / "a.gguf"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(old=st.integers(0, 2000), new=st.integers(0, 2000), alignment=st.sampled_from([8, 32, 256]))
def test_all_lengths(place: Path, old: int, new: int, alignment: int) -> None:
    place.unlink(missing_ok=True)
    write(place, template="x" * old, alignment=alignment)
    before, mended, copy = mended_copy(place, (Repair(TEMPLATE, "x" * old, "y" * new, "a test"),))
    check_same_but(before, copy, {TEMPLATE: "y" * new})
    assert mended.shift_bytes <= max(0, new - old) + 36 + 2 * alignment


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_texts_of_any_letters(place: Path, text: str) -> None:
    place.unlink(missing_ok=True)
    before, _, copy = mended_copy(write(place), (Repair(TEMPLATE, "", text, "a test"),))
    check_same_but(before, copy, {TEMPLATE: text})


@pytest.mark.parametrize(
    "keys",
    [
        {"eos": TURN, "pad": DUMMY, "template": PHI4_TEMPLATE},
        {"eos": TURN, "pad": DUMMY, "template": REASONING_TEMPLATE},
        {"tokens": ["a", "b", "<|endoftext|>", "<|im_end|>", "<|im_start|>"], "eos": 2, "pad": 2},
        {"tokens": ["a", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"], "eos": 1, "template": MINI_TEMPLATE},
        {"model": "llama"},
    ],
    ids=["mended", "reasoning", "another family", "mini", "another tokenizer"],
)
def test_sound_files_and_other_families_are_left_alone(keys: dict[str, object], tmp_path: Path) -> None:
    assert find_repairs(read_header(write(tmp_path / "a.gguf", **keys))) == ()


@pytest.mark.parametrize(("kind", "form"), [(4, "<I"), (5, "<i"), (10, "<Q"), (11, "<q")])
def test_token_ids_keep_their_type(kind: int, form: str, tmp_path: Path) -> None:
    path = retyped(write(tmp_path / "a.gguf"), kind, struct.pack(form, END))
    before, _, copy = mended_copy(path)
    after = read_header(copy)
    start, end = after.spans[EOS]
    assert copy.read_bytes()[start:end] == struct.pack("<I", kind) + struct.pack(form, TURN)
    check_same_but(before, copy, REPAIRED)


@pytest.mark.parametrize(("kind", "value"), [(8, struct.pack("<Q", 3) + b"929"), (6, struct.pack("<f", 2.0))])
def test_a_token_id_that_is_no_integer_is_refused(kind: int, value: bytes, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no integer"):
        mended_copy(retyped(write(tmp_path / "a.gguf"), kind, value))


def retyped(path: Path, kind: int, value: bytes) -> Path:
    """The end of turn with another type; the tensors move along."""
    header, data = read_header(path), path.read_bytes()
    start, end = header.spans[EOS]
    changed = data[:start] + struct.pack("<I", kind) + value + data[end : header.end]
    room = -(-len(changed) // header.alignment) * header.alignment
    path.write_bytes(changed.ljust(room, b"\0") + data[header.data_offset :])
    return path


def test_a_filler_of_an_earlier_mending_is_no_obstacle(tmp_path: Path) -> None:
    """Somebody publishes a file that was mended here and then flawed again."""
    path = write(tmp_path / "a.gguf", template=FLAWED.ljust(1500), more=("phi4local.filler",))
    before, _, copy = mended_copy(path)
    read_header(copy)
    assert before.metadata["phi4local.filler"] == "more"
