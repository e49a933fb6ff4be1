"""Phi-4-mini-flash-reasoning (SambaY): its configuration, the tensors of its checkpoint, and what its caches take.

The layers, n of them, h = n / 2 (arXiv 2507.06607 and the published files; the real model has 32):

    0 .. h - 1       even: Mamba            odd: differential attention over a sliding window
    h                Mamba that hands on its scan output, the memory
    h + 1            differential attention over everything; its keys and values are kept
    h + 2 .. n - 1   even: gated memory     odd: differential attention that asks the keys and values of h + 1

There is no position embedding. The published config.json has none of the `mamba_*` keys; the defaults are those of the
published configuration class. With `A_log` and the lambda vectors in float32 and the rest in bfloat16, the shapes here
add up to exactly the `total_size` of the published index, 7,706,608,640 bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from phi4local.errors import FormatError
from phi4local.printing import printable
from quant.config import _OFFICIAL, _Fields, _special_ids

FLASH_ARCHITECTURE = "Phi4FlashForCausalLM"
FLASH_MODEL_TYPE = "phi4flash"
CACHE_STEP_TOKENS = 256  # a cache of keys and values grows in steps of so many, as mlx-lm's do
_LARGEST_STATE, _LARGEST_CONVOLUTION, _LARGEST_EXPANSION, _LARGEST_RANK = 1024, 64, 16, 1 << 16

_FIXED: dict[str, Any] = {  # what the published model has and this program knows no other case of
    "hidden_act": "silu",
    "mb_per_layer": 2,
    "mlp_bias": False,
    "lm_head_bias": False,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}


@dataclass(frozen=True, slots=True)
class FlashConfig:
    """A SambaY model; sizes in elements, the context and the window in tokens."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    sliding_window: int
    epsilon: float
    d_state: int
    d_conv: int
    expand: int
    dt_rank: int
    tied: bool
    special_ids: dict[str, int]

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def inner(self) -> int:
        """Channels inside a Mamba layer and of the memory."""
        return self.expand * self.hidden

    @property
    def memory_layer(self) -> int:
        """The last Mamba layer, whose scan output the gated memory layers read."""
        return self.layers // 2

    @property
    def global_layer(self) -> int:
        """The layer whose keys and values all later attention layers read."""
        return self.layers // 2 + 1


def read_flash_config(values: dict[str, Any]) -> FlashConfig:
    """The parsed config.json as a `FlashConfig` (FormatError, which names the key)."""
    _refuse_others(values)
    fields = _Fields(values, "config.json")
    hidden = fields.count("hidden_size")
    config = FlashConfig(
        hidden=hidden,
        intermediate=fields.count("intermediate_size"),
        layers=fields.count("num_hidden_layers"),
        heads=fields.count("num_attention_heads"),
        kv_heads=fields.count("num_key_value_heads"),
        vocabulary=fields.count("vocab_size"),
        context=fields.count("max_position_embeddings"),
        sliding_window=fields.count("sliding_window"),
        epsilon=fields.between("layer_norm_eps", 1e-20, 0.999),
        d_state=_bounded(fields, "mamba_d_state", 16, _LARGEST_STATE),
        d_conv=_bounded(fields, "mamba_d_conv", 4, _LARGEST_CONVOLUTION),
        expand=_bounded(fields, "mamba_expand", 2, _LARGEST_EXPANSION),
        dt_rank=_rank(fields, hidden),
        tied=_tied(fields),
        special_ids=_special_ids(values),
    )
    _check_shape(config, fields)
    return config


def _refuse_others(values: dict[str, Any]) -> None:
    architectures, kind = values.get("architectures"), values.get("model_type")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if name != FLASH_ARCHITECTURE or kind != FLASH_MODEL_TYPE:
        found = f"architecture `{printable(str(name))}`, model type `{printable(str(kind))}`"
        raise FormatError(f"This is not Phi-4-mini-flash-reasoning: {found}", hint=_OFFICIAL)
    fields = _Fields(values, "config.json")
    for key, needed in _FIXED.items():
        value = values.get(key, needed)
        if type(value) is not type(needed) or value != needed:
            raise fields.fail(key, f"is {printable(str(value))}; this architecture has {needed}")


def _bounded(fields: _Fields, key: str, default: int, limit: int) -> int:
    value = fields.count(key, default)
    if value > limit:
        raise fields.fail(key, f"is {value}, above {limit}")
    return value


def _rank(fields: _Fields, hidden: int) -> int:
    """Columns of `dt_proj`; absent or "auto": a sixteenth of the hidden size, rounded up."""
    if fields.values.get("mamba_dt_rank", "auto") == "auto":
        return math.ceil(hidden / 16)
    return _bounded(fields, "mamba_dt_rank", 1, _LARGEST_RANK)


def _tied(fields: _Fields) -> bool:
    value = fields.values.get("tie_word_embeddings", True)
    if not isinstance(value, bool):
        raise fields.fail("tie_word_embeddings", "is neither true nor false")
    return value


def _check_shape(config: FlashConfig, fields: _Fields) -> None:
    if config.layers % 4:
        raise fields.fail("num_hidden_layers", f"is {config.layers}; the layers come in fours")
    if config.heads % 2 or config.hidden % config.heads:
        raise fields.fail("num_attention_heads", f"{config.heads} is odd or does not divide {config.hidden}")
    if config.kv_heads % 2 or config.heads % config.kv_heads:
        raise fields.fail("num_key_value_heads", f"{config.kv_heads} is odd or does not divide {config.heads} heads")
    if config.d_conv < 2:
        raise fields.fail("mamba_d_conv", "is 1; the convolution needs a past")


def stays_float32(name: str) -> bool:
    """Whether a tensor is not to be cast to the model's type: the scan's own constants and the lambda vectors."""
    return name.endswith((".A_log", ".D")) or ".lambda_" in name


def flash_shapes(config: FlashConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape (rows, columns) of every tensor of the checkpoint, in the model's own order."""
    width = config.hidden
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocabulary, width)}
    for layer in range(config.layers):
        inner = {
            "attn." + name: shape for name, shape in (_mixer(config, layer) if layer % 2 else _mamba(config, layer))
        }
        inner |= {f"{norm}.{part}": (width,) for norm in _NORMS for part in ("weight", "bias")}
        inner |= {"mlp.fc1.weight": (2 * config.intermediate, width), "mlp.fc2.weight": (width, config.intermediate)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in inner.items()}
    shapes |= {f"model.final_layernorm.{part}": (width,) for part in ("weight", "bias")}
    return shapes if config.tied else shapes | {"lm_head.weight": (config.vocabulary, width)}


_NORMS = ("input_layernorm", "post_attention_layernorm")
_Named = list[tuple[str, tuple[int, ...]]]


def _mamba(config: FlashConfig, layer: int) -> _Named:
    """An even layer: Mamba, or a gated memory unit behind the memory."""
    width, inner = config.hidden, config.inner
    if layer > config.memory_layer:
        return [("in_proj.weight", (inner, width)), ("out_proj.weight", (width, inner))]
    return [
        ("in_proj.weight", (2 * inner, width)),
        ("conv1d.weight", (inner, 1, config.d_conv)),
        ("conv1d.bias", (inner,)),
        ("x_proj.weight", (config.dt_rank + 2 * config.d_state, inner)),
        ("dt_proj.weight", (inner, config.dt_rank)),
        ("dt_proj.bias", (inner,)),
        ("A_log", (inner, config.d_state)),
        ("D", (inner,)),
        ("out_proj.weight", (width, inner)),
    ]


def _mixer(config: FlashConfig, layer: int) -> _Named:
    """An odd layer: differential attention; behind the global layer it projects queries only."""
    width, size = config.hidden, config.head_size
    rows = width if layer > config.global_layer else width + 2 * config.kv_heads * size
    return [
        ("Wqkv.weight", (rows, width)),
        ("Wqkv.bias", (rows,)),
        *((f"inner_cross_attn.lambda_{vector}", (size,)) for vector in ("q1", "k1", "q2", "k2")),
        ("inner_cross_attn.subln.weight", (2 * size,)),
        ("out_proj.weight", (width, width)),
        ("out_proj.bias", (width,)),
    ]


def kv_bytes(config: FlashConfig, context_tokens: int) -> int:
    """Bytes of all caches of one conversation of so many tokens, with bfloat16 weights.

    Keys and values are bfloat16 and take whole steps of 256 tokens, in the windows at most the window. A Mamba layer
    keeps d_conv - 1 inputs in bfloat16 and its state in float32, at any length. A prompt read in pieces that are not
    whole steps may hold one step more, and the windows hold the last piece in full until the next token is read.
    """
    steps = -(-context_tokens // CACHE_STEP_TOKENS) * CACHE_STEP_TOKENS
    per_token = 2 * config.kv_heads * config.head_size * 2
    windows = config.memory_layer // 2
    states = (windows + 1) * config.inner * (2 * (config.d_conv - 1) + 4 * config.d_state)
    if context_tokens <= 0:
        return 0
    return (steps + windows * min(steps, config.sliding_window)) * per_token + states
