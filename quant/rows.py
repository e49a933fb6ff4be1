"""A block of source rows into the bytes of its target type: widened, quantized, checked for NaN and infinity."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from phi4local.errors import FormatError
from quant.ggml import TensorType, quantize_rows, rows_are_valid, widen
from quant.safetensors import ITEM_BYTES, Record

Bytes = npt.NDArray[np.uint8]
Piece = tuple[int, Bytes]  # where in the file, and what

# A floating-point number is infinite or NaN when all its exponent bits are set. Seen as an integer, that is every
# positive pattern from `first` on, and every negative pattern from `first` + sign bit on.
_SPECIAL: dict[str, tuple[type[np.signedinteger], type[np.unsignedinteger], int]] = {
    "BF16": (np.int16, np.uint16, 0x7F80),
    "F16": (np.int16, np.uint16, 0x7C00),
    "F32": (np.int32, np.uint32, 0x7F800000),
}
_buffers = threading.local()  # each thread reuses its two buffers; fresh ones would be paged in every time


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it stands in the result: `offset` from the start of the file."""

    name: str
    type: str
    offset: int
    size_bytes: int


class Target(Protocol):
    """What becomes of one source tensor, by which name that is noted; or ready `data` without a source."""

    @property
    def name(self) -> str: ...

    @property
    def record(self) -> Record | None: ...

    @property
    def ready(self) -> Piece | None: ...

    @property
    def parameters(self) -> int: ...

    @property
    def kind(self) -> str:
        """What a user calls the form that it is stored in."""

    @property
    def stored(self) -> tuple[Stored, ...]: ...

    def pieces(self, rows: Bytes, first_row: int) -> Iterator[Piece]:
        """Whole rows of the source as the result has them; a piece is valid until the next one is asked for."""


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How rows are stored and how they shall be: a safetensors dtype, a ggml type, weights in a row."""

    dtype: str
    target: TensorType
    weights: int

    @property
    def source_row_bytes(self) -> int:
        return self.weights * ITEM_BYTES[self.dtype]

    @property
    def target_row_bytes(self) -> int:
        return self.target.row_bytes(self.weights)


def make_rows(form: RowFormat, source: Bytes, name: str) -> Bytes:
    """Rows in their target type; valid until the same thread asks again. FormatError names the tensor."""
    rows = source.size // form.source_row_bytes
    refuse_special(source, form.dtype, name)
    if form.target.name == form.dtype:
        return source
    wide = _widened(source, form.dtype, rows * form.weights)
    if form.target.name == "F32":
        return wide.view(np.uint8)
    result = _buffer("target", rows * form.target_row_bytes)
    quantize_rows(form.target, wide.ctypes.data, result.ctypes.data, rows, form.weights)
    if not rows_are_valid(form.target, result.ctypes.data, result.size):
        raise FormatError(f"Tensor `{name}` overflows in {form.target.name}", hint="BF16 holds every official weight")
    return result


def _widened(source: Bytes, dtype: str, count: int) -> npt.NDArray[np.float32]:
    if dtype == "F32":
        return source.view(np.float32)
    wide = _buffer("wide", count * 4).view(np.float32)
    widen(dtype, source.ctypes.data, wide.ctypes.data, count)
    return wide


def holds_special(source: Bytes, dtype: str) -> bool:
    """Whether any number is NaN or infinite."""
    signed, unsigned, first = _SPECIAL[dtype]
    negative = first + (1 << (8 * ITEM_BYTES[dtype] - 1))
    return bool(source.size and (source.view(signed).max() >= first or source.view(unsigned).max() >= negative))


def refuse_special(source: Bytes, dtype: str, name: str) -> None:
    """Weights are numbers (FormatError names the tensor)."""
    if holds_special(source, dtype):
        raise FormatError(
            f"Tensor `{name}` holds NaN or infinity, so the weights are damaged", hint="Download the folder again"
        )


def _buffer(name: str, size_bytes: int) -> Bytes:
    buffer: Bytes | None = getattr(_buffers, name, None)
    if buffer is None or buffer.size < size_bytes:
        buffer = np.empty(size_bytes, np.uint8)
        setattr(_buffers, name, buffer)
    return buffer[:size_bytes]
