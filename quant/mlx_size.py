"""What an MLX build weighs before it is made: each tensor's bytes as mlx-lm's `quantize_model` would store it. Pure.

    affine, b bits      rows x columns x b / 8, and for each group a scale and a bias of two bytes
    mxfp4               rows x columns / 2, and for each 32 weights a scale of one byte
    everything else     bf16: vectors, the 16-bit build, and matrices whose rows no whole groups fill

A mixed recipe gives the first and the last eighth of the layers, and every third one between, its larger number of
bits for `v_proj` and `down_proj`, and the output always. In this family the fused `qkv_proj` has `v_proj` in its name,
so all of it gets them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from quant import flash, mlx
from quant.flash import FlashConfig
from quant.mlx import ITEM_BYTES, STEP_TOKENS, Recipe, Shape
from quant.names import source_shapes
from quant.safetensors import Record

_EMBEDDING = "model.embed_tokens.weight"
_NORM = "model.layers.0.input_layernorm.weight"
_MIXED_BITS = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}


def item_bytes_of(records: Iterable[Record]) -> int:
    """Of the numbers that a model computes with: those of its norms, which are never packed."""
    return next((4 for record in records if record.name == _NORM and record.dtype == "F32"), ITEM_BYTES)


def is_possible(config: Shape, recipe: Recipe) -> bool:
    """Whether the recipe can be used: the mixed ones name projections that a flash model has not."""
    return not (recipe.mixed and isinstance(config, FlashConfig))


def stored_bits(name: str, shape: tuple[int, ...], recipe: Recipe, layers: int) -> int:
    """Bits of a tensor's weights; where nothing is quantized 16, or 32 for what a flash model publishes in float32."""
    if name.endswith(".A_log") or ".lambda_" in name:
        return 32
    if recipe.bits == 16 or len(shape) != 2 or shape[-1] % recipe.group:
        return 16
    return _mixed_bits(name, recipe.mixed, layers) if recipe.mixed else recipe.bits


def _mixed_bits(name: str, mixed: str, layers: int) -> int:
    """As the predicate of `mlx_lm.convert` decides."""
    few, more = _MIXED_BITS[mixed]
    if "lm_head" in name:
        return more
    parts = name.split(".")
    layer = int(parts[2]) if parts[2].isdigit() else 0
    eighth = layers // 8
    is_chosen = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
    return more if is_chosen and ("v_proj" in name or "down_proj" in name) else few


def stored_bytes(shape: tuple[int, ...], bits: int, recipe: Recipe) -> int:
    """Bytes of a tensor with its scales and biases."""
    count = math.prod(shape)
    if bits >= 16:
        return count * bits // 8
    group_bytes = 1 if recipe.mode == "mxfp4" else 2 * ITEM_BYTES
    return count * bits // 8 + count // recipe.group * group_bytes


def tensor_bytes(shapes: Mapping[str, tuple[int, ...]], recipe: Recipe, layers: int) -> dict[str, int]:
    """Bytes of every tensor of a model with these shapes."""
    return {
        name: stored_bytes(shape, stored_bits(name, shape, recipe, layers), recipe) for name, shape in shapes.items()
    }


def weights_bytes(config: Shape, recipe: Recipe) -> int:
    """Bytes of all tensors of a build."""
    return sum(tensor_bytes(source_shapes(config), recipe, config.layers).values())


def read_share(config: Shape, recipe: Recipe) -> float:
    """The part of the weights that each token reads: all but an embedding that is not the output as well."""
    sizes = tensor_bytes(source_shapes(config), recipe, config.layers)
    return 1.0 if config.tied else 1 - sizes[_EMBEDDING] / sum(sizes.values())


def kv_bytes(config: Shape, context_tokens: int, kv_type: str = "f16", item_bytes: int = ITEM_BYTES) -> int:
    """Bytes of the caches of a conversation; `item_bytes`: of the numbers that the model computes with."""
    if isinstance(config, FlashConfig):  # its small states are float32 in any case, so this may be a little more
        return flash.kv_bytes(config, context_tokens) * item_bytes // ITEM_BYTES
    return mlx.kv_bytes(config, context_tokens, kv_type, item_bytes=item_bytes)


def compute_bytes(config: Shape, context_tokens: int, *, fused: bool, item_bytes: int = ITEM_BYTES) -> int:
    """What one step of a prompt holds at its widest; chosen above what MLX 0.32 was seen to take on a processor.

    The feed-forward's gate, up, their copies, its activation and product, and four hidden states; of a Mamba layer its
    states, half of which are there at once; and, where the attention is not `fused` into one kernel as on Metal, the
    scores of the step with the whole context.
    """
    work = STEP_TOKENS * (6 * config.intermediate + 4 * config.hidden) * item_bytes
    states = STEP_TOKENS * config.inner * config.d_state * 4 // 2 if isinstance(config, FlashConfig) else 0
    scores = 0 if fused else STEP_TOKENS * config.heads * context_tokens * 4
    return work + states + scores
