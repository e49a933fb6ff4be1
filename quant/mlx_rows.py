"""A block of source rows as MLX stores it: cast, or packed in groups with their scales; the one importer of `mlx.core`.

MLX works row by row, so that blocks of rows give the bits of the whole tensor. It is asked for its processor code on
every machine: the same weights make the same file on a Mac and on Linux.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phi4local.errors import FormatError
from quant.rows import Bytes, holds_special, refuse_special

_NUMPY = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}  # numpy has no bfloat16


@dataclass(frozen=True, slots=True)
class Packing:
    """How a matrix is packed: `bits` a weight, in groups along the row; `mode` as MLX calls it."""

    bits: int
    group: int
    mode: str

    @property
    def parts(self) -> tuple[str, ...]:
        """What MLX calls the results, in its order."""
        return ("weight", "scales", "biases") if self.mode == "affine" else ("weight", "scales")

    def part_shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Their shapes, for a matrix of that shape."""
        *outer, width = shape
        groups = (*outer, width // self.group)
        return ((*outer, width * self.bits // 32), groups, groups)[: len(self.parts)]


@dataclass(frozen=True, slots=True)
class MlxFormat:
    """How rows are stored (a safetensors dtype), to which dtype they are cast, and how they are packed, if at all."""

    dtype: str
    cast: str
    weights: int
    packing: Packing | None


def make_parts(form: MlxFormat, source: Bytes, name: str) -> list[Bytes]:
    """The rows' bytes, one array for each part. FormatError names the tensor."""
    refuse_special(source, form.dtype, name)
    if form.packing is None and form.cast == form.dtype:
        return [source]
    parts = _ask_mlx(form, source)
    numbers = parts[1:] if form.packing else parts
    if (form.packing is None or form.packing.mode == "affine") and any(holds_special(p, form.cast) for p in numbers):
        raise FormatError(f"Tensor `{name}` overflows in {form.cast}", hint="BF16 holds every official weight")
    return parts


def _ask_mlx(form: MlxFormat, source: Bytes) -> list[Bytes]:
    import mlx.core as mx

    types = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
    with mx.stream(mx.cpu):  # each thread has its own stream there, and evaluates what it began
        rows = mx.array(source.view(_NUMPY[form.dtype]).reshape(-1, form.weights))
        if form.dtype == "BF16":
            rows = rows.view(mx.bfloat16)
        rows = rows.astype(types[form.cast])
        packing = form.packing
        made = mx.quantize(rows, group_size=packing.group, bits=packing.bits, mode=packing.mode) if packing else [rows]
        flat = [part.view(mx.uint8) for part in made]
        mx.eval(flat)
        return [np.array(part).reshape(-1) for part in flat]
