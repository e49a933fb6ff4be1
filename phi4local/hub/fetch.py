"""A file's bytes in order, from any position, across whatever the network does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.client import HTTPConnection

from phi4local.hub.body import Address, Body, interrupt, open_body
from phi4local.hub.trouble import Retries, TransientError


class Fetch:
    """The bytes of one file; `trouble` says what the network is being waited for, `received_bytes` what it gave."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.trouble = ""
        self.received_bytes = 0
        self._body: Body | None = None
        self._connection: HTTPConnection | None = None
        self._stopped = threading.Event()

    def chunks(self, start: int, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` to `end`, each exactly once; an empty chunk is a moment of waiting.

        (DownloadError, NotFound)
        """
        position, end = start, self.address.size_bytes if end is None else end
        retries = Retries()
        while position < end:
            try:
                self._body = open_body(self.address, position, end, self._connected)
                while position < end:
                    data = self._body.read(end - position)
                    position += len(data)
                    self.received_bytes += len(data)
                    self.trouble = ""
                    retries.progressed(len(data))
                    yield data
            except TransientError as error:
                failure = error
            else:
                return
            finally:
                if body := self._body:
                    body.close()
                self._body = None
            self.trouble = str(failure)
            for _ in retries.pause(failure):
                if self._stopped.is_set():
                    return
                yield b""
            if self._stopped.is_set():
                return

    def stop(self) -> None:
        """Let a thread that walks `chunks` come to its end."""
        self._stopped.set()
        if connection := self._connection:
            interrupt(connection)

    def _connected(self, connection: HTTPConnection) -> None:
        self._connection = connection
        if self._stopped.is_set():
            interrupt(connection)
