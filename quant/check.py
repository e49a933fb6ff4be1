"""The last look before a build gets its name: the file is read again and compared with its plan and its source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path

import numpy as np

from phi4local.errors import FormatError
from quant.gguf import read_header
from quant.plan import Plan
from quant.progress import Progress
from quant.rows import Target
from quant.safetensors import ITEM_BYTES, read_shard

_BLOCK_BYTES = 4 << 20


def hash_file(path: Path) -> str:
    """sha256 of a file, read in bounded pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashing(path: Path, stage: str) -> Generator[Progress, None, str]:
    """sha256 of a large file, told on the way."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            yield Progress(stage, file.tell(), total)
    return digest.hexdigest()


def folder_sha256(files: Mapping[str, str]) -> str:
    """One sha256 for a folder: that of what `sha256sum` prints for its files, sorted by name."""
    lines = (f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_layout(path: Path, plan: Plan) -> None:
    """Compare the file's header with its plan (FormatError)."""
    found, size_bytes = _READERS[plan.format](path)
    stored = (one for tensor in plan.tensors for one in tensor.stored)
    planned = {one.name: (one.type, one.offset, one.size_bytes) for one in stored}
    if found != planned or size_bytes != plan.weights_bytes:
        raise FormatError(f"`{path.name}` differs from its plan", hint=_AGAIN)


_Layout = tuple[dict[str, tuple[str, int, int]], int]


def _gguf_layout(path: Path) -> _Layout:
    header = read_header(path)
    return {one.name: (one.type.name, one.offset, one.size_bytes) for one in header.tensors}, header.size_bytes


def _safetensors_layout(path: Path) -> _Layout:
    shard = read_shard(path)
    return {one.name: (one.dtype, one.offset, one.size_bytes) for one in shard.records}, shard.size_bytes


_READERS = {"gguf": _gguf_layout, "mlx": _safetensors_layout}


_AGAIN = "The disk may be failing; delete the partial file and build again"


def check_rows(built: int, shard: int, tensors: Iterable[Target]) -> None:
    """Compare the first and last row of every tensor of a shard with its source (open files; FormatError)."""
    for tensor in tensors:
        record = tensor.record
        assert record is not None
        row_bytes = record.shape[-1] * ITEM_BYTES[record.dtype]
        for row in {0, record.size_bytes // row_bytes - 1}:
            data = os.pread(shard, row_bytes, record.offset + row * row_bytes)
            for offset, expected in tensor.pieces(np.frombuffer(data, np.uint8), row):
                if os.pread(built, expected.size, offset) != expected.tobytes():
                    raise FormatError(f"Tensor `{tensor.name}` on the disk is not what was written", hint=_AGAIN)
