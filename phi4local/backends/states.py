"""The folder of kept states: what a file is called, how large one may become, and which go when there are too many.

A state only saves time, so any of them may go at any moment. Each is as large as what is used of the KV cache: for
phi-4 14B 200 KiB a token in f16 (1.7 GB for 8192), 106 KiB in q8_0, 56 KiB in q4_0. Nothing else in the folder is
touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from phi4local.errors import BackendError
from phi4local.files import writing_to

LIMIT_BYTES = 4 << 30
_DISK_SHARE = 10  # of what is free, a tenth
_NAME = re.compile(r"[0-9a-f]{64}\.state")
_REMAINS = re.compile(r"\.[0-9a-f]{16}\.tmp")  # `atomic_write`'s, of a program that was killed while it wrote
_WRITING_SECONDS = 3600.0


def state_path(folder: Path, name: str) -> Path:
    """Where the state of the chat `name` is kept; the file is called by a hash."""
    return folder / f"{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()}.state"


def room_bytes(folder: Path, limit_bytes: int = LIMIT_BYTES) -> int:
    """What all states together may take: never more than a tenth of what is free on the disk."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return min(limit_bytes, shutil.disk_usage(there).free // _DISK_SHARE)


def keep(folder: Path, name: str, limit_bytes: int = LIMIT_BYTES) -> int:
    """Note that the state of `name` was used now, and remove those longest unused until the rest has room.

    What the rest takes. To be called after every save and restore.
    """
    used = state_path(folder, name)
    with contextlib.suppress(OSError):
        os.utime(used)
    _remove_remains(folder)
    states = sorted(_files(folder, _NAME), key=lambda state: (state[0] == used, state[1].st_mtime_ns))
    room, total = room_bytes(folder, limit_bytes), sum(facts.st_size for _, facts in states)
    for path, facts in states:
        if total <= room:
            break
        with contextlib.suppress(OSError):  # another process was faster, or the folder is read-only
            path.unlink()
            total -= facts.st_size
    return total


@contextlib.contextmanager
def writing_state(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Translate what a write in `folder` raises (InsufficientResources, BackendError)."""
    try:
        with writing_to(folder, needed_bytes):
            yield
    except OSError as error:
        raise BackendError(
            f"The state of the conversation cannot be kept in `{folder}`: {error.strerror or error}",
            hint="Nothing is lost: a reopened conversation is read again",
        ) from None


def _remove_remains(folder: Path) -> None:
    """Files that somebody began long ago and never finished."""
    for path, facts in _files(folder, _REMAINS):
        if facts.st_mtime < time.time() - _WRITING_SECONDS:
            path.unlink(missing_ok=True)


def _files(folder: Path, name: re.Pattern[str]) -> list[tuple[Path, os.stat_result]]:
    """Plain files of such a name; none where the folder cannot be read."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                facts = path.lstat()
                if name.fullmatch(path.name) and stat.S_ISREG(facts.st_mode):
                    found.append((path, facts))
    return found
