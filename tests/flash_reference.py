"""Phi-4-mini-flash-reasoning in numpy, written from the configuration and the paper: what logits are compared with.

Slow, plain and in float32 throughout: every state one after the other, every pair of heads by itself, no cache. Shapes:
n tokens, d hidden, v vocabulary, c channels of a Mamba layer, s states a channel, k elements of a head.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference import Array, read_tensors, softmax, widen


class FlashReference:
    """The model of a folder of official weights. A test overrides a method to see that its mistake would be found."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tensors = read_tensors(folder)
        self.layers: int = self.config["num_hidden_layers"]
        self.window: int = self.config["sliding_window"]

    def logits(self, tokens: Sequence[int]) -> Array:
        """The logits after each of n tokens, [n, v]."""
        stored = self.tensors["model.embed_tokens.weight"]
        x = widen(stored[np.asarray(tokens)])
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            normed = self._norm(prefix + "input_layernorm", x)
            x = x + (self._attention(layer, normed) if layer % 2 else self._recurrent(layer, normed))
            x = x + self._feed_forward(prefix, self._norm(prefix + "post_attention_layernorm", x))
        head = stored if self.config["tie_word_embeddings"] else self.tensors["lm_head.weight"]
        return np.asarray(self._norm("model.final_layernorm", x) @ widen(head).T)

    def weight(self, name: str) -> Array:
        """A tensor in float32."""
        return widen(self.tensors[name])

    def _linear(self, name: str, x: Array) -> Array:
        """x [n, columns] through a matrix stored as [rows, columns], with its bias if it has one."""
        y = x @ self.weight(name + ".weight").T
        return np.asarray(y + self.weight(name + ".bias") if name + ".bias" in self.tensors else y)

    def _norm(self, name: str, x: Array) -> Array:
        """Layer norm over the last axis."""
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + self.config["layer_norm_eps"])
        return np.asarray(scaled * self.weight(name + ".weight") + self.weight(name + ".bias"), np.float32)

    def _feed_forward(self, prefix: str, x: Array) -> Array:
        gate, value = self.halves(self._linear(prefix + "mlp.fc1", x))
        return self._linear(prefix + "mlp.fc2", silu(gate) * value)

    def halves(self, x: Array) -> tuple[Array, Array]:
        """The two parts of a fused projection, [n, 2 m] to two of [n, m]."""
        first, second = np.split(x, 2, axis=1)
        return first, second

    # --- even layers -------------------------------------------------------------------------------------------------

    def _recurrent(self, layer: int, x: Array) -> Array:
        """Mamba up to the middle of the layers, [n, d] to [n, d]; gated memory after it."""
        prefix = f"model.layers.{layer}.attn."
        if layer > self.layers // 2:
            return self._linear(prefix + "out_proj", silu(self._linear(prefix + "in_proj", x)) * self.memory)
        inner, gate = self.halves(self._linear(prefix + "in_proj", x))
        self.memory = self._scan(prefix, silu(self._convolve(prefix + "conv1d", inner)))
        return self._linear(prefix + "out_proj", self.memory * silu(gate))

    def _convolve(self, name: str, x: Array) -> Array:
        """Each channel's weighted sum over the last tokens, the newest with the last weight; x [n, c]."""
        kernel = self.weight(name + ".weight")[:, 0, :]
        out = np.tile(self.weight(name + ".bias"), (len(x), 1))
        for position in range(len(x)):
            for back in range(min(kernel.shape[1], position + 1)):
                out[position] += kernel[:, -1 - back] * x[position - back]
        return out

    def _scan(self, prefix: str, x: Array) -> Array:
        """The selective scan with the skip D, [n, c] to [n, c]."""
        a = -np.exp(self.weight(prefix + "A_log"))  # [c, s]
        states = a.shape[1]
        projected = self._linear(prefix + "x_proj", x)
        low, b, c = np.split(projected, [projected.shape[1] - 2 * states, projected.shape[1] - states], axis=1)
        step = np.logaddexp(0, self._linear(prefix + "dt_proj", low)).astype(np.float32)  # softplus
        state, out = np.zeros_like(a), np.empty_like(x)
        for t in range(len(x)):
            state = np.exp(step[t][:, None] * a) * state + (step[t] * x[t])[:, None] * b[t]
            out[t] = state @ c[t]
        return np.asarray(out + x * self.weight(prefix + "D"), np.float32)

    # --- odd layers --------------------------------------------------------------------------------------------------

    def _attention(self, layer: int, x: Array) -> Array:
        """Differential attention, [n, d] to [n, d]; the layers after the global one read its keys and values."""
        prefix = f"model.layers.{layer}.attn."
        heads, groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        size = self.config["hidden_size"] // heads
        fused = self._linear(prefix + "Wqkv", x).reshape(len(x), -1, size)
        q = fused[:, :heads]
        if layer <= self.layers // 2 + 1:
            self.keys, self.values = fused[:, heads : heads + groups], fused[:, heads + groups :]
        visible = self.visible(len(x), layer)
        weight = self.mixing(layer)
        pieces = []
        for pair in range(heads // 2):
            group = pair // (heads // groups)
            maps = [self._map(q[:, 2 * pair + i], self.keys[:, 2 * group + i], visible) for i in (0, 1)]
            value = np.concatenate([self.values[:, 2 * group], self.values[:, 2 * group + 1]], axis=1)
            mixed = (maps[0] - weight * maps[1]) @ value
            mixed = mixed / np.sqrt((mixed * mixed).mean(axis=1, keepdims=True) + 1e-5)
            pieces.append(mixed * self.weight(prefix + "inner_cross_attn.subln.weight") * (1 - self.constant(layer)))
        return self._linear(prefix + "out_proj", np.concatenate(pieces, axis=1).astype(np.float32))

    def visible(self, n: int, layer: int) -> Array:
        """Whether a token (row) sees another (column), [n, n]: itself and the past, in the first half a window's."""
        back = np.arange(n)[:, None] - np.arange(n)
        reach = self.window if layer < self.layers // 2 else n
        return np.asarray((back >= 0) & (back < reach))

    def constant(self, layer: int) -> float:
        """lambda_init."""
        return 0.8 - 0.6 * math.exp(-0.3 * layer)

    def mixing(self, layer: int) -> float:
        """lambda: how much of the second map is taken from the first."""
        q1, k1, q2, k2 = (
            self.weight(f"model.layers.{layer}.attn.inner_cross_attn.lambda_{name}")
            for name in ("q1", "k1", "q2", "k2")
        )
        return float(np.exp(q1 @ k1) - np.exp(q2 @ k2)) + self.constant(layer)

    def _map(self, q: Array, k: Array, visible: Array) -> Array:
        """One head's attention weights, q and k [n, k] to [n, n]."""
        scores = q @ k.T / np.float32(math.sqrt(q.shape[1]))
        return softmax(np.where(visible, scores, -np.inf).astype(np.float32))


def silu(x: Array) -> Array:
    """x times its sigmoid, in a form in which nothing overflows."""
    return np.asarray(x * 0.5 * (1 + np.tanh(x / 2)), np.float32)
