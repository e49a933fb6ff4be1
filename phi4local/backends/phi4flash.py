"""Phi-4-mini-flash-reasoning (SambaY) for MLX, in the form of mlx-lm's model files: `ModelArgs` and `Model`.

Written from arXiv 2507.06607 and the published configuration; `quant.flash` draws the layers. Parameters have the names
and shapes of the checkpoint, so `Model.load_weights(pairs, strict=True)` takes the official tensors as they are and
refuses any other name or shape. In the comments: B sequences, L new tokens, S tokens seen in all, d channels of a Mamba
layer, n its states a channel, H heads of k elements, G key-value heads.

Names and types are those of the published index file, and the shapes add up to its size. The order of the halves
(`in_proj` is scanned | gate, `fc1` is gate | value), `Wqkv` as q | k | v, the pairing of heads, the window and the
layer's own index in lambda_init come from the published code and three public re-implementations, which agree; no real
weights were run. Against the published code two roundings to bfloat16 are left out: of the scan's state between single
tokens, and of the residual before a norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.activations import silu, softplus
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.normalization import RMSNorm
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

from phi4local.errors import FormatError
from quant.flash import FlashConfig, read_flash_config, stays_float32

_SUBLN_EPSILON = 1e-5  # not in the configuration
_SCAN_CHUNK = 128  # tokens whose states are in memory together: 42 MB an array for the real model
_SCAN_STEPS = 16  # of them one after the other, in as many groups side by side as the chunk has
_QUERY_BLOCK = 512  # queries whose scores are in memory together

Cache = Any  # one of mlx-lm's caches, which have no types
Shared = tuple[mx.array, mx.array]


@dataclass
class ModelArgs:
    """config.json, checked; `config` has the sizes."""

    model_type: str
    config: FlashConfig

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelArgs:
        """From the parsed config.json; unknown keys are ignored (ValueError, which names the wrong key)."""
        try:
            return cls(str(values.get("model_type")), read_flash_config(values))
        except FormatError as error:
            raise ValueError(error.message) from error


def lambda_init(layer: int) -> float:
    """The constant part of differential attention's lambda at a layer, counted from 0 (arXiv 2410.05258)."""
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


class Block(Module):
    """A module, whose constructor MLX leaves untyped."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]


@partial(mx.compile, shapeless=True)
def gated(gate: mx.array, value: mx.array) -> mx.array:
    """silu(gate) value, rounded once, to the gate's type."""
    wide = gate.astype(mx.float32)
    return (wide * mx.sigmoid(wide) * value.astype(mx.float32)).astype(gate.dtype)


# --- Mamba -----------------------------------------------------------------------------------------------------------


def selective_scan(
    x: mx.array, step: mx.array, a: mx.array, b: mx.array, c: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """Mamba's recurrence h_t = exp(step_t a) h_(t-1) + step_t x_t b_t, y_t = h_t . c_t (arXiv 2312.00752).

    x and step [B, L, d], a [d, n], b and c [B, L, n], state [B, d, n], all float32; gives y [B, L, d] and the state.
    """
    outputs: list[mx.array] = []
    for start in range(0, x.shape[1], _SCAN_CHUNK):
        part = slice(start, start + _SCAN_CHUNK)
        if start:  # in no order of its own MLX keeps what all chunks' outputs are made of until the end
            step, state = mx.depends([step, state], [outputs[-1]])
        y, state = _scan_chunk(step[:, part], step[:, part] * x[:, part], a, (b[:, part], c[:, part]), state)
        outputs.append(y)
    return (outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1)), state


def _scan_chunk(
    step: mx.array, flow: mx.array, a: mx.array, bc: tuple[mx.array, mx.array], state: mx.array
) -> tuple[mx.array, mx.array]:
    """The recurrence over one chunk: inside all groups at once as if each began at zero, then from group to group.

    Only products of decays are formed, which are between 0 and 1, never quotients: nothing overflows.
    """
    length = step.shape[1]
    steps = min(length, _SCAN_STEPS)
    groups = -(-length // steps)
    missing = groups * steps - length  # a step of zero keeps the state as it is
    step, flow, b, c = (_grouped(array, missing, groups) for array in (step, flow, *bc))
    decay = mx.exp(step[..., None] * a)  # [B, groups, steps, d, n]
    inflow = flow[..., None] * b[:, :, :, None]
    states, reach = [inflow[:, :, 0]], [decay[:, :, 0]]
    for i in range(1, steps):
        states.append(decay[:, :, i] * states[-1] + inflow[:, :, i])
        reach.append(decay[:, :, i] * reach[-1])
    before = [state]
    for group in range(groups):
        before.append(reach[-1][:, group] * before[-1] + states[-1][:, group])
    start = mx.stack(before[:-1], axis=1)  # the state before each group, [B, groups, d, n]
    ys = [((states[i] + reach[i] * start) @ c[:, :, i, :, None])[..., 0] for i in range(steps)]
    y = mx.stack(ys, axis=2).reshape(step.shape[0], groups * steps, -1)
    return y[:, :length], before[-1]


def _grouped(array: mx.array, missing: int, groups: int) -> mx.array:
    """[B, L, m] as [B, groups, steps, m], with `missing` zeros after the end."""
    if missing:
        array = mx.pad(array, [(0, 0), (0, missing), (0, 0)])
    return array.reshape(array.shape[0], groups, -1, array.shape[-1])


class Convolution(Block):
    """A causal convolution of each channel by itself over `width` tokens, then silu; in float32."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = mx.zeros((channels, 1, width))
        self.bias = mx.zeros((channels,))

    def __call__(self, x: mx.array, past: mx.array) -> mx.array:
        """x [B, L, d] after the `width` - 1 inputs before it."""
        joined = mx.concatenate([past, x], axis=1).astype(mx.float32)
        length, weight = x.shape[1], self.weight.astype(mx.float32)
        total = self.bias.astype(mx.float32)
        for i in range(weight.shape[-1]):
            total = total + joined[:, i : i + length] * weight[:, 0, i]
        return cast(mx.array, silu(total))


class Mamba(Block):
    """Mamba-1 without norms inside."""

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        self.sizes = (config.inner, config.d_state, config.d_conv, config.dt_rank)
        inner, d_state, d_conv, rank = self.sizes
        self.in_proj = Linear(config.hidden, 2 * inner, bias=False)
        self.conv1d = Convolution(inner, d_conv)
        self.x_proj = Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(rank, inner)
        self.A_log = mx.zeros((inner, d_state))
        self.D = mx.zeros((inner,))
        self.out_proj = Linear(inner, config.hidden, bias=False)

    def __call__(self, x: mx.array, cache: Cache) -> tuple[mx.array, mx.array]:
        """x [B, L, hidden]; gives the layer's output and the scan's own, before the gate, [B, L, d]."""
        _inner, d_state, _d_conv, rank = self.sizes
        past, state = self._read(cache, x)
        scanned, gate = mx.split(self.in_proj(x), 2, axis=-1)
        if cache is not None:
            recent = mx.concatenate([past, scanned], axis=1)[:, -past.shape[1] :]
            cache[0] = mx.contiguous(recent)  # a mere view would keep the whole prompt's
        u = self.conv1d(scanned, past)
        low, b, c = mx.split(self.x_proj(u.astype(x.dtype)), [rank, rank + d_state], axis=-1)
        step = softplus(self.dt_proj(low.astype(mx.float32)))  # float32 before the bias, which is small
        a = -mx.exp(self.A_log.astype(mx.float32))
        y, state = selective_scan(u, step, a, b.astype(mx.float32), c.astype(mx.float32), state)
        if cache is not None:
            cache[1] = state
        y = y + u * self.D.astype(mx.float32)
        return self.out_proj(gated(gate, y)), y.astype(x.dtype)

    def _read(self, cache: Cache, x: mx.array) -> Shared:
        """The inputs before x, [B, d_conv - 1, d], and the state, [B, d, n]; zeros at the beginning."""
        inner, d_state, d_conv, _rank = self.sizes
        if cache is not None and not (cache.left_padding is None and cache.lengths is None):
            raise ValueError("Padded batches are not supported: the scan would take the padding for tokens")
        if cache is None or cache[0] is None:
            past = mx.zeros((x.shape[0], d_conv - 1, inner), x.dtype)
            return past, mx.zeros((x.shape[0], inner, d_state))
        return cache[0], cache[1]


class GatedMemory(Block):
    """A gated memory unit: the memory of a Mamba layer below, gated by this layer's input."""

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        self.in_proj = Linear(config.hidden, config.inner, bias=False)
        self.out_proj = Linear(config.inner, config.hidden, bias=False)

    def __call__(self, x: mx.array, memory: mx.array) -> mx.array:
        """x [B, L, hidden], memory [B, L, d] of the same tokens."""
        return self.out_proj(gated(self.in_proj(x), memory))


# --- differential attention ------------------------------------------------------------------------------------------


def attend(q: mx.array, k: mx.array, v: mx.array, window: int | None, scale: float) -> mx.array:
    """Causal softmax attention of the last L of S tokens: q [B, H, L, m], k and v [B, G, S, m] to [B, H, L, m].

    The token at position i sees i - window + 1 to i. A single token sees all keys that it is given, in any order: a
    full window is kept as a ring.
    """
    length, seen = q.shape[2], k.shape[2]
    if length == 1:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
    parts = []
    for first in range(0, length, _QUERY_BLOCK):
        last = min(first + _QUERY_BLOCK, length)
        low, high = seen - length + first, seen - length + last  # positions of the queries among the keys
        begin = 0 if window is None else max(0, low - window + 1)
        mask = _window_mask(range(low, high), begin, window)
        keys, values = k[:, :, begin:high], v[:, :, begin:high]
        parts.append(mx.fast.scaled_dot_product_attention(q[:, :, first:last], keys, values, scale=scale, mask=mask))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def _window_mask(queries: range, begin: int, window: int | None) -> mx.array | str:
    """Which of the keys from `begin` on each query sees, [queries, keys]."""
    if window is None or queries.stop - begin <= window:
        return "causal"
    distance = mx.arange(queries.start, queries.stop)[:, None] - mx.arange(begin, queries.stop)
    return (distance >= 0) & (distance < window)


class Differential(Block):
    """The difference of two attentions, normed: the parameters called `inner_cross_attn`."""

    def __init__(self, size: int, layer: int) -> None:
        super().__init__()
        self.constant = lambda_init(layer)
        self.lambda_q1 = mx.zeros((size,))
        self.lambda_k1 = mx.zeros((size,))
        self.lambda_q2 = mx.zeros((size,))
        self.lambda_k2 = mx.zeros((size,))
        self.subln = RMSNorm(2 * size, eps=_SUBLN_EPSILON)

    def __call__(self, first: mx.array, second: mx.array) -> mx.array:
        """The two attentions' outputs, each [B, H / 2, L, 2 k]; in float32."""
        vectors = (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2)
        q1, k1, q2, k2 = (vector.astype(mx.float32) for vector in vectors)
        weight = mx.exp((q1 * k1).sum()) - mx.exp((q2 * k2).sum()) + self.constant
        difference = first.astype(mx.float32) - weight * second.astype(mx.float32)
        return cast(mx.array, self.subln(difference)) * (1 - self.constant)


class Attention(Block):
    """Differential attention: heads 2 i and 2 i + 1 are a pair, one head of each kind, and share two value heads.

    A pair of key heads is kept as one of 2 k elements, and so are the values. A query is widened by zeros on the side
    of the other key head, which changes no score: one attention of ordinary shape then gives both kinds.
    """

    def __init__(self, config: FlashConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.window = config.sliding_window if layer < config.memory_layer else None
        self.asks_only = layer > config.global_layer
        rows = config.hidden + (0 if self.asks_only else 2 * config.kv_heads * config.head_size)
        self.Wqkv = Linear(config.hidden, rows)
        self.out_proj = Linear(config.hidden, config.hidden)
        self.inner_cross_attn = Differential(config.head_size, layer)

    def __call__(self, x: mx.array, cache: Cache, shared: Shared | None) -> tuple[mx.array, Shared]:
        """x [B, L, hidden]; gives the output and the keys and values that it read, each [B, G / 2, S, 2 k]."""
        batch, length, width = x.shape
        projected = self.Wqkv(x)
        if shared is None:
            pairs = (batch, length, self.kv_heads, -1)  # G / 2 of keys, as many of values
            k, v = mx.split(projected[..., width:].reshape(pairs).swapaxes(1, 2), 2, axis=1)
            shared = (k, v) if cache is None else cast(Shared, cache.update_and_fetch(k, v))
        mixed = attend(self._widened(projected[..., :width]), *shared, self.window, (width // self.heads) ** -0.5)
        out = self.inner_cross_attn(mixed[:, 0::2], mixed[:, 1::2]).astype(x.dtype)
        return self.out_proj(out.swapaxes(1, 2).reshape(batch, length, width)), shared

    def _widened(self, q: mx.array) -> mx.array:
        """[B, L, H k] as [B, H, L, 2 k]: the elements of even heads before as many zeros, of odd heads after them."""
        batch, length, _width = q.shape
        split = q.reshape(batch, length, self.heads // 2, 2, 1, -1) * mx.eye(2, dtype=q.dtype)[:, :, None]
        return split.reshape(batch, length, self.heads, -1).swapaxes(1, 2)


# --- the model -------------------------------------------------------------------------------------------------------


class FeedForward(Block):
    """The gated layer; the first half of the fused matrix is the gate."""

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden, 2 * config.intermediate, bias=False)
        self.fc2 = Linear(config.intermediate, config.hidden, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        gate, value = mx.split(self.fc1(x), 2, axis=-1)
        return self.fc2(gated(gate, value))


class Norm(Block):
    """A layer norm with bias, of the float32 residual; gives the model's type. The published code rounds it before."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = mx.ones((width,))
        self.bias = mx.zeros((width,))
        self.epsilon = epsilon

    def __call__(self, x: mx.array) -> mx.array:
        weight, bias = self.weight.astype(mx.float32), self.bias.astype(mx.float32)
        return mx.fast.layer_norm(x, weight, bias, self.epsilon).astype(self.weight.dtype)


class Layer(Block):
    """One layer: a mixer called `attn` whatever it is, and the feed-forward."""

    def __init__(self, config: FlashConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = Norm(config.hidden, config.epsilon)
        self.post_attention_layernorm = Norm(config.hidden, config.epsilon)
        self.mlp = FeedForward(config)
        self.attn: Module
        if layer % 2:
            self.attn = Attention(config, layer)
        else:
            self.attn = Mamba(config) if layer <= config.memory_layer else GatedMemory(config)


class Stack(Block):
    """Everything but the head."""

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocabulary, config.hidden)
        self.layers = [Layer(config, layer) for layer in range(config.layers)]
        self.final_layernorm = Norm(config.hidden, config.epsilon)

    def __call__(self, inputs: mx.array, cache: list[Cache]) -> mx.array:
        """ids [B, L] to [B, L, hidden]. The residual is float32 from the first layer, a Mamba, to the last."""
        x = self.embed_tokens(inputs).astype(mx.float32)
        memory = x  # until the first layer gives one
        shared: Shared | None = None
        for index, layer in enumerate(self.layers):
            slot = cache[index] if index < len(cache) else None
            h = layer.input_layernorm(x)
            if isinstance(layer.attn, Mamba):
                h, memory = layer.attn(h, slot)  # the last one's is read above, as are the last keys and values
            elif isinstance(layer.attn, GatedMemory):
                h = layer.attn(h, memory)
            else:
                h, shared = layer.attn(h, slot, shared if layer.attn.asks_only else None)
            x = x + h
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.final_layernorm(x)


class Model(Block):
    """The whole model, as mlx-lm's loader and generator call it."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = Stack(args.config)
        if not args.config.tied:
            self.lm_head = Linear(args.config.hidden, args.config.vocabulary, bias=False)

    def __call__(self, inputs: mx.array, cache: list[Cache] | None = None) -> mx.array:
        """Logits [B, L, vocabulary] after each of the new tokens [B, L]; `cache` is one of `make_cache`."""
        h = self.model(inputs, cache or [])
        head = self.model.embed_tokens.as_linear if self.args.config.tied else self.lm_head
        return cast(mx.array, head(h))

    @property
    def layers(self) -> list[Layer]:
        return self.model.layers

    @property
    def cast_predicate(self) -> Any:
        """For mlx-lm's converter: whether a parameter may be cast."""
        return lambda name: not stays_float32(name)

    def make_cache(self) -> list[Cache]:
        """A slot for each layer up to the global one; those above keep nothing of their own."""
        config = self.args.config
        below = range(config.global_layer)
        window = config.sliding_window
        return [*(RotatingKVCache(max_size=window) if layer % 2 else ArraysCache(size=2) for layer in below), KVCache()]
