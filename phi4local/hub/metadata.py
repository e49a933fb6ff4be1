"""The transport below huggingface_hub's questions: answers are bounded, failures retried, the token kept at home."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

import httpx2
from huggingface_hub import constants, set_client_factory

from phi4local.errors import DownloadError
from phi4local.hub.body import ELSEWHERE, REDIRECT, next_url, same_origin
from phi4local.hub.trouble import TRANSIENT_STATUS, Retries, TransientError, wait_of
from phi4local.printing import printable

_ANSWER_LIMIT_BYTES = 4_000_000  # a thousand files, the most that a page has, need an eighth of it
_MOST_ANSWERS = 50
_DEADLINE_SECONDS = 60.0
_LONGEST_WAIT_SECONDS = 20.0  # nobody is told of this waiting


@contextlib.contextmanager
def bounded_client(endpoint: str) -> Iterator[None]:
    """Let huggingface_hub ask through a transport of ours."""

    def make_client() -> httpx2.Client:
        return httpx2.Client(transport=_Transport(endpoint), follow_redirects=True)

    set_client_factory(make_client)
    try:
        yield
    finally:
        set_client_factory(httpx2.Client)  # closes the one that was made


class _Transport(httpx2.BaseTransport):
    """Asks the endpoint and nobody else; what comes back is whole, small, and not packed."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._timeout = httpx2.Timeout(float(constants.HF_HUB_ETAG_TIMEOUT)).as_dict()
        self._client = httpx2.Client()  # follows the environment's proxies and certificates
        self._answers = 0
        self._in_touch = False

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if not same_origin(str(request.url), self._endpoint):
            where = printable(str(request.url))[:100]
            raise DownloadError(f"The hub sends its questions elsewhere, to `{where}`", hint=ELSEWHERE)
        self._answers += 1
        if self._answers > _MOST_ANSWERS:
            raise DownloadError(f"The hub's list has no end after {_MOST_ANSWERS} pages", hint=ELSEWHERE)
        request.headers["Accept-Encoding"] = "identity"
        request.extensions["timeout"] = self._timeout  # the library asks without one
        retries = Retries()
        while True:
            try:
                return self._ask(request)
            except TransientError as error:
                for _ in retries.pause(error, _LONGEST_WAIT_SECONDS):
                    pass

    def _ask(self, request: httpx2.Request) -> httpx2.Response:
        try:
            answer = self._client.send(request, stream=True)
            try:
                self._in_touch = True
                content = _read(answer)
            finally:
                answer.close()
        except httpx2.ConnectError as error:
            if not self._in_touch:  # nothing has worked yet: there is no network, or no hub
                raise DownloadError(
                    f"The hub cannot be reached: {printable(str(error))[:100]}", hint=_UNPLUGGED
                ) from None
            raise TransientError("The hub cannot be reached") from None
        except httpx2.TransportError as error:
            raise TransientError(f"The hub does not answer ({type(error).__name__})") from None
        headers = {name.lower(): value for name, value in answer.headers.items()}
        if answer.status_code in TRANSIENT_STATUS:
            raise TransientError(f"The hub answered {answer.status_code}", wait_of(headers))
        if answer.status_code == 200:
            _check_json(content)
        elif answer.status_code in REDIRECT:
            next_url(str(request.url), headers.get("location", ""))
        return httpx2.Response(answer.status_code, headers=answer.headers, content=content, request=request)

    def close(self) -> None:
        self._client.close()


_UNPLUGGED = "`phi4local list` shows what is here and works without a network"


def _read(answer: httpx2.Response) -> bytes:
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise DownloadError("The hub packs its answer, which was not asked for", hint=ELSEWHERE)
    if answer.headers.get("content-type", "").startswith("text/html") and answer.status_code == 200:
        raise DownloadError(
            "A web page came in the place of the hub's answer", hint="Log in to this network in a browser, then again"
        )
    data, until = bytearray(), time.monotonic() + _DEADLINE_SECONDS
    for chunk in answer.iter_raw():
        data += chunk
        if len(data) > _ANSWER_LIMIT_BYTES:
            raise DownloadError(f"The hub's answer is longer than {_ANSWER_LIMIT_BYTES} bytes", hint=ELSEWHERE)
        if time.monotonic() > until:
            raise TransientError("The hub's answer does not end")
    return bytes(data)


def _check_json(content: bytes) -> None:
    """Refuse deep or unreadable values before the library parses them."""
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        raise DownloadError("The hub's answer is not JSON", hint=ELSEWHERE) from None
