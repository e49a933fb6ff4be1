"""A Phi3ForCausalLM in numpy, written from the configuration alone: what logits are compared with.

Slow, plain and in float32 throughout. Shapes: n tokens, d hidden, v vocabulary, h heads, g key-value heads, k elements
of a head, r of which rotate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one model; positions and lengths count tokens."""

    dims: int  # r
    theta: float
    original: int  # a longer sequence takes the long factors
    scale: float  # of cos and sin
    short: Array | None  # divisors of the frequencies, [r / 2]
    long: Array | None

    def tables(self, n: int) -> tuple[Array, Array]:
        """cos and sin for positions 0 to n - 1, each [n, 1, r / 2]."""
        factors = self.long if n > self.original else self.short
        frequencies = self.theta ** (-np.arange(0, self.dims, 2) / self.dims) / (1.0 if factors is None else factors)
        angles = np.arange(n)[:, None, None] * frequencies
        return (np.cos(angles) * self.scale).astype(np.float32), (np.sin(angles) * self.scale).astype(np.float32)


def read_rope(config: dict[str, Any]) -> Rope:
    """Either spelling: `rope_parameters`, or `rope_scaling` with the rest at the top level."""
    rope = {**config, **(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    head = config["hidden_size"] // config["num_attention_heads"]
    original = rope.get("original_max_position_embeddings", config["max_position_embeddings"])
    stretch = config["max_position_embeddings"] / original
    long = "long_factor" in rope
    return Rope(
        dims=int(head * rope.get("partial_rotary_factor", 1.0)),
        theta=float(rope["rope_theta"]),
        original=original,
        scale=math.sqrt(1 + math.log(stretch) / math.log(original)) if long and stretch > 1 else 1.0,
        short=np.asarray(rope["short_factor"], np.float32) if long else None,
        long=np.asarray(rope["long_factor"], np.float32) if long else None,
    )


def read_tensors(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Every tensor of the folder's shards, mapped, as stored: bfloat16 as its bits."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                offset = 8 + length + entry["data_offsets"][0]
                tensors[name] = np.memmap(path, _DTYPES[entry["dtype"]], "r", offset, tuple(entry["shape"]))
    return tensors


def widen(stored: npt.NDArray[Any]) -> Array:
    """A stored tensor as float32, exactly."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


class Reference:
    """The model of a folder of official weights."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.rope = read_rope(self.config)
        self.tensors = read_tensors(folder)

    def logits(self, tokens: Sequence[int]) -> Array:
        """The logits after each of n tokens, [n, v]."""
        stored = self.tensors["model.embed_tokens.weight"]
        x = widen(stored[np.asarray(tokens)])
        cos, sin = self.rope.tables(len(tokens))
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            x = x + self._attention(prefix, self._norm(prefix + "input_layernorm", x), cos, sin)
            x = x + self._feed_forward(prefix, self._norm(prefix + "post_attention_layernorm", x))
        head = stored if self.config["tie_word_embeddings"] else self.tensors["lm_head.weight"]
        return np.asarray(self._norm("model.norm", x) @ widen(head).T)

    def _linear(self, name: str, x: Array) -> Array:
        """x [n, columns] through a matrix stored as [rows, columns]."""
        return np.asarray(x @ widen(self.tensors[name + ".weight"]).T)

    def _norm(self, name: str, x: Array) -> Array:
        """RMS norm over the last axis."""
        mean = np.mean(x * x, axis=-1, keepdims=True)
        scaled = x / np.sqrt(mean + np.float32(self.config["rms_norm_eps"]))
        return np.asarray(scaled * widen(self.tensors[name + ".weight"]))

    def _attention(self, prefix: str, x: Array, cos: Array, sin: Array) -> Array:
        """Causal attention with grouped queries, [n, d] to [n, d]."""
        n, heads, groups = len(x), self.config["num_attention_heads"], self.config["num_key_value_heads"]
        size = self.config["hidden_size"] // heads
        fused = self._linear(prefix + "self_attn.qkv_proj", x).reshape(n, heads + 2 * groups, size)
        q, k, v = np.split(fused, [heads, heads + groups], axis=1)
        q = rotate(q, cos, sin).reshape(n, groups, heads // groups, size)
        scores = np.einsum("igqs,jgs->gqij", q, rotate(k, cos, sin), optimize=True) * np.float32(size**-0.5)
        weights = softmax(np.where(np.tri(n, dtype=bool), scores, -np.inf).astype(np.float32))
        mixed = np.einsum("gqij,jgs->igqs", weights, v, optimize=True).reshape(n, heads * size)
        return self._linear(prefix + "self_attn.o_proj", mixed)

    def _feed_forward(self, prefix: str, x: Array) -> Array:
        """The gated layer; the first half of the fused matrix is the gate."""
        gate, up = np.split(self._linear(prefix + "mlp.gate_up_proj", x), 2, axis=1)
        sigmoid = np.asarray(0.5 * (1 + np.tanh(gate / 2)), np.float32)  # in this form nothing overflows
        return self._linear(prefix + "mlp.down_proj", gate * sigmoid * up)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the first r elements of each head, element i with element i + r / 2; x is [n, heads, k]."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def softmax(x: Array) -> Array:
    """Probabilities over the last axis."""
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), x.dtype)


def kl_divergence(p_logits: npt.ArrayLike, q_logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """KL(P || Q) at each position, in nats; logits [n, v] to [n]."""
    p, q = _log_softmax(p_logits), _log_softmax(q_logits)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1))


def same_top(p_logits: npt.ArrayLike, q_logits: npt.ArrayLike) -> float:
    """The share of positions, 0 to 1, at which both name the same likeliest token."""
    return float(np.mean(np.argmax(p_logits, axis=-1) == np.argmax(q_logits, axis=-1)))


def _log_softmax(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))
