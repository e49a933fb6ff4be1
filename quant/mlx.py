"""The MLX builds, their caches, and how a folder of one is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi4local.errors import Phi4LocalError
from quant.config import Config, config_of, read_values
from quant.flash import FLASH_ARCHITECTURE, FlashConfig, read_flash_config
from quant.safetensors import HEADER_LIMIT_BYTES, parse_json

Shape = Config | FlashConfig  # what MLX can run
_PACKED = ("quantization", "quantization_config")  # what config.json says of packed weights


@dataclass(frozen=True, slots=True)
class Recipe:
    """What mlx-lm is asked for: `bits` a weight (16: all of them) in groups of `group`, or one of its mixed recipes."""

    bits: int
    group: int = 64
    mode: str = "affine"
    mixed: str = ""


BUILDS = {
    "mlx-2bit": Recipe(2),
    "mlx-3bit": Recipe(3),
    "mlx-4bit": Recipe(4),
    "mlx-5bit": Recipe(5),
    "mlx-6bit": Recipe(6),
    "mlx-8bit": Recipe(8),
    "mlx-mxfp4": Recipe(4, 32, "mxfp4"),
    "mlx-mixed-2-6": Recipe(2, mixed="mixed_2_6"),
    "mlx-mixed-3-4": Recipe(3, mixed="mixed_3_4"),
    "mlx-mixed-3-6": Recipe(3, mixed="mixed_3_6"),
    "mlx-mixed-4-6": Recipe(4, mixed="mixed_4_6"),
    "mlx-bf16": Recipe(16),
}
KV_BITS = {"f16": 0, "q8_0": 8, "q4_0": 4}  # of the types that a cache may have; 0: as the model computes
ITEM_BYTES = 2  # bf16: vectors, and everything in the KV cache
STEP_TOKENS = 512  # of a prompt are computed at once: what bounds the memory, and the time until a stop is seen


def kv_group(head_size: int) -> int:
    """How many values of a quantized cache share a scale; 0: heads of this size cannot be quantized."""
    return next((group for group in (64, 32) if head_size % group == 0), 0)


def kv_bytes(config: Config, context_tokens: int, kv_type: str = "f16", item_bytes: int = ITEM_BYTES) -> int:
    """Bytes of a cache: keys and values of every layer, quantized in groups where `kv_type` says so.

    `item_bytes`: of the numbers that the model computes with, 4 where its norms are stored as float32.
    """
    values = 2 * config.layers * config.kv_heads * config.head_size * context_tokens
    bits, group = KV_BITS.get(kv_type, 0), kv_group(config.head_size)
    if not bits or not group:
        return values * item_bytes
    return values * bits // 8 + values // group * 2 * item_bytes


def shape_of(values: dict[str, Any]) -> Shape:
    """What config.json calls for, whether or not MLX has packed the weights since (FormatError)."""
    plain = {key: value for key, value in values.items() if key not in _PACKED}
    return read_flash_config(plain) if values.get("architectures") == [FLASH_ARCHITECTURE] else config_of(plain)


def is_mlx_folder(path: Path) -> bool:
    """Whether a folder holds weights that MLX has written: quantized by it, or marked as its own. Never raises."""
    try:
        values = read_values(path)
        if isinstance(values.get("quantization"), dict):
            return True
        shard = min(path.glob("model*.safetensors"))
        with shard.open("rb") as file:
            header = file.read(min(HEADER_LIMIT_BYTES, int.from_bytes(file.read(8), "little")))
        return parse_json(header, shard).get("__metadata__") == {"format": "mlx"}
    except (Phi4LocalError, OSError, ValueError):
        return False
