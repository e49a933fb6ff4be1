"""GGUF files: a strict reader for files that nobody vouches for, and header writing through the `gguf` package.

    "GGUF"  u32 version  u64 tensor count  u64 key count
    keys:     string name, u32 value type, value (string = u64 length + bytes; array = u32 type, u64 count, items)
    tensors:  string name, u32 dimensions, u64 sizes (row length first), u32 ggml type, u64 offset
    padding to `general.alignment` (32), then tensor bytes at data_offset + offset, each aligned

Specification: ggml's docs/gguf.md. Little-endian versions 2 and 3 are read, which is all that anybody publishes.
"""

from __future__ import annotations

import math
import stat
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from phi4local.errors import FormatError, NotFound
from phi4local.printing import printable
from quant.ggml import TYPES_BY_ID, TensorType

if TYPE_CHECKING:
    import gguf as gguf_package

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32
ITEM_LIMIT = 4_000_000  # in all lists together; the largest vocabulary published has 1.3 million
KEY_LIMIT_BYTES = 1 << 16
TEXT_LIMIT_BYTES = 1 << 24
HEADER_LIMIT_BYTES = 1 << 28

Scalar = str | int | float | bool
Value = Scalar | list[Scalar]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A stored tensor; `shape` as GGUF counts it, row length first; `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    size_bytes: int


class IncompleteError(FormatError):
    """The header goes on beyond the beginning of the file that is here."""


@dataclass(frozen=True, slots=True)
class Header:
    """All that stands before the weights; `spans` are the places of each key's type and value."""

    metadata: dict[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    size_bytes: int
    alignment: int
    spans: dict[str, tuple[int, int]]
    keys_end: int
    end: int

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def count(self, key: str) -> int | None:
        value = self.metadata.get(key)
        return value if type(value) is int else None

    def items(self, key: str) -> list[Scalar] | None:
        value = self.metadata.get(key)
        return value if isinstance(value, list) else None


class _Cursor:
    """`take` is the only read; it knows how much the file can still give."""

    def __init__(self, file: IO[bytes], size_bytes: int) -> None:
        self.file = file
        self.size_bytes = size_bytes
        self.position = 0
        self.items = 0

    def take(self, count: int) -> bytes:
        if count > self.size_bytes - self.position:
            raise FormatError(f"truncated: {count} bytes needed at {self.position}, the file has {self.size_bytes}")
        if count > HEADER_LIMIT_BYTES - self.position:
            raise FormatError(f"its header is longer than {HEADER_LIMIT_BYTES} bytes, which no model's is")
        data = self.file.read(count)
        if len(data) != count:
            raise IncompleteError(f"truncated at {self.position + len(data)} while it was read")
        self.position += count
        return data

    def number(self, kind: str) -> int:
        return int(struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0])

    def string(self, limit_bytes: int = TEXT_LIMIT_BYTES) -> str:
        length = self.number("Q")
        if length > limit_bytes:
            raise FormatError(f"text of {length} bytes at {self.position} cannot be true")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"text at {self.position} is not UTF-8") from None

    def value(self) -> Value:
        kind = self.number("I")
        if kind != _ARRAY:
            return self.scalar(kind)
        item_kind, count = self.number("I"), self.number("Q")
        if item_kind == _STRING:
            self.check_count(count, 8)
            return [self.string() for _ in range(count)]
        code = self._code(item_kind)
        self.check_count(count, struct.calcsize("<" + code))
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code))))

    def scalar(self, kind: int) -> Scalar:
        if kind == _STRING:
            return self.string()
        code = self._code(kind)
        value: Scalar = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return value

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise FormatError(f"value type {kind} at {self.position} is unknown")
        return _SCALARS[kind]

    def check_count(self, count: int, least_bytes: int) -> None:
        """Refuse a list before it is read: the items of all lists, and the bytes that are left, are bounded."""
        self.items += count
        if self.items > ITEM_LIMIT or count * least_bytes > self.size_bytes - self.position:
            raise FormatError(f"{count} items at {self.position} cannot be true")


def read_header(path: Path, whole_bytes: int | None = None) -> Header:
    """Keys and tensor table of a GGUF, every count and range checked (NotFound, FormatError).

    `whole_bytes` is given where only the file's beginning is here (IncompleteError where that is too short).
    """
    try:
        here_bytes = _file_size(path)
        size_bytes = here_bytes if whole_bytes is None else whole_bytes
        with path.open("rb", buffering=1 << 20) as file:
            return _read(_Cursor(file, size_bytes))
    except FileNotFoundError:
        raise NotFound(f"No file `{path}`") from None
    except OSError as error:
        raise FormatError(f"`{path}` cannot be read: {error.strerror}") from None
    except FormatError as error:
        hint = error.hint or "Get the file again"
        raise type(error)(f"`{path.name}` is not a sound GGUF: {error.message}", hint=hint) from None


def _file_size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise FormatError("it is not a file", hint="Point at a .gguf file")
    return status.st_size


def _read(cursor: _Cursor) -> Header:
    if cursor.take(4) != b"GGUF":
        raise FormatError("it does not begin with `GGUF`", hint="Point at a .gguf file")
    version = cursor.number("I")
    if version not in (2, 3):
        raise FormatError(f"version {version} is not supported")
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
    cursor.check_count(key_count, 13)
    cursor.check_count(tensor_count, 32)
    metadata: dict[str, Value] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        key = cursor.string(KEY_LIMIT_BYTES)
        if key in metadata:
            raise FormatError(f"key `{printable(key)}` is repeated")
        start = cursor.position
        metadata[key] = cursor.value()
        spans[key] = (start, cursor.position)
    keys_end = cursor.position
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise FormatError("`general.alignment` is not a power of two")
    entries = [_tensor_entry(cursor) for _ in range(tensor_count)]
    data_offset = align(cursor.position, alignment)
    tensors = tuple(_tensor(entry, data_offset, alignment) for entry in entries)
    _check_ranges(tensors, cursor.size_bytes)
    return Header(metadata, tensors, data_offset, cursor.size_bytes, alignment, spans, keys_end, cursor.position)


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string(KEY_LIMIT_BYTES)
    dimensions = cursor.number("I")
    if not 1 <= dimensions <= 4:
        raise FormatError(f"tensor `{printable(name)}` has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    return name, shape, cursor.number("I"), cursor.number("Q")


def _tensor(entry: tuple[str, tuple[int, ...], int, int], data_offset: int, alignment: int) -> TensorInfo:
    name, shape, type_id, offset = entry
    where = f"tensor `{printable(name)}`"
    if not name or len(name) > 63 or not name.isprintable():
        raise FormatError(f"{where} has a name that no engine takes")
    if type_id not in TYPES_BY_ID:
        raise FormatError(f"{where} has type {type_id}, which is unknown")
    if not all(0 < size < 1 << 40 for size in shape) or math.prod(shape) >= 1 << 60:
        raise FormatError(f"{where} has an impossible shape {list(shape)}")
    if offset % alignment or offset >= 1 << 62:
        raise FormatError(f"{where} is not aligned")
    tensor_type = TYPES_BY_ID[type_id]
    size_bytes = tensor_type.row_bytes(shape[0]) * math.prod(shape[1:])
    return TensorInfo(name, shape, tensor_type, data_offset + offset, size_bytes)


def _check_ranges(tensors: tuple[TensorInfo, ...], size_bytes: int) -> None:
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise FormatError("a tensor name is repeated")
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise FormatError(f"tensor `{tensor.name}` overlaps another")
        end = tensor.offset + tensor.size_bytes
        if end > size_bytes:
            raise FormatError(f"truncated: tensor `{tensor.name}` ends at {end}, the file at {size_bytes}")


def align(position: int, alignment: int = DEFAULT_ALIGNMENT) -> int:
    """The next multiple of `alignment` at or after `position`."""
    return -(-position // alignment) * alignment


# What the `gguf` package raises, or lets Python raise, for a value that it cannot write.
_REFUSALS = (struct.error, TypeError, ValueError, AttributeError, ArithmeticError, LookupError, AssertionError)
_OFFICIAL = "Take README.md and the .json files from the official repository"


def header_bytes(architecture: str, fill: Callable[[gguf_package.GGUFWriter], None]) -> bytes:
    """A header as the `gguf` package writes it, padded; `fill` adds its keys and tensors (FormatError)."""
    import gguf

    with tempfile.TemporaryDirectory(prefix="phi4local-") as folder:
        path = Path(folder) / "header"
        writer = gguf.GGUFWriter(path, architecture)
        try:
            fill(writer)
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        except _REFUSALS as error:
            raise FormatError(f"A GGUF cannot hold these keys: {printable(str(error))}", hint=_OFFICIAL) from None
        finally:
            writer.close()
        data = path.read_bytes()
    return data.ljust(align(len(data)), b"\0")
