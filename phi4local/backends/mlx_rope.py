"""Longrope with both sets of factors, in the place of mlx-lm's, which knows the long ones only.

Phi-4-mini was trained with the short factors up to its original context and the long ones beyond (LongRoPE,
arXiv 2402.13753; cos and sin are scaled alike in both). A cache holds keys of one set, so the set belongs to the whole
conversation: who changes it reads all of it again. Import in a child process only.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from quant.config import Config


class LongRope(Module):
    """The rotary embedding of every layer of a model; `long` chooses the factors."""

    def __init__(self, config: Config) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        assert config.long_rope is not None
        self.dims = config.rotary_dimensions
        self.long = False
        self._scale = config.attention_factor
        powers = config.rope_theta ** (mx.arange(0, self.dims, 2, dtype=mx.float32) / self.dims)
        self._short = mx.array(config.long_rope.short) * powers
        self._long = mx.array(config.long_rope.long) * powers

    def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
        """x [batch, heads, tokens, head] with its first `dims` elements rotated and scaled, from position `offset`."""
        scaled = x if self._scale == 1 else x.at[..., : self.dims].multiply(self._scale)
        freqs = self._long if self.long else self._short
        return mx.fast.rope(scaled, self.dims, traditional=False, base=None, scale=1.0, offset=offset, freqs=freqs)


def mend_rope(model: Any, config: Config) -> LongRope | None:
    """Give every layer of an mlx-lm phi3 model the right rotary embedding; None where there is one set of factors."""
    if config.long_rope is None:
        return None
    rope = LongRope(config)
    for layer in model.layers:
        layer.self_attn.rope = rope
    return rope
