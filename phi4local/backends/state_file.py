"""A timeline on disk: the runtime's own file, and behind it what it is a state of and a checksum over all of it.

    llama_state_seq_save_file's, or safetensors | JSON: key, size of the context, answers | magic, lengths, sha256

The runtimes check little of such a file: llama.cpp takes over flipped values without a word, and asserts on some. So
they are shown only files that they would have written in the same place: same model, context, cache, settings, release.
Imports no runtime.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from phi4local.backends.states import writing_state

_END = struct.Struct("<8sQQ32s")
_MAGIC = b"P4LSTATE"
_JSON_BYTES = 1 << 26
_HEADER_BYTES = 1 << 24  # reaches over every header of the family
_BLOCK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Answers = Iterable[tuple[str, Sequence[int]]]


class Timeline(Protocol):
    """What is written: `phi4local.backends.worker.Timeline`, as far as this needs it."""

    tokens: list[int]
    size: int

    @property
    def state_bytes(self) -> int: ...

    def save(self, path: Path) -> int: ...

    def restore(self, path: Path, size: int) -> int: ...


class _Unfit(Exception):
    """The file is damaged, or a state of something else."""


def file_identity(path: Path) -> dict[str, Any]:
    """What tells a model's file from every other, without reading its weights."""
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        header = hashlib.sha256(file.read(_HEADER_BYTES)).hexdigest()
    return {"bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns, "header": header}


def write_state(path: Path, timeline: Timeline, key: dict[str, Any], answers: Answers, errors: Sequence[str]) -> int:
    """Write the timeline into the file, and the answers that are in it; how many bytes (the errors of a disk)."""
    needed = timeline.state_bytes
    with writing_state(path.parent, needed):
        size = timeline.save(path)
        if not size or path.stat().st_size != size:
            raise _disk_error(errors)
        facts = {"key": key, "context": timeline.size, "answers": _within(answers, timeline.tokens)}
        data = json.dumps(facts, separators=(",", ":")).encode()
        with path.open("r+b") as file:
            digest = _digest(file, size, data)
            file.write(data + _END.pack(_MAGIC, size, len(data), digest))
        return size + len(data) + _END.size


def read_state(path: Path, timeline: Timeline, key: dict[str, Any]) -> Answers | None:
    """Take over what is in the file, and the answers in it; None where it does not fit, and then it is removed."""
    if not path.is_file():  # a pipe would be waited for without end
        return None
    try:
        facts = _checked_facts(path, key)
    except OSError:
        return None
    except _Unfit:
        facts = None
    if facts and facts["context"] in key["context_sizes"] and timeline.restore(path, facts["context"]):
        return [(text, ids) for text, ids in facts["answers"]]
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def _checked_facts(path: Path, key: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a file that is whole and has this key (_Unfit)."""
    with path.open("rb") as file:
        total = file.seek(0, os.SEEK_END)
        if total < _END.size:
            raise _Unfit
        file.seek(total - _END.size)
        magic, size, length, digest = _END.unpack(file.read(_END.size))
        if magic != _MAGIC or size + length + _END.size != total or length > _JSON_BYTES:
            raise _Unfit
        file.seek(size)
        data = file.read(length)
        try:
            facts = json.loads(data)
            same = isinstance(facts, dict) and facts["key"] == key
        except (ValueError, KeyError, RecursionError):
            raise _Unfit from None
        if not same or _digest(file, size, data) != digest:
            raise _Unfit
    assert isinstance(facts, dict)
    return facts


def _digest(file: BinaryIO, size: int, data: bytes) -> bytes:
    """The checksum over the first `size` bytes of the file, which is left behind them, and over `data`."""
    found = hashlib.sha256()
    file.seek(0)
    for start in range(0, size, _BLOCK_BYTES):
        found.update(file.read(min(_BLOCK_BYTES, size - start)))
    found.update(struct.pack("<QQ", size, len(data)))
    found.update(data)
    return found.digest()


def _within(answers: Answers, tokens: Sequence[int]) -> list[tuple[str, Sequence[int]]]:
    """The answers that stand in the timeline; an answer's last token may not have been read."""
    whole = array("i", tokens).tobytes()
    return [(text, ids) for text, ids in answers if array("i", ids[:-1]).tobytes() in whole]


def _disk_error(said: Sequence[str]) -> OSError:
    """llama.cpp tells only in words why a file could not be written; what is lost when it closes one, not at all."""
    text = " ".join(said)
    code = next((code for code in _FULL if os.strerror(code) in text), errno.EIO if text else errno.ENOSPC)
    return OSError(code, said[0] if code == errno.EIO else os.strerror(code))
