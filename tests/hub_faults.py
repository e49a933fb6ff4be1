"""What a test can make the loopback Hub do wrong.

An answer is made as the real Hub would, then at most one fault changes it, then it is delivered. `KINDS` is the list.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

JSON, HTML = "application/json; charset=utf-8", "text/html; charset=utf-8"
PORTAL = b"<!DOCTYPE html><html><head><title>Guest network</title></head><body>Please sign in.</body></html>\n"


# -- a question and its answer


@dataclass(frozen=True, eq=False)
class Asked:
    """A request as it came in; header names in lower case. Each is one of a kind, also if it looks like another."""

    method: str
    origin: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> tuple[int, int | None] | None:
        """First and last byte of `Range: bytes=a-` or `bytes=a-b`."""
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "").strip())
        return (int(found[1]), int(found[2]) if found[2] else None) if found else None

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}

    def next_page(self, cursor: int) -> str:
        """The `Link` header that leads to the entries from `cursor` on."""
        url = f"http://{self.headers.get('host', '')}{urlsplit(self.path).path}"
        return f'<{url}?recursive={self.query.get("recursive", "false")}&cursor={cursor}>; rel="next"'


@dataclass(frozen=True)
class View:
    """Bytes in memory or in a file, of which one can be wrong and some at the end too many or missing."""

    source: bytes | Path
    size: int
    flip: int | None = None

    def open(self) -> BinaryIO:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")

    def read(self, handle: BinaryIO, start: int, count: int) -> bytes:
        handle.seek(start)
        data = bytearray(handle.read(count).ljust(count, b"x"))
        if self.flip is not None and start <= self.flip < start + count:
            data[self.flip - start] ^= 1
        return bytes(data)

    def is_plain_file(self) -> bool:
        return isinstance(self.source, Path) and self.flip is None and self.size <= self.source.stat().st_size


@dataclass
class Answer:
    """A response before it is sent. `ending`: keep, cut, reset or stall, after `stop_after` bytes of the body."""

    status: int
    headers: dict[str, str]
    view: View = field(default_factory=lambda: View(b"", 0))
    ranged: bool = False
    stream: Iterator[bytes] | None = None
    wrong_range: bool = False
    wrong_start: int | None = None
    overriding: dict[str, str | None] = field(default_factory=dict)
    stop_after: int | None = None
    ending: str = "keep"
    rate: float | None = None

    def become(self, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Forget what was to be answered."""
        self.status, self.headers = status, {"Content-Type": content_type} | (headers or {})
        self.view, self.ranged = View(body, len(body)), False

    def part(self, asked: Asked) -> tuple[int, int]:
        """First byte and end of what is to be sent; sets status and length accordingly."""
        start, stop, wanted = 0, self.view.size, asked.range
        same = asked.headers.get("if-range", self.headers.get("ETag")) == self.headers.get("ETag")
        if self.ranged and wanted and same:
            if wanted[0] >= stop:
                self.become(416, "text/plain", b"", {"Content-Range": f"bytes */{stop}", "Content-Length": "0"})
                return 0, 0
            start, stop = wanted[0], stop if wanted[1] is None else min(stop, wanted[1] + 1)
            if self.wrong_range:
                start = self.wrong_start if self.wrong_start is not None else start // 2 if start > 1 else start ^ 1
            self.status = 206
            self.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{self.view.size}"
        if self.stream is None:
            self.headers["Content-Length"] = str(stop - start)
        else:
            self.headers["Transfer-Encoding"] = "chunked"
        return start, stop

    def head(self) -> bytes:
        """Status line and headers; the overriding ones replace those of the same name in any case."""
        replaced = {name.lower() for name in self.overriding}
        kept: dict[str, str | None] = dict(self.headers)
        kept = {name: value for name, value in kept.items() if name.lower() not in replaced} | self.overriding
        reason = HTTPStatus(self.status).phrase if self.status in set(HTTPStatus) else "Unknown"
        lines = [
            f"HTTP/1.1 {self.status} {reason}",
            *(f"{name}: {value}" for name, value in kept.items() if value is not None),
        ]
        return "\r\n".join([*lines, "", ""]).encode()


# -- faults


@dataclass
class Fault:
    """One thing to do wrong, `times` times (None: always) with requests that match; `hits` counts them.

    `after_bytes` of -1 means before the head; so does any value for a HEAD, which has no body.
    """

    kind: str
    origin: str = "cdn"
    match: str = ""
    times: int | None = 1
    after_bytes: int = 0
    value: Any = None
    method: str = ""
    hits: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no such fault: {self.kind}")

    def fits(self, asked: Asked) -> bool:
        """A fault waits for a request on which it has an effect."""
        wanted = (self.origin, self.method or asked.method) == (asked.origin, asked.method)
        return wanted and self.match in asked.path and _NEEDS.get(self.kind, lambda *_: True)(self, asked)


def take(faults: list[Fault], asked: Asked) -> Fault | None:
    """The first fault that fits, used once. The caller holds the lock."""
    fault = next((one for one in faults if one.fits(asked)), None)
    if fault is not None:
        fault.hits += 1
        fault.times = None if fault.times is None else fault.times - 1
        if fault.times == 0:
            faults[:] = [one for one in faults if one is not fault]
    return fault


def _flips_inside(fault: Fault, asked: Asked) -> bool:
    start, last = asked.range or (0, None)
    return asked.method == "GET" and start <= fault.value and (last is None or fault.value <= last)


def _is_api(_: Fault, asked: Asked) -> bool:
    return asked.path.startswith("/api/models/")


def _is_tree(fault: Fault, asked: Asked) -> bool:
    return _is_api(fault, asked) and "/tree/" in asked.path


def _has_range(_: Fault, asked: Asked) -> bool:
    return asked.range is not None


_NEEDS: dict[str, Callable[[Fault, Asked], bool]] = {
    "flip": _flips_inside,
    "slow": lambda _, asked: asked.method == "GET",
    "ignore_range": _has_range,
    "wrong_range": _has_range,
    "body": _is_api,
    "gzip_bomb": _is_api,
    "never_ending": _is_api,
    "endless_pages": _is_tree,
    "huge_tree": _is_tree,
}


def _end(answer: Answer, fault: Fault, asked: Asked) -> None:
    answer.ending = fault.kind
    answer.stop_after = -1 if asked.method == "HEAD" else fault.after_bytes


def _close(answer: Answer, fault: Fault, asked: Asked) -> None:
    answer.ending, answer.stop_after = "cut", -1


def _slow(answer: Answer, fault: Fault, asked: Asked) -> None:
    answer.rate = fault.value


def _flip(answer: Answer, fault: Fault, asked: Asked) -> None:
    answer.view = replace(answer.view, flip=fault.value)


def _resize(answer: Answer, fault: Fault, asked: Asked) -> None:
    change = fault.value if fault.kind == "long" else -fault.value
    answer.view = replace(answer.view, size=max(0, answer.view.size + change))


def _ignore_range(answer: Answer, fault: Fault, asked: Asked) -> None:
    answer.ranged = False


def _wrong_range(answer: Answer, fault: Fault, asked: Asked) -> None:
    answer.wrong_range, answer.wrong_start = True, fault.value


def _status(answer: Answer, fault: Fault, asked: Asked) -> None:
    status, headers = (fault.value, {}) if isinstance(fault.value, int) else fault.value
    answer.become(status, "text/plain", b"" if status in (204, 304) else b"as the test wished\n", headers)


def _html(answer: Answer, fault: Fault, asked: Asked) -> None:
    answer.become(200, HTML, PORTAL)


def _headers(answer: Answer, fault: Fault, asked: Asked) -> None:
    answer.overriding = fault.value


def _redirect(answer: Answer, fault: Fault, asked: Asked) -> None:
    answer.become(302, "text/plain", b"", {"Location": fault.value})


def _body(answer: Answer, fault: Fault, asked: Asked) -> None:
    answer.become(200, JSON, fault.value)


def _entry(number: int) -> str:
    return f'{{"type":"file","oid":"{number:040x}","size":1,"path":"more/{number:08}.txt"}}'


def _endless_pages(answer: Answer, fault: Fault, asked: Asked) -> None:
    cursor = int(asked.query.get("cursor", "0"))
    entries = json.loads(answer.view.source) if isinstance(answer.view.source, bytes) else []
    step = max(1, len(entries))
    link = asked.next_page(cursor + step)
    answer.become(200, JSON, json.dumps([*entries, json.loads(_entry(cursor))]).encode(), {"Link": link})


def _huge_tree(answer: Answer, fault: Fault, asked: Asked) -> None:
    def blocks() -> Iterator[bytes]:
        for start in range(0, fault.value, 1000):
            entries = ",".join(map(_entry, range(start, min(start + 1000, fault.value))))
            yield (("," if start else "[") + entries).encode()
        yield b"]" if fault.value else b"[]"

    answer.become(200, JSON, b"")
    answer.stream = blocks()


def _never_ending(answer: Answer, fault: Fault, asked: Asked) -> None:
    entry = _entry(0).encode() + b","
    answer.become(200, JSON, b"")
    answer.stream = itertools.chain([b"["], itertools.repeat(entry * (65536 // len(entry))))


def _gzip_bomb(answer: Answer, fault: Fault, asked: Asked) -> None:
    answer.become(200, JSON, gzip_bomb(fault.value), {"Content-Encoding": "gzip"})


def gzip_bomb(size: int) -> bytes:
    """A gzip file of a JSON list of `size` bytes. Blocks after a full flush repeat as they are: quick to make."""
    entry = _entry(0).encode() + b","
    block = (entry * (1_000_000 // len(entry))).ljust(1_000_000)
    count, rest = divmod(max(0, size - 4), len(block))

    def packed(data: bytes, flush: int) -> bytes:
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(data) + packer.flush(flush)

    first, last = b"[", b"0".ljust(rest + 2) + b"]"
    total = zlib.crc32(first)
    for _ in range(count):
        total = zlib.crc32(block, total)
    body = packed(first, zlib.Z_FULL_FLUSH) + packed(block, zlib.Z_FULL_FLUSH) * count + packed(last, zlib.Z_FINISH)
    length = len(first) + count * len(block) + len(last)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    return head + body + struct.pack("<II", zlib.crc32(last, total), length & 0xFFFFFFFF)


KINDS: dict[str, Callable[[Answer, Fault, Asked], None]] = {
    "cut": _end,
    "reset": _end,
    "stall": _end,
    "close": _close,
    "slow": _slow,
    "flip": _flip,
    "short": _resize,
    "long": _resize,
    "ignore_range": _ignore_range,
    "wrong_range": _wrong_range,
    "status": _status,
    "html": _html,
    "headers": _headers,
    "redirect": _redirect,
    "body": _body,
    "gzip_bomb": _gzip_bomb,
    "endless_pages": _endless_pages,
    "huge_tree": _huge_tree,
    "never_ending": _never_ending,
}
