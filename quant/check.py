"""The last look before a build gets its name: the file is read again and compared with its plan and its source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np

from phi4local.errors import FormatError
from quant.gguf import read_header
from quant.plan import Plan, PlannedTensor
from quant.progress import Progress
from quant.rows import RowFormat, make_rows

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


def check_layout(path: Path, plan: Plan) -> None:
    """Compare the file's header with its plan (FormatError)."""
    header = read_header(path)
    found = {tensor.name: (tensor.type.name, tensor.offset, tensor.size_bytes) for tensor in header.tensors}
    planned = {tensor.name: (tensor.type.name, tensor.offset, tensor.size_bytes) for tensor in plan.tensors}
    if found != planned or header.size_bytes != plan.size_bytes:
        raise FormatError(f"`{path.name}` differs from its plan", hint=_AGAIN)


_AGAIN = "The disk may be failing; delete the partial file and build again"


def check_rows(built: int, shard: int, tensors: Iterable[PlannedTensor]) -> None:
    """Compare the first and last row of every tensor of a shard with its source (open files; FormatError)."""
    for tensor in tensors:
        record = tensor.record
        assert record is not None
        form = RowFormat(record.dtype, tensor.type, record.shape[-1])
        last = record.size_bytes // form.source_row_bytes - 1
        for row in {0, last}:
            data = os.pread(shard, form.source_row_bytes, record.offset + row * form.source_row_bytes)
            expected = make_rows(form, np.frombuffer(data, np.uint8), tensor.name).tobytes()
            if os.pread(built, form.target_row_bytes, tensor.offset + row * form.target_row_bytes) != expected:
                raise FormatError(f"Tensor `{tensor.name}` on the disk is not what was written", hint=_AGAIN)
