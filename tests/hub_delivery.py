"""How an answer's bytes leave for the client: paced, broken off on command, counted as they arrive and logged."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
import threading
import time
from bisect import bisect, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from tests.hub_faults import Answer, Asked, View

BLOCK_BYTES, SENDFILE_BYTES = 64 << 10, 1 << 20
_SIOCOUTQ = 0x5411  # Linux: bytes that the peer's kernel has not acknowledged
_RESET = struct.pack("ii", 1, 0)


class Bucket:
    """Bytes per second for all who take from it; who asks first is served first, one block each."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, count: int, closing: threading.Event) -> None:
        """Wait until `count` more bytes may leave."""
        rate = self.rate
        if rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _burst_bytes(rate) / rate) + count / rate
            delay = self._free_at - now
        if delay > 0 and closing.wait(delay):
            raise ConnectionAbortedError


def _burst_bytes(rate: float) -> float:
    """What may leave at once after a pause: enough to make up for a sleep that took too long."""
    return min(rate / 10, max(BLOCK_BYTES, rate / 50))


class Delivery:
    """One answer on its way. `on_last` is called before the bytes leave with which the client has it all."""

    def __init__(
        self,
        connection: socket.socket,
        buckets: Sequence[Bucket],
        closing: threading.Event,
        on_last: Callable[[], None],
    ) -> None:
        self._connection, self._buckets = connection, buckets
        self._closing, self._on_last = closing, on_last
        self._handed = 0

    def send(self, answer: Answer, start: int, stop: int) -> tuple[int, bool]:
        """How many bytes of the body arrived, and whether the connection can serve another request."""
        limit = stop - start if answer.stop_after is None else min(stop - start, answer.stop_after)
        alive = True
        try:
            if limit <= 0 and answer.stream is None:
                self._on_last()
            if answer.stop_after is None or answer.stop_after >= 0:
                self._connection.sendall(answer.head())
            if answer.stream is not None:
                self._send_stream(answer)
            elif limit > 0:
                self._send_view(answer, start, start + limit)
            self._end(answer.ending)
        except OSError:  # the client left, or the hub is closing
            alive = False
        arrived = max(0, self._handed - self._outstanding())
        return arrived, alive and answer.ending == "keep" and "Content-Length" not in answer.overriding

    def _send_view(self, answer: Answer, at: int, end: int) -> None:
        plain = answer.view.is_plain_file()
        with answer.view.open() as handle:
            while at < end:
                block = min(self._block_bytes(plain), end - at)
                for bucket in self._buckets:
                    bucket.wait(block, self._closing)
                if at + block == end and answer.ending != "stall":
                    self._on_last()
                at += self._send_block(answer.view, handle, at, block, plain)

    def _send_block(self, view: View, handle: BinaryIO, at: int, count: int, plain: bool) -> int:
        if not plain:
            self._push(view.read(handle, at, count))
            return count
        sent = os.sendfile(self._connection.fileno(), handle.fileno(), at, count)
        if sent == 0:
            raise ConnectionAbortedError("the file shrank")
        self._handed += sent
        return sent

    def _send_stream(self, answer: Answer) -> None:
        room = answer.stop_after
        for block in answer.stream or ():
            for bucket in self._buckets:
                bucket.wait(len(block), self._closing)
            chunk = b"%x\r\n%s\r\n" % (len(block), block)
            self._push(chunk if room is None else chunk[: room - self._handed])
            if room is not None and self._handed >= room:
                return
        self._on_last()
        self._connection.sendall(b"0\r\n\r\n")

    def _block_bytes(self, plain: bool) -> int:
        """Small enough that a slow rate is smooth and a client that left is noticed soon."""
        rates = [bucket.rate for bucket in self._buckets if bucket.rate is not None]
        if not rates:
            return SENDFILE_BYTES if plain else BLOCK_BYTES
        return min(BLOCK_BYTES, max(1, int(min(rates) / 20)))

    def _push(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            sent = self._connection.send(view)
            self._handed += sent
            view = view[sent:]

    def _outstanding(self) -> int:
        if sys.platform != "linux":
            return 0
        return int(struct.unpack("i", fcntl.ioctl(self._connection, _SIOCOUTQ, bytes(4)))[0])

    def _end(self, ending: str) -> None:
        """Break off as the fault says, but not before what was sent has arrived, so that counts are exact."""
        if ending == "stall":
            self._wait_for_the_client_to_leave()
        poller = select.poll()
        poller.register(self._connection, 0)
        while self._outstanding() and not self._closing.is_set():
            if poller.poll(1):  # only an error or a hang-up is reported
                raise ConnectionResetError
        if ending == "reset":
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _wait_for_the_client_to_leave(self) -> None:
        poller = select.poll()
        poller.register(self._connection, select.POLLIN)
        while not self._closing.is_set():
            if poller.poll(50):
                if not self._connection.recv(1, socket.MSG_PEEK):
                    raise ConnectionAbortedError
                self._closing.wait(0.05)  # what a client sends into a stalled answer is left unread


def is_reset(connection: socket.socket) -> bool:
    """Whether a fault wants this connection closed without a FIN."""
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_RESET)) == _RESET


# -- what was asked


@dataclass(frozen=True)
class Request:
    """A request that has ended. `sent_bytes` of the body reached the client's kernel; status 0: no answer."""

    method: str
    origin: str
    path: str
    headers: dict[str, str]
    range_start: int | None
    status: int
    sent_bytes: int


class Log:
    """Requests that have ended, in the order in which their clients had all of the answer, and those under way."""

    def __init__(self) -> None:
        self.ended: list[Request] = []
        self.tokens: list[tuple[str, str]] = []
        self.errors: list[BaseException] = []
        self._changed = threading.Condition()
        self._under_way: dict[Asked, int] = {}  # 0, or the place in the order once the last bytes leave
        self._count = 0
        self._places: list[int] = []

    @contextmanager
    def under_way(self, asked: Asked) -> Iterator[None]:
        """While a request is served."""
        with self._changed:
            self._under_way[asked] = 0
            if "authorization" in asked.headers:
                self.tokens.append((asked.origin, asked.headers["authorization"]))
        try:
            yield
        finally:
            with self._changed:
                del self._under_way[asked]
                self._changed.notify_all()

    def last(self, asked: Asked) -> None:
        """The bytes are about to leave with which the client has it all."""
        with self._changed:
            self._count += 1
            self._under_way[asked] = self._under_way[asked] or self._count

    def end(self, asked: Asked, status: int, sent_bytes: int) -> None:
        """Log a request. That its bytes arrived may be known later than that of one after it."""
        first = asked.range[0] if asked.range else None
        request = Request(asked.method, asked.origin, asked.path, asked.headers, first, status, sent_bytes)
        self.last(asked)
        with self._changed:
            place = self._under_way[asked]
            later = len(self._places) - bisect(self._places, place)
            insort(self._places, place)
            self.ended.insert(max(0, len(self.ended) - later), request)

    def settle(self, timeout: float, *, nearly_done_only: bool = False) -> bool:
        """Wait until nothing is under way."""
        with self._changed:
            places = self._under_way
            return self._changed.wait_for(lambda: not (any(places.values()) if nearly_done_only else places), timeout)
