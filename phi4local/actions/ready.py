"""A published GGUF: fetched into a partial file, hashed on the way, its metadata mended, checked.

The partial file's length is the state that survives a kill: what is on the disk is hashed again and the rest fetched.
Where the header gets longer by a repair, the tensor bytes are put where they will belong as they arrive:

    [the published header] [room that the repaired one will need] [tensor bytes ...]
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from phi4local.errors import FormatError
from phi4local.files import atomic_write, write_at, writing_to
from phi4local.hub.arrival import wrong_bytes
from phi4local.hub.body import Address
from phi4local.hub.fetch import Fetch
from phi4local.hub.repository import RemoteFile
from quant.check import hashing
from quant.gguf import Header, IncompleteError, read_header
from quant.journal import Journal, partial_path
from quant.mend import Mended, find_repairs, mend
from quant.progress import Progress
from quant.repair import Repair
from quant.sound import read_model_header

_BLOCK_BYTES = 1 << 20
_QUEUE_BLOCKS = 16
_SYNC_BYTES = 128 << 20
_FIRST_LOOK_BYTES = 1 << 20  # how much must have arrived before a header is looked for; then twice that, and so on


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole file under its partial name: its header and sha256 as they are now, and those of the published file."""

    header: Header
    sha256: str
    published_sha256: str
    repairs: tuple[Repair, ...]
    received_bytes: int
    resumed_bytes: int


class _Digest:
    """A hash computed in a thread of its own, in the order of `update`."""

    def __init__(self, file: RemoteFile) -> None:
        self._hash = file.new_hash()
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUE_BLOCKS)
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._hash.update(data)

    def update(self, data: bytes) -> None:
        self._queue.put(data)

    def finish(self) -> str:
        self._queue.put(None)
        self._thread.join()
        return str(self._hash.hexdigest())


class _Partial:
    """The file that grows; positions are those of the published file."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self.path, self._journal = path, journal
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        at, by = journal.notes.get("shift", "0 0").split()
        self._at, self._by = int(at), int(by)
        self._unsynced_bytes = 0
        self._syncer = ThreadPoolExecutor(1, "sync")
        self._synced: Future[None] | None = None

    def length(self) -> int:
        """How much of the published file is here."""
        size = os.fstat(self._fd).st_size
        return min(size, self._at) if self._by and size <= self._at + self._by else size - self._by

    def write(self, position: int, data: bytes) -> None:
        write_at(self._fd, data, position + (self._by if position >= self._at else 0))
        self._unsynced_bytes += len(data)
        if self._unsynced_bytes >= _SYNC_BYTES and (self._synced is None or self._synced.done()):
            self._unsynced_bytes = 0
            self._synced = self._syncer.submit(os.fsync, self._fd)

    def blocks(self) -> Iterator[bytes]:
        """What is here, in order."""
        position, end = 0, self.length()
        while position < end:
            most = self._at - position if position < self._at else _BLOCK_BYTES
            shift = self._by if position >= self._at else 0
            data = os.pread(self._fd, min(_BLOCK_BYTES, most, end - position), position + shift)
            position += len(data)
            yield data

    def shift(self, at: int, by: int) -> None:
        """From now on, what lies from `at` on is put `by` bytes later. A kill in here costs what was beyond `at`."""
        beyond = os.pread(self._fd, max(0, self.length() - at), at)
        os.ftruncate(self._fd, at)
        self._journal.note("shift", f"{at} {by}")
        self._at, self._by = at, by
        self.write(at, beyond)

    @property
    def is_shifted(self) -> bool:
        return self._by > 0

    def sync(self) -> None:
        """Make all of it durable; most of it is already, because the disk works while the network does."""
        if self._synced:
            self._synced.result()
        os.fsync(self._fd)

    def close(self) -> None:
        self._syncer.shutdown(wait=True)
        os.close(self._fd)


def header_copy(target: Path) -> Path:
    """Where the published header stands while the repaired one is written over it."""
    return target.with_name(target.name + ".header")


def fetch_ready(
    file: RemoteFile, address: Address, target: Path, journal: Journal
) -> Generator[Progress, None, Fetched]:
    """Bring the file under its partial name, whole and mended (DownloadError, FormatError, InsufficientResources)."""
    partial = partial_path(target)
    if not journal.notes or not partial.exists():  # a new journal: what lies there is of another file
        _begin(file, partial, journal)
    with writing_to(target.parent, file.bytes):
        resumed = received = 0
        got = journal.notes.get("whole", "")
        if not got:
            resumed, received, got = yield from fetch_file(file, address, partial, journal)
            header_copy(target).unlink(missing_ok=True)
        mended = yield from _mend(file, target, journal, got)
        header = read_model_header(partial)
        if mended or file.sha256 is None:
            sha256 = yield from hashing(partial, "check")
        else:
            sha256 = got
    return Fetched(header, sha256, got, mended.repairs if mended else (), received, resumed)


def _begin(file: RemoteFile, partial: Path, journal: Journal) -> None:
    partial.unlink(missing_ok=True)
    journal.restart()
    journal.note("begun", file.name)


def fetch_file(
    file: RemoteFile, address: Address, partial: Path, journal: Journal
) -> Generator[Progress, None, tuple[int, int, str]]:
    """Fetch what is missing until the hash is right: bytes that were here, bytes received, the hash.

    The header of a GGUF is looked at on the way; any other file is taken as it is.
    """
    received, stage = 0, "fetch"
    while True:
        resumed, more, got = yield from _fetch_rest(file, address, partial, journal, stage)
        received += more
        expected = file.expected
        if got == expected:
            return resumed, received, got
        _begin(file, partial, journal)
        if resumed == 0:
            raise wrong_bytes(file.name, expected, got)
        stage = "again"  # what an earlier run had left was not what it seemed


def _fetch_rest(
    file: RemoteFile, address: Address, partial: Path, journal: Journal, stage: str
) -> Generator[Progress, None, tuple[int, int, str]]:
    digest, fetch = _Digest(file), Fetch(address)
    out = _Partial(partial, journal)
    try:
        resumed = position = 0
        if out.length() > file.bytes:
            out.close()
            partial.unlink()
            out = _Partial(partial, journal)
        total = out.length()
        for data in out.blocks():
            digest.update(data)
            resumed = position = position + len(data)
            yield Progress("check", position, total)
        look_at, is_gguf = _FIRST_LOOK_BYTES, file.name.endswith(".gguf")
        for data in itertools.chain([b""], fetch.chunks(position)):
            out.write(position, data)
            digest.update(data)
            position += len(data)
            if is_gguf and not out.is_shifted and position >= min(look_at, file.bytes):
                look_at = _look(file, out, position)
            yield Progress(stage, position, file.bytes, fetch.trouble)
        out.sync()
    finally:
        got = digest.finish()
        out.close()
    return resumed, fetch.received_bytes, got


def _look(file: RemoteFile, out: _Partial, position: int) -> int:
    """Look for a flawed header in what has arrived; make room for the repaired one. Where to look again."""
    try:
        mended = _mended(read_header(out.path, file.bytes), out.path)
    except IncompleteError:
        return position * 2
    except FormatError:  # whether the file is so or a byte was changed on its way, the hash will tell
        return file.bytes + 1
    if mended and mended.shift_bytes:
        out.shift(len(mended.header) - mended.shift_bytes, mended.shift_bytes)
    return file.bytes + 1


def _mended(header: Header, path: Path) -> Mended | None:
    repairs = find_repairs(header)
    if not repairs:
        return None
    with path.open("rb") as file:
        return mend(file.read(header.data_offset), header, repairs)


def _mend(file: RemoteFile, target: Path, journal: Journal, got: str) -> Generator[Progress, None, Mended | None]:
    """Write the repaired header over the published one, of which a copy makes a kill in the middle harmless."""
    partial, copy = partial_path(target), header_copy(target)
    if "whole" not in journal.notes:
        header = read_header(partial, file.bytes)
        if not find_repairs(header):
            return None
        with partial.open("rb") as whole, atomic_write(copy) as out:
            out.write(whole.read(header.data_offset))
        journal.note("whole", got)
    yield Progress("mend", 0, 0)
    mended = _mended(read_header(copy, file.bytes), copy)
    if mended is None or partial.stat().st_size != file.bytes + mended.shift_bytes:
        _begin(file, partial, journal)
        raise FormatError(
            f"What an earlier run has left of `{file.name}` is not what this version makes of it; it was removed",
            hint="Run the same command again",
        )
    with partial.open("r+b") as out:
        out.write(mended.header)
        out.flush()
        os.fsync(out.fileno())
    return mended
