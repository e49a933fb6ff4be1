"""The checkpoints whose conversion by llama.cpp's own converter is kept in `tests/data/metadata`, and how it is kept.

The kept metadata was made with the full vocabularies. Where those are not at hand, a test writes a case with the small
one, which leaves every added token at its true id: all keys stay the same but the three long arrays of the vocabulary,
and of the tokens and their types the `tail` (the line's added tokens and padding) stays the same as well.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

from tests.checkpoints import write_checkpoint
from tests.shapes import (
    MINI_REASONING_SHAPE,
    MINI_SHAPE,
    O200K,
    PHI4_14B_SHAPE,
    PHI4_RELEASE_14B_SHAPE,
    REASONING_14B_SHAPE,
    Shape,
)
from tests.vocabularies import Vocabulary

FOLDER = Path(__file__).parent / "data" / "metadata"
LONG_ARRAY = 200  # entries from which an array is kept as a digest
VOCABULARY_KEYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")

_CARD = """---
license: mit
license_link: https://huggingface.co/microsoft/{name}/resolve/main/LICENSE
language:
{languages}
pipeline_tag: text-generation
tags:
{tags}
{more}library_name: transformers
---

# {name}
"""
_CODES = (
    "ar",
    "zh",
    "cs",
    "da",
    "nl",
    "en",
    "fi",
    "fr",
    "de",
    "he",
    "hu",
    "it",
    "ja",
    "ko",
    "no",
    "pl",
    "pt",
    "ru",
    "es",
)
# An unquoted `no` is a boolean in YAML; the converter knows.
_MINI_LANGUAGES = ("multilingual", *_CODES, "sv", "th", "tr", "uk")
_PHI4_TAGS = ("phi", "nlp", "math", "code", "chat", "conversational")


def _card(name: str, tags: tuple[str, ...], languages: tuple[str, ...] = ("en",), more: str = "") -> str:
    """A README.md with the front matter of the official card."""
    listed = ("\n".join(f"- {entry}" for entry in entries) for entries in (languages, tags))
    return _CARD.format(name=name, languages=next(listed), tags=next(listed), more=more)


@dataclass(frozen=True)
class Case:
    """A shape with the real vocabulary and small layers, and the card beside it."""

    shape: Shape
    card: str | None = None

    def write(self, parent: Path, vocabulary: Vocabulary | None = None) -> Path:
        """The folder, under the official repository's name because the converter reads it."""
        folder = write_checkpoint(parent / self.shape.name, self.shape, vocabulary=vocabulary)
        if self.card is not None:
            (folder / "README.md").write_text(self.card, encoding="utf-8")
        return folder


def _small(shape: Shape) -> Shape:
    """The shape with two layers of 64; the heads keep their grouping, the positions their scale."""
    small = replace(shape, hidden=64, intermediate=96, layers=2, heads=2, kv_heads=1)
    if shape.line != O200K:
        return small
    return replace(small, long_factor=shape.long_factor[::4], short_factor=shape.short_factor[::4])


_PHI4, _REASONING = _small(PHI4_14B_SHAPE), _small(REASONING_14B_SHAPE)
# A configuration that names its repository, which the converter prefers to the folder's name.
_RELEASE = replace(_small(PHI4_RELEASE_14B_SHAPE), extra={"_name_or_path": "microsoft/phi-4"})
_MINI, _MINI_REASONING = _small(MINI_SHAPE), _small(MINI_REASONING_SHAPE)
_PHI4_MORE = "inference:\n  parameters:\n    temperature: 0\nwidget:\n- messages:\n  - role: user\n    content: How?\n"

CASES = {
    "phi-4": Case(_PHI4),
    "phi-4-card": Case(_PHI4, _card("phi-4", _PHI4_TAGS, more=_PHI4_MORE)),
    "phi-4-v5": Case(replace(_PHI4, rope_spelling="rope_parameters")),
    "phi-4-release": Case(_RELEASE),
    "phi-4-reasoning": Case(_REASONING),
    "phi-4-reasoning-card": Case(
        _REASONING, _card("Phi-4-reasoning", (*_PHI4_TAGS, "reasoning"), more="base_model:\n- microsoft/phi-4\n")
    ),
    "phi-4-mini": Case(_MINI),
    "phi-4-mini-card": Case(_MINI, _card("Phi-4-mini-instruct", ("nlp", "code"), _MINI_LANGUAGES)),
    "phi-4-mini-v5": Case(replace(_MINI, rope_spelling="rope_parameters")),
    "phi-4-mini-reasoning": Case(_MINI_REASONING),
    "phi-4-mini-reasoning-card": Case(_MINI_REASONING, _card("Phi-4-mini-reasoning", ("nlp", "math", "code"))),
}


def read(name: str) -> dict[str, Any]:
    """The kept description of a case, with `quantized`: the order of keys and tensors after llama.cpp's Q4_K_M."""
    value: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return value


def describe(path: Path, tail: int) -> dict[str, dict[str, Any]]:
    """A GGUF file's `metadata` and `tensors` in file order; `tail` entries end the long arrays of its vocabulary.

    A tensor is its type and dimensions in GGUF's order, the row's length first: "BF16 64x100352".
    """
    reader = GGUFReader(path)
    keys = [field for name, field in reader.fields.items() if not name.startswith("GGUF.")]
    tensors = [(t.name, GGMLQuantizationType(t.tensor_type).name, t.shape.tolist()) for t in reader.tensors]
    return {
        "metadata": {field.name: _described(field.name, field.types, field.contents(), tail) for field in keys},
        "tensors": {name: f"{kind} {'x'.join(map(str, dims))}" for name, kind, dims in tensors},
    }


def _described(name: str, types: list[GGUFValueType], value: Any, tail: int) -> dict[str, Any]:
    """One key: its type (of an array: also its entries' type) and its value or the value's digest."""
    entry = {"type": " ".join(t.name for t in dict.fromkeys(types))}
    if not isinstance(value, list) or len(value) < LONG_ARRAY:
        return entry | {"value": value}
    digest = {"length": len(value), "sha256": digest_of(value), "first": value[:5], "last": value[-5:]}
    if name != "tokenizer.ggml.merges":
        digest["tail"] = {"length": tail, "sha256": digest_of(value[-tail:])}
    return entry | digest


def digest_of(entries: list[Any]) -> str:
    """The sha256 of a list as JSON: no spaces, characters unescaped, UTF-8."""
    return hashlib.sha256(json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def without_vocabulary(metadata: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The keys, with what depends on the ordinary tokens taken out of the three long arrays."""
    return {
        name: {k: v for k, v in entry.items() if k in ("type", "tail")} if name in VOCABULARY_KEYS else entry
        for name, entry in metadata.items()
    }
