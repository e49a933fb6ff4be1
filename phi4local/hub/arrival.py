"""Shards of official weights on their way: one thread fetches, the reader of the shards waits for what it needs.

While a shard is read, the next one may arrive; the one after that waits until the first is released. A shard lies in
its folder from its beginning up to what has arrived, so its length is the state that survives a kill.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from phi4local.errors import FormatError
from phi4local.files import write_all
from phi4local.hub.fetch import Fetch
from phi4local.hub.repository import RemoteFile, Snapshot
from quant.safetensors import HEADER_LIMIT_BYTES, read_shard

_MOMENT_SECONDS, _STOP_SECONDS = 0.5, 2.0
_BEGINNING_BYTES = 1 << 16  # holds the header of every published shard


class Shards:
    """The shards of one snapshot, arriving in `folder` (a `quant.source.Arrival`)."""

    def __init__(self, snapshot: Snapshot, files: Sequence[RemoteFile], folder: Path, *, keep: bool) -> None:
        self.sizes = {file.name: file.bytes for file in files}
        self.stamp = " ".join(f"{file.name}={file.sha256}" for file in files)
        self.received_bytes = 0
        self.keeps = keep
        self._snapshot, self._folder = snapshot, folder
        self._files = {file.name: file for file in files}
        self._here = {file.name: self._length(file) for file in files}
        self._earlier = dict(self._here)
        self._released = 0
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._fetch: Fetch | None = None

    def _length(self, file: RemoteFile) -> int:
        path = self._folder / file.name
        length = path.stat().st_size if path.exists() else 0
        if length > file.bytes:  # nothing that we have written
            path.unlink()
            return 0
        return length

    @property
    def arrived_bytes(self) -> int:
        """Of all shards, those included that an earlier run had fetched."""
        return sum(self._here.values())

    @property
    def trouble(self) -> str:
        """What the network is being waited for."""
        return self._fetch.trouble if self._fetch else ""

    def fetch_beginnings(self) -> Iterator[str]:
        """Get every shard's header; tells the trouble on the way (DownloadError)."""
        for name in self.sizes:
            yield from self._fetch_to(name, min(_BEGINNING_BYTES, self.sizes[name]))
            with (self._folder / name).open("rb") as file:
                header_bytes = 8 + int.from_bytes(file.read(8), "little")
            if _BEGINNING_BYTES < header_bytes <= HEADER_LIMIT_BYTES:  # a longer one is refused by who reads it
                yield from self._fetch_to(name, min(header_bytes, self.sizes[name]))

    def _fetch_to(self, name: str, end: int) -> Iterator[str]:
        if self._here[name] >= end:
            return
        self._fetch = Fetch(self._snapshot.address(self._files[name]))
        with (self._folder / name).open("ab", buffering=0) as file:
            for data in self._fetch.chunks(self._here[name], end):
                if self._stopped.is_set():
                    return
                write_all(file.fileno(), data)
                self.received_bytes += len(data)
                with self._changed:
                    self._here[name] += len(data)
                    self._changed.notify_all()
                yield self._fetch.trouble

    def drop_beginnings(self) -> None:
        """The headers make no sense: those that may be damaged are fetched again next time."""
        unreadable = [name for name in self.sizes if not self._is_readable(name)]
        young = [name for name in self.sizes if self._here[name] <= _BEGINNING_BYTES]
        for name in unreadable or young:
            (self._folder / name).unlink(missing_ok=True)

    def _is_readable(self, name: str) -> bool:
        try:
            read_shard(self._folder / name, self.sizes[name])
        except FormatError:
            return False
        return True

    def here_bytes(self, name: str) -> int:
        return self._here[name]

    def begin(self, names: Sequence[str]) -> None:
        for name in self.sizes.keys() - set(names):
            self._here[name] = self.sizes[name]
        self._thread = threading.Thread(target=self._run, args=(names,), name="fetch", daemon=True)
        self._thread.start()

    def _run(self, names: Sequence[str]) -> None:
        try:
            for number, name in enumerate(names):
                with self._changed:
                    while number > self._released + 1 and not self._stopped.is_set():
                        self._changed.wait()
                if self._stopped.is_set():
                    return
                for _ in self._fetch_to(name, self.sizes[name]):
                    pass
        except BaseException as error:  # noqa: BLE001  raised again by who waits
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def wait(self, name: str, end: int) -> bool:
        if self._here[name] >= end:
            return True
        with self._changed:
            if self._error:
                raise self._error
            self._changed.wait(_MOMENT_SECONDS)
            return self._here[name] >= end

    def check(self, name: str, sha256: str) -> None:
        expected = self._files[name].sha256
        if sha256 != expected:
            (self._folder / name).unlink()
            raise wrong_bytes(name, expected or "", sha256, earlier_bytes=self._earlier[name])

    def release(self, name: str) -> None:
        if not self.keeps:
            (self._folder / name).unlink()
        with self._changed:
            self._released += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop fetching; what has arrived stays."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()
        if self._fetch:
            self._fetch.stop()
        if self._thread:
            self._thread.join(_STOP_SECONDS)  # it may be connecting to a server that does not answer


class WrongBytesError(FormatError):
    """A file is not the published one; `earlier_bytes` of it had been here before this run."""

    earlier_bytes = 0


def wrong_bytes(name: str, expected: str, got: str, *, earlier_bytes: int = 0) -> WrongBytesError:
    """The error that names the file and both hashes."""
    error = WrongBytesError(
        f"`{name}` has other bytes than the hub lists: expected sha256 {expected}, got {got}; it was removed",
        hint="Run the same command again; if it happens twice, something between here and the hub changes files",
    )
    error.earlier_bytes = earlier_bytes
    return error
