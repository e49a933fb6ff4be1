"""Safetensors checkpoints: headers read strictly, weights left where they are and read by offset.

    8 bytes       little-endian length N of the header
    N bytes       JSON: {"name": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}, ...}
    the rest      tensor bytes; the ranges touch, none overlap, and together they fill the file

Format: https://github.com/huggingface/safetensors#format. Every number in the header is checked before it is used.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from phi4local.errors import FormatError, NotFound
from phi4local.files import read_bounded
from phi4local.printing import printable

HEADER_LIMIT_BYTES = 2_000_000  # the format allows 100 MB; 243 tensors need 40 kB
INDEX_LIMIT_BYTES = 16_000_000
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}  # what a weight may be
_OTHER_ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_DIMENSION_LIMIT = 1 << 40
_JSON_ITEM_LIMIT = 4_000_000  # the longest tokenizer.json of the family has 1.1 million


@dataclass(frozen=True, slots=True)
class Record:
    """A tensor in a shard: where its bytes are, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A safetensors file: its tensors in file order, and where the first one begins."""

    path: Path
    size_bytes: int
    data_offset: int
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All shards of a model in the order of their names."""

    folder: Path
    shards: tuple[Shard, ...]

    @property
    def records(self) -> dict[str, Record]:
        return {record.name: record for shard in self.shards for record in shard.records}


def shard_names(folder: Path) -> list[str]:
    """The names of an official folder's shards, in their order (NotFound, FormatError)."""
    if (folder / INDEX_NAME).exists():
        return sorted(set(_read_weight_map(folder / INDEX_NAME).values()))
    return [_single_file(folder).name]


def read_checkpoint(folder: Path, sizes: Mapping[str, int] | None = None) -> Checkpoint:
    """The headers of all shards of an official folder (NotFound, FormatError).

    `sizes` are given for shards of which only the beginning is here: their bytes when they are whole.
    """
    sizes = sizes or {}
    shards = tuple(read_shard(folder / name, sizes.get(name)) for name in shard_names(folder))
    if (folder / INDEX_NAME).exists():
        _compare_with_index(_read_weight_map(folder / INDEX_NAME), shards)
    return Checkpoint(folder, shards)


def _single_file(folder: Path) -> Path:
    path = folder / SINGLE_NAME
    if path.exists():
        return path
    if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
        raise FormatError(
            f"`{folder}` holds pickled weights, which can run code when they are opened",
            hint="Get the safetensors files of the official repository",
        )
    raise NotFound(f"No weights in `{folder}`", hint=f"It should hold `{SINGLE_NAME}` or `{INDEX_NAME}` and its shards")


def _read_weight_map(path: Path) -> dict[str, str]:
    index = parse_json(read_bounded(path, INDEX_LIMIT_BYTES), path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"`{path.name}` has no `weight_map`")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w][\w.\-]*\.safetensors", file):
            raise FormatError(f"`{path.name}` sends tensor `{printable(tensor)}` to a file name that is not plain")
    return weight_map


def _compare_with_index(weight_map: dict[str, str], shards: tuple[Shard, ...]) -> None:
    found: dict[str, str] = {}
    for shard in shards:
        for record in shard.records:
            if record.name in found:
                raise FormatError(f"Tensor `{record.name}` is in `{found[record.name]}` and in `{shard.path.name}`")
            found[record.name] = shard.path.name
    for name, file in weight_map.items():
        if found.get(name) != file:
            where = f"it is in `{found[name]}`" if name in found else "it is in no shard"
            raise FormatError(f"The index places tensor `{printable(name)}` in `{file}`, but {where}")
    if extra := sorted(found.keys() - weight_map.keys()):
        raise FormatError(f"`{found[extra[0]]}` holds tensor `{extra[0]}`, which the index does not know")


def read_shard(path: Path, whole_bytes: int | None = None) -> Shard:
    """One file's header, every range checked against the file's size, or what that will be (NotFound, FormatError)."""
    try:
        here_bytes = _file_size(path)
        size_bytes = here_bytes if whole_bytes is None else whole_bytes
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 or length > min(size_bytes - 8, HEADER_LIMIT_BYTES):
                raise FormatError(
                    f"`{path.name}` is truncated or not a safetensors file ({size_bytes} bytes)",
                    hint="Download it again",
                )
            header = parse_json(file.read(length), path)
    except FileNotFoundError:
        raise NotFound(f"Shard `{path.name}` is missing from `{path.parent}`", hint="Download it again") from None
    except OSError as error:
        raise FormatError(f"`{path}` cannot be read: {error.strerror}") from None
    header.pop("__metadata__", None)
    records = [_record(name, entry, 8 + length, path) for name, entry in header.items()]
    records.sort(key=lambda record: (record.offset, record.size_bytes))
    _check_coverage(records, 8 + length, size_bytes, path)
    return Shard(path, size_bytes, 8 + length, tuple(records))


def _file_size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise FormatError(f"`{path}` is not a file", hint="Download it again")
    return status.st_size


def _record(name: str, entry: Any, data_offset: int, path: Path) -> Record:
    where = f"tensor `{printable(name)}` of `{path.name}`"
    if not re.fullmatch(r"[\w.\-]{1,200}", name, re.ASCII):
        raise FormatError(f"The name of {where} is not plain")
    if not isinstance(entry, dict):
        raise FormatError(f"The header entry of {where} is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    item_bytes = (ITEM_BYTES | _OTHER_ITEM_BYTES).get(dtype) if isinstance(dtype, str) else None
    if item_bytes is None:
        raise FormatError(f"The dtype of {where} is unknown: {printable(str(dtype))}")
    if not _is_counts(shape) or len(shape) > 4:
        raise FormatError(f"The shape of {where} is not a list of sizes")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"The data_offsets of {where} are not a range")
    size_bytes = math.prod(shape) * item_bytes
    if offsets[1] - offsets[0] != size_bytes:
        problem = f"has {offsets[1] - offsets[0]} bytes; its shape needs {size_bytes}"
        raise FormatError(f"The range of {where} {problem}", hint="Download it again")
    return Record(name, str(dtype), tuple(shape), data_offset + offsets[0], size_bytes)


def _is_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _DIMENSION_LIMIT for item in value)


def _check_coverage(records: list[Record], data_offset: int, size_bytes: int, path: Path) -> None:
    position = data_offset
    for record in records:
        if record.offset != position:
            what = "overlaps the one before it" if record.offset < position else "leaves a gap before it"
            raise FormatError(f"Tensor `{record.name}` of `{path.name}` {what}")
        position += record.size_bytes
    if position > size_bytes:
        raise FormatError(
            f"`{path.name}` is truncated: {size_bytes} bytes, its header describes {position}", hint="Download it again"
        )
    if position < size_bytes:
        raise FormatError(f"`{path.name}` has {size_bytes - position} bytes that its header does not describe")


_AGAIN = "Download it again from the official repository"


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without repeated keys and without half characters (FormatError)."""
    if sum(map(data.count, (b"[", b"{", b","))) > _JSON_ITEM_LIMIT:  # small values cost far more memory than text
        raise FormatError(f"`{path.name}` holds more values than any such file needs", hint=_AGAIN)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys)
        if b"\\ud" in data.lower():  # half of a surrogate pair is valid JSON, but no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError(f"`{path.name}` holds half of a surrogate pair", hint=_AGAIN) from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"`{path.name}` is not valid JSON: {printable(str(error))[:120]}", hint=_AGAIN) from None
    if not isinstance(value, dict):
        raise FormatError(f"`{path.name}` is not a JSON object", hint=_AGAIN)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated")
    return result
