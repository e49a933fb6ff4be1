"""An MLX folder as its files tell: configuration, the shards' headers, and what loading it takes.

Checked before MLX sees any of it; needs no MLX itself.
"""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi4local.backends.state_file import file_identity
from phi4local.errors import FormatError, NotFound
from phi4local.fit import Use
from quant.config import Config, read_values
from quant.flash import FLASH_MODEL_TYPE
from quant.mlx import Shape, shape_of
from quant.mlx_size import compute_bytes, item_bytes_of, kv_bytes
from quant.names import source_shapes
from quant.safetensors import Shard, read_shard

_READ_BY_MLX = ("generation_config.json", "hf_quant_config.json")  # mlx-lm opens them where they are


@dataclass(frozen=True, slots=True)
class MlxFolder:
    """A folder that MLX can load."""

    path: Path
    shape: Shape
    bits: str
    shards: tuple[Shard, ...]

    @property
    def config(self) -> Config | None:
        """The shape of a model that mlx-lm has; None: it is flash."""
        return self.shape if isinstance(self.shape, Config) else None

    @property
    def mended_values(self) -> dict[str, Any]:
        """What replaces values of config.json: mlx-lm does not know every spelling of the rope's."""
        return _rope_values(self.config) if self.config else {}

    @property
    def weights_bytes(self) -> int:
        """Of all tensors."""
        return sum(record.size_bytes for shard in self.shards for record in shard.records)

    @property
    def item_bytes(self) -> int:
        """Of the numbers that the model computes with: those of its norms."""
        return item_bytes_of(record for shard in self.shards for record in shard.records)

    @property
    def trained_tokens(self) -> int:
        """The longest context."""
        return self.shape.context

    @property
    def original_context(self) -> int:
        """How far the short rope factors reach."""
        return self.config.original_context if self.config else self.trained_tokens

    @property
    def layers(self) -> int:
        return self.shape.layers

    @property
    def description(self) -> str:
        """In the words of llama.cpp's: `phi3 14.7B MLX 4-bit`."""
        parameters = sum(map(math.prod, source_shapes(self.shape).values()))
        return f"{'phi3' if self.config else FLASH_MODEL_TYPE} {parameters / 1e9:.1f}B MLX {self.bits}"

    def identity(self) -> dict[str, Any]:
        """What tells it from every other folder, without reading its weights."""
        config = hashlib.sha256((self.path / "config.json").read_bytes()).hexdigest()
        return {"config": config} | {shard.path.name: file_identity(shard.path) for shard in self.shards}


def needed(folder: MlxFolder, kv_type: str, context_tokens: int) -> Use:
    """What a load takes: the weights, the whole cache, and the work of a step of the prompt."""
    shape, fused = folder.shape, sys.platform == "darwin"  # where MLX runs on Metal
    cache_bytes = kv_bytes(shape, context_tokens, kv_type, folder.item_bytes)
    compute = compute_bytes(shape, context_tokens, fused=fused, item_bytes=folder.item_bytes)
    return Use(folder.weights_bytes, cache_bytes, compute)


def read_folder(path: Path) -> MlxFolder:
    """Read and check a folder (NotFound, FormatError)."""
    values = read_values(path)
    for name in _READ_BY_MLX:
        if (path / name).exists() and not (path / name).is_file():  # a pipe would be waited for without end
            raise FormatError(f"`{path / name}` is not a file", hint="Get another build")
    shards = tuple(read_shard(file) for file in sorted(path.glob("model*.safetensors")))
    if not shards:
        raise NotFound(f"No weights in `{path}`", hint="It should hold `model.safetensors`")
    return MlxFolder(path, shape_of(values), _bits(values), shards)


def _bits(values: dict[str, Any]) -> str:
    """How the weights are stored, in words."""
    quantization = values.get("quantization")
    if quantization is None:
        if values.get("quantization_config") is not None:
            raise FormatError("These weights are quantized, and not by MLX", hint="Get an MLX or a GGUF build")
        return "16-bit"
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    if type(bits) is not int or not 1 < bits <= 8:
        raise FormatError("`config.json`: `quantization` does not say how many bits", hint="Get another build")
    return f"{bits}-bit"


def _rope_values(config: Config) -> dict[str, Any]:
    """The rope in the one spelling that mlx-lm reads (its phi3 does not know `rope_parameters`)."""
    factors = config.long_rope
    scaling = factors and {"type": "longrope", "long_factor": [*factors.long], "short_factor": [*factors.short]}
    return {
        "rope_theta": config.rope_theta,
        # mlx-lm cuts the product with the head's size off, so a little more than the share itself
        "partial_rotary_factor": (config.rotary_dimensions + 1e-6) / config.head_size,
        "rope_scaling": scaling,
        "max_position_embeddings": config.context,
        "original_max_position_embeddings": config.original_context,
    }
