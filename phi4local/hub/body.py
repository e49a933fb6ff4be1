"""One answer with a file's bytes: GET with Range, redirects followed by hand, every header distrusted.

http.client of the standard library reads a quarter faster than the Hub library's client, which matters on a fast line.
Formats: RFC 9110 (Range, Content-Range, redirects). The token goes to the hub's own origin and to nobody else.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from phi4local.errors import DownloadError, NotFound
from phi4local.hub.trouble import TRANSIENT_STATUS, TransientError, wait_of
from phi4local.printing import printable

_CHUNK_BYTES = 1 << 18
REDIRECT = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_LEAST_BYTES = 4096  # fewer within the timeout is a stall
# On a path shorter than this a large window speeds nothing up; after a kill, what waits in it would be sent again.
_SHORT_PATH_MICROSECONDS, _SHORT_PATH_WINDOW_BYTES = 1000, 1 << 18
_TCP_INFO_RTT = 68  # offset of tcpi_rtt in Linux's struct tcp_info


@dataclass(frozen=True, slots=True)
class Address:
    """A file of a hub: what to ask for, how long it is when it is whole, and who may see the token."""

    endpoint: str
    path: str
    name: str
    size_bytes: int
    token: str | None
    timeout_seconds: float


class Body:
    """The open answer; `read` gives what has arrived."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, skip: int) -> None:
        self._connection, self._response, self._skip = connection, response, skip
        self._timeout = connection.timeout or 10.0
        self._since, self._arrived = time.monotonic(), 0

    def read(self, most: int) -> bytes:
        """Up to `most` bytes, at least one (TransientError)."""
        while self._skip:
            self._skip -= len(self._take(min(self._skip, _CHUNK_BYTES)))
        return self._take(min(most, _CHUNK_BYTES))

    def _take(self, most: int) -> bytes:
        try:
            data = self._response.read1(most)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: closed by another thread
            raise TransientError(_reason(error)) from None
        if not data:
            raise TransientError("The connection was cut")
        self._arrived += len(data)
        now = time.monotonic()
        if now - self._since > self._timeout:
            if self._arrived < _LEAST_BYTES:
                raise TransientError("The connection has stalled")
            self._since, self._arrived = now, 0
        return data

    def close(self) -> None:
        """End the connection."""
        self._response.close()
        self._connection.close()


def interrupt(connection: http.client.HTTPConnection) -> None:
    """Let what waits for this connection in another thread fail now."""
    with contextlib.suppress(OSError, AttributeError):  # it may be closed at the same moment
        connection.sock.shutdown(socket.SHUT_RDWR)


def open_body(address: Address, start: int, end: int, connected: Callable[[http.client.HTTPConnection], None]) -> Body:
    """Ask for the bytes of a file from `start` up to `end` (TransientError, DownloadError, NotFound).

    `connected` is told each connection, so that another thread can interrupt it.
    """
    url, span = address.endpoint + address.path, range(start, end)
    for _ in range(_MOST_REDIRECTS):
        connection, response = _request(url, address, span, connected)
        try:
            if response.status not in REDIRECT:
                return Body(connection, response, _skipped(url, response, address, span))
            url = next_url(url, response.headers.get("Location", ""))
        except BaseException:
            connection.close()
            raise
        connection.close()
    raise DownloadError(f"The hub sends from address to address for `{address.name}`", hint=ELSEWHERE)


ELSEWHERE = "Check HF_ENDPOINT, and whether this network lets the hub through"


def _request(
    url: str, address: Address, span: range, connected: Callable[[http.client.HTTPConnection], None]
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "phi4local", "Connection": "close"}
    if len(span) < address.size_bytes:
        headers["Range"] = f"bytes={span.start}-{span.stop - 1 if span.stop < address.size_bytes else ''}"
    if address.token and same_origin(url, address.endpoint):
        headers["Authorization"] = f"Bearer {address.token}"
    parts = urlsplit(url)
    connection, target, known = _connection(parts, address.timeout_seconds)
    try:
        connection.connect()
        connected(connection)
        _narrow(connection.sock)
        connection.request("GET", target, headers=headers | known)
        return connection, connection.getresponse()
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        raise _translated(error, parts.hostname or "") from None


def _translated(error: Exception, host: str) -> Exception:
    """What http.client raises, in our words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return DownloadError(
            f"The certificate of {printable(host)} is not trusted: {printable(error.verify_message)}",
            hint="Behind a company's proxy, name its certificate in SSL_CERT_FILE",
        )
    return TransientError(_reason(error))


def _connection(parts: SplitResult, timeout: float) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """A connection to the server or to the proxy that the environment names; the request's target; a login."""
    host, secure = parts.hostname or "", parts.scheme == "https"
    target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
    named = "" if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme, "")
    proxy = urlsplit(named) if named else parts
    kind = http.client.HTTPConnection if not secure else _secure_connection
    connection = kind(proxy.hostname or "", proxy.port or (443 if proxy is parts and secure else 80), timeout=timeout)
    known: dict[str, str] = {}
    if proxy is not parts:
        login = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}"
        if proxy.username:
            known = {"Proxy-Authorization": f"Basic {b64encode(login.encode()).decode()}"}
        if secure:
            connection.set_tunnel(host, parts.port or 443, known)
            known = {}  # the server behind the tunnel is not to see it
        else:
            target = parts._replace(fragment="").geturl()
    return connection, target, known


def _secure_connection(host: str, port: int, *, timeout: float) -> http.client.HTTPConnection:
    import httpx2

    # The certificates that the Hub library trusts, too.
    return http.client.HTTPSConnection(host, port, timeout=timeout, context=httpx2.create_ssl_context())


def _narrow(connected: socket.socket) -> None:
    if hasattr(socket, "TCP_INFO"):
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_RTT + 4)
        if int.from_bytes(info[_TCP_INFO_RTT:], "little") < _SHORT_PATH_MICROSECONDS:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SHORT_PATH_WINDOW_BYTES)


def next_url(url: str, location: str) -> str:
    """Where a redirect leads, if that is a plain address of the same or a safer kind (DownloadError)."""
    try:
        location = urljoin(url, location)
        parts = urlsplit(location)
        plain = location.isascii() and location.isprintable() and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, plain = urlsplit(""), False
    allowed = ("https",) if url.startswith("https:") else ("http", "https")
    if not plain or parts.scheme not in allowed:
        raise DownloadError(f"The hub redirects to `{printable(location)}`, which is no address", hint=ELSEWHERE)
    return location


def _skipped(url: str, response: http.client.HTTPResponse, address: Address, span: range) -> int:
    """Check an answer that is no redirect; how many of its bytes come before the wanted ones."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    if response.status not in (200, 206):
        _refuse(url, response.status, headers, address)
    if headers.get("content-type", "").startswith("text/html"):
        raise DownloadError(
            f"A web page came in the place of `{address.name}`", hint="Log in to this network in a browser, then again"
        )
    if headers.get("content-encoding", "identity") != "identity":
        raise TransientError(f"The server packs `{address.name}`, which was not asked for")
    length = headers.get("content-length", "")
    left = int(length[:18]) if length.isascii() and length.isdigit() else None
    if response.status == 200:
        if left != address.size_bytes:
            raise TransientError(f"The server has {left} bytes of `{address.name}`, the hub lists {address.size_bytes}")
        return span.start
    expected = f"bytes {span.start}-{span.stop - 1}/{address.size_bytes}"
    if re.sub(r"\s+", " ", headers.get("content-range", "")) != expected or left != len(span):
        got = printable(headers.get("content-range", "nothing"))
        raise TransientError(f"The server sent `{got}` of `{address.name}`, asked for was `{expected}`")
    return 0


def _refuse(url: str, status: int, headers: dict[str, str], address: Address) -> None:
    """The error for an answer without a file."""
    if status in TRANSIENT_STATUS:
        raise TransientError(f"The server answered {status}", wait_of(headers))
    if not same_origin(url, address.endpoint):  # a signed address has expired; the next attempt gets a new one
        raise TransientError(f"The file server answered {status} for `{address.name}`")
    code = headers.get("x-error-code", "")
    if status in (401, 403):
        raise DownloadError(f"The hub does not give `{address.name}` to everybody", hint=hint_for_access(code))
    if status == 404:
        raise NotFound(f"The hub has no `{address.name}`", hint="It may have moved; try again later")
    if status == 416:
        raise TransientError(f"The server has less of `{address.name}` than the hub lists")
    raise DownloadError(f"The hub answered {status} for `{address.name}`", hint=ELSEWHERE)


def hint_for_access(code: str) -> str:
    """What to do where the hub asks who is there."""
    if code == "GatedRepo":
        return "Accept its conditions on the model's page, and set HF_TOKEN to a token of yours"
    return "Set HF_TOKEN to a token of yours that may read it"


def same_origin(one: str, other: str) -> bool:
    """Whether scheme, host and port are the same."""
    return _origin(one) == _origin(other)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "The connection has stalled"
    if isinstance(error, ConnectionResetError | http.client.IncompleteRead | http.client.RemoteDisconnected):
        return "The connection was cut"
    if isinstance(error, socket.gaierror):
        return "The server's name is not known here"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"The connection failed ({printable(text)[:100]})"
