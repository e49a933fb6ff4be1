"""Small files of a checkpoint that hold what no GGUF can: one line that blames the right file, before the pass."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phi4local.errors import FormatError
from quant.gguf import header_bytes, read_header
from quant.plan import make_plan
from quant.safetensors import parse_json
from quant.source import read_source
from tests.running import make, plan

Change = Callable[[Path], object]


def card(text: str) -> Change:
    return lambda folder: (folder / "README.md").write_text(f"---\n{text}\n---\nA model.\n")


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return apply


def generation(**values: Any) -> Change:
    return edit("generation_config.json", lambda v: v.update(values))


def config(**values: Any) -> Change:
    return edit("config.json", lambda v: v.update(values))


def tokenizer(**values: Any) -> Change:
    return edit("tokenizer.json", lambda v: v.update(values))


def other_kind(name: str, create: Callable[[Path], object]) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        create(folder / name)

    return apply


def _rename_a_token(text: str) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        vocab = value["model"]["vocab"]
        vocab[text] = vocab.pop(list(vocab)[300])

    return change


BOMB = "\n".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9 if i else ['x'] * 9)}]" for i in range(9))
SPLIT = {"type": "Split", "pattern": {"Regex": ["a"]}}
LONGROPE = {"type": "longrope", "long_factor": [1.0] * 32, "short_factor": [1.0] * 32}
README, GENERATION, CONFIG, TOKENIZER = "README.md", "generation_config.json", "config.json", "tokenizer.json"
CASES: dict[str, tuple[Change, str]] = {
    "license: 5": (card("license: 5"), README),
    "license: an object": (card("license: {a: b}"), README),
    "license: a date": (card("license: 2020-01-01"), README),
    "license: half a character": (card('license: "\\uD800"'), README),
    "tags: a number": (card("tags: [1, a]"), README),
    "tags: an object": (card("tags: [{a: b}]"), README),
    "language: true": (card("language: [yes]"), README),
    "model_name: 5": (card("model_name: 5"), README),
    "base_model: a number": (card("base_model: [1]"), README),
    "base_model: an odd object": (card("base_model: [{name: 5}]"), README),
    "card: a bomb": (card(f"{BOMB}\nbase_model: [*k8]"), README),
    "card: damaged": (card("a: [b"), README),
    "card: not UTF-8": (lambda folder: (folder / README).write_bytes(b"---\nlicense: \xff\n---"), README),
    "card: a folder": (other_kind(README, Path.mkdir), README),
    "temperature: text": (generation(temperature="abc"), GENERATION),
    "temperature: huge": (generation(temperature=1e300), GENERATION),
    "temperature: NaN": (generation(temperature=float("nan")), GENERATION),
    "top_k: huge": (generation(top_k=10**20), GENERATION),
    "top_p: an object": (generation(top_p={}), GENERATION),
    "sequence: a list": (generation(sequence=["a"]), GENERATION),
    "generation: a list": (lambda folder: (folder / GENERATION).write_text("[1]"), GENERATION),
    "generation: not JSON": (lambda folder: (folder / GENERATION).write_text("{"), GENERATION),
    "generation: a pipe": (other_kind(GENERATION, os.mkfifo), GENERATION),
    "vocabulary: half a character": (edit(TOKENIZER, _rename_a_token("\ud800")), TOKENIZER),
    "merges: half a character": (
        edit(TOKENIZER, lambda v: v["model"]["merges"].__setitem__(0, "\ud800 a")),
        TOKENIZER,
    ),
    "template: half a character": (
        edit("tokenizer_config.json", lambda v: v.update(chat_template="\ud800")),
        "tokenizer_config.json",
    ),
    "a token under two ids": (edit(TOKENIZER, _rename_a_token("<|im_end|>")), TOKENIZER),
    "processors: 5": (tokenizer(post_processor={"processors": 5}), TOKENIZER),
    "pretokenizers: 5": (tokenizer(pre_tokenizer={"pretokenizers": 5}), TOKENIZER),
    "pattern: a list": (tokenizer(pre_tokenizer={"pretokenizers": [SPLIT]}), TOKENIZER),
    "chat_template.json: a folder": (other_kind("chat_template.json", Path.mkdir), "chat_template.json"),
    "chat_template.jinja: a folder": (other_kind("chat_template.jinja", Path.mkdir), "chat_template.jinja"),
    "longrope from 1": (config(original_max_position_embeddings=1, rope_scaling=LONGROPE), CONFIG),
    "epsilon: 5": (config(rms_norm_eps=5), CONFIG),
    "epsilon: 1": (config(rms_norm_eps=1.0), CONFIG),
    "epsilon: below float32": (config(rms_norm_eps=1e-60), CONFIG),
    "theta: huge": (config(rope_theta=1e29), CONFIG),
    "theta: below one": (config(rope_theta=0.5), CONFIG),
    "name: a number": (config(_name_or_path=5), CONFIG),
    "config: UTF-16": (
        lambda folder: (folder / CONFIG).write_bytes((folder / CONFIG).read_text().encode("utf-16")),
        CONFIG,
    ),
    "shard: a pipe": (other_kind("model-00002-of-00002.safetensors", os.mkfifo), "model-00002"),
}


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "phi-4-tiny"))


def no_question(_skeleton: Path, _file_type: int) -> dict[str, str]:
    raise AssertionError("BF16 asks for no types")


@pytest.mark.parametrize("case", CASES)
def test_what_no_gguf_can_hold(case: str, folder: Path) -> None:
    change, file = CASES[case]
    change(folder)
    with pytest.raises(FormatError) as caught:
        make_plan(read_source(folder), "BF16", no_question)
    assert file in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint


@pytest.mark.parametrize("languages", ["language: [no, en]", "language:\n- no\n- en"])
def test_norway(languages: str, folder: Path, tmp_path: Path) -> None:
    """YAML reads `no` as false; the converter mends one spelling of it, we the other too."""
    card(languages)(folder)
    make(folder, "BF16", tmp_path / "out.gguf")
    assert read_header(tmp_path / "out.gguf").items("general.languages") == ["no", "en"]


def test_a_card_as_published(folder: Path) -> None:
    """What cards hold beside what a GGUF keeps may be of any type."""
    card("license: mit\ntags: [nlp, math]\ninference: false\nwidget: [{messages: [{a: 1}]}]\ndate: 2024-12-12")(folder)
    assert plan(folder, "BF16").header


def test_pairs_of_surrogates_are_characters() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00"}', Path("a.json")) == {"a": "\U0001f600"}


@pytest.mark.parametrize("text", [b"[" + b"{}," * 2_100_000 + b"{}]", b'{"a":[' + b"[]," * 2_100_000 + b"[]]}"])
def test_json_of_many_small_values(text: bytes) -> None:
    with pytest.raises(FormatError, match="more values"):
        parse_json(text, Path("a.json"))


def test_what_the_writer_raises_is_translated() -> None:
    with pytest.raises(FormatError, match="cannot hold"):
        header_bytes("phi3", lambda writer: writer.add_uint32("a", 1 << 40))
