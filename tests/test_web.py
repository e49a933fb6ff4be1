"""The server behind a browser: whom it answers, what it prints, and that no app outlives its tab or its server."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import psutil
import pytest

from phi4local.errors import UsageError
from tests.serving import ECHO, FAILING, SECONDS, STUBBORN, Serving, wait_gone
from ui.web import serve

PATHS = ("/", "/ws", "/static/js/textual.js", "/static/", "/page/page.js", "/download/key", "/nothing", "/?token=")
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server whose app is not started by most of these tests. Not to be ended."""
    with Serving(ECHO, tmp_path_factory.mktemp("echo")) as running:
        yield running


def cookie(server: Serving) -> str:
    return f"phi4local-{server.port}={server.token}"


# -- who is answered


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_served_without_the_token(server: Serving, path: str) -> None:
    for headers in ({}, {"Cookie": f"phi4local-{server.port}=no"}, {"Cookie": f"phi4local-{server.port + 1}=no"}):
        status, _, text = server.ask(path, **headers)
        assert status == 403
        assert text.count("\n") == 1
        assert text.endswith("\n")
    status, *_ = server.ask(path, Cookie=cookie(server))
    assert status in (200, 400, 404)  # 400: no websocket was asked for


@pytest.mark.parametrize("token", ["x", "%00", "%ff", "é", "%F0%9F%98%80", "a" * 5000, "token"])
def test_a_wrong_token_is_refused(server: Serving, token: str) -> None:
    assert server.ask(f"/?token={quote(token, safe='%')}")[0] == 403
    assert server.ask("/", Cookie=f"phi4local-{server.port}={token}")[0] == 403
    assert server.ask(f"/?token={server.token[:-1]}")[0] == 403
    assert server.ask(f"/?token={server.token}x")[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_other_methods_are_no_way_around(server: Serving, method: str) -> None:
    assert server.ask("/", method=method)[0] == 403


def test_the_address_gives_a_cookie_that_no_script_and_no_other_site_can_use(server: Serving) -> None:
    status, headers, page = server.ask(f"/?token={server.token}")
    assert status == 200
    assert headers["Set-Cookie"] == f"{cookie(server)}; HttpOnly; Path=/; SameSite=Strict"
    assert server.token not in page
    assert headers["Content-Type"] == "text/html; charset=utf-8"


HOSTS = (
    "evil.com",
    "evil.com:{port}",
    "127.0.0.1.evil.com:{port}",
    "localhost.evil.com:{port}",
    "127.0.0.1",
    "localhost",
    "127.0.0.1:1",
    "127.0.0.1:{port}0",
    "127.0.0.1:{port}@evil.com",
    "127.0.0.1:{port}, evil.com",
    "evil.com, 127.0.0.1:{port}",
    "127.1:{port}",
    "2130706433:{port}",
    "0.0.0.0:{port}",
    "[::ffff:127.0.0.1]:{port}",
    "localhost.:{port}",
    "",
)


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_of_somebody_else_is_refused(server: Serving, host: str) -> None:
    for headers in ({}, UPGRADE):
        path = "/ws" if headers else "/"
        status, answered, _ = server.ask(path, hosts=[host.format(port=server.port)], Cookie=cookie(server), **headers)
        assert status == 403
        assert "Set-Cookie" not in answered


def test_two_names_and_none_are_refused(server: Serving) -> None:
    own = f"127.0.0.1:{server.port}"
    for hosts in ([own, "evil.com"], ["evil.com", own], [own, own], []):
        assert server.ask(f"/?token={server.token}", hosts=hosts)[0] in (400, 403)  # 400: aiohttp's parser was first


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_its_own_names_are_answered(server: Serving, name: str) -> None:
    host = f"{name}:{server.port}"
    status, headers, page = server.ask("/", hosts=[host], Cookie=cookie(server))
    assert status == 200
    assert f'"ws://{host}/ws"' in page
    assert f"connect-src 'self' ws://{host};" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.com", "https://127.0.0.1:{port}", "http://localhost:{port}", ""]
)
def test_a_page_of_another_origin_gets_no_socket(server: Serving, origin: str) -> None:
    headers = UPGRADE | {"Cookie": cookie(server), "Origin": origin.format(port=server.port)}
    assert server.ask("/ws", **headers)[0] == 403
    assert server.apps() == []


def test_its_own_page_gets_a_socket_only_with_the_token(server: Serving) -> None:
    headers = UPGRADE | {"Origin": f"http://127.0.0.1:{server.port}"}
    assert server.ask("/ws", **headers)[0] == 403
    assert server.ask("/ws", Cookie=cookie(server), **headers)[0] == 101
    wait_gone(server.apps(), SECONDS)


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_binds_the_browser(server: Serving, path: str) -> None:
    for headers in ({}, {"Cookie": cookie(server)}):
        _, answered, text = server.ask(path, **headers)
        assert answered["Referrer-Policy"] == "no-referrer"
        assert answered["X-Content-Type-Options"] == "nosniff"
        assert answered["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; ")
        assert not [name for name in answered if name.lower().startswith("access-control")]
        assert path.startswith("/static") or "://" not in text.replace("ws://127.0.0.1", "")


def test_only_loopback_is_listened_on(server: Serving) -> None:
    listening = [
        c.laddr for c in psutil.Process(server.process.pid).net_connections() if c.status == psutil.CONN_LISTEN
    ]
    assert listening == [("127.0.0.1", server.port)]


def test_a_port_that_is_taken_is_said(server: Serving) -> None:
    with pytest.raises(UsageError, match=f"^Port {server.port} cannot be opened: Address already in use$"):
        serve(["true"], announce=print, title="", port=server.port)


# -- what it prints


def test_it_prints_one_line_and_never_the_token_again(tmp_path: Path) -> None:
    with Serving(ECHO, tmp_path) as server:
        for path in (f"/?token={server.token}", f"/nothing?token={server.token}", "/ws"):
            server.ask(path, Cookie=cookie(server))
        for line in (
            f"GET /?token={server.token}",
            f"G\0T /?token={server.token} HTTP/1.1",
            f"GET /\0{server.token} HTTP/9",
        ):
            with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as broken:
                broken.sendall(f"{line}\r\n\r\n".encode())
                broken.recv(1000)
        assert server.interrupt() == ("", "")
        assert server.process.returncode == 0


# -- one app a tab


@contextlib.asynccontextmanager
async def browsing(server: Serving) -> AsyncIterator[Callable[[bytes], Awaitable[aiohttp.ClientWebSocketResponse]]]:
    """What opens a tab and waits until it shows something; all of them are closed at the end."""
    async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as tabs:

        async def open_tab(text: bytes) -> aiohttp.ClientWebSocketResponse:
            url = f"ws://127.0.0.1:{server.port}/ws?token={server.token}&width=60&height=20"
            tab = await tabs.enter_async_context(session.ws_connect(url))
            await heard(tab, text)
            return tab

        yield open_tab


async def heard(tab: aiohttp.ClientWebSocketResponse, text: bytes) -> bytes:
    """All that a tab is sent until it contains `text`, or until its end for b""."""
    received = b""
    async with asyncio.timeout(SECONDS):
        while not text or text not in received:
            message = await tab.receive()
            if message.type is not aiohttp.WSMsgType.BINARY:
                assert not text, (message, received)
                break
            received += message.data
    return received


def test_an_app_ends_with_its_tab(tmp_path: Path) -> None:
    async def converse(server: Serving) -> None:
        async with browsing(server) as open_tab:
            tab = await open_tab(b"ready")
            (app,) = server.apps()
            await tab.send_json(["stdin", "hello\r"])
            await heard(tab, b"you said: hello")
            await tab.close()
            await asyncio.to_thread(wait_gone, [app], 4.0)
            assert server.apps() == []

    with Serving(ECHO, tmp_path) as server:
        asyncio.run(converse(server))
        assert server.interrupt() == ("", "")


def test_a_tab_ends_with_its_app(tmp_path: Path) -> None:
    async def converse(server: Serving) -> None:
        async with browsing(server) as open_tab:
            tab = await open_tab(b"ready")
            await tab.send_json(["stdin", "quit\r"])
            assert b"exit code" not in await heard(tab, b"")
            tab = await open_tab(b"ready")
            await tab.send_json(["stdin", "crash\r"])
            assert b"RuntimeError: as you wish" in await heard(tab, b"")

    with Serving(ECHO, tmp_path) as server:
        asyncio.run(converse(server))
        out, err = server.interrupt()
        assert out == ""
        assert "RuntimeError: as you wish" in err


def test_what_is_no_message_is_passed_over(tmp_path: Path) -> None:
    async def converse(server: Serving) -> None:
        async with browsing(server) as open_tab:
            tab = await open_tab(b"ready")
            for text in ("", "{", "[]", "{}", "0", '["stdin"]', '["stdin", 3]', '["stdin", "\\ud83d"]', '["resize"]'):
                await tab.send_str(text)
            for width, height in ((0, 0), (-5, 10**9), ("x", None), (60, 20)):
                await tab.send_json(["resize", {"width": width, "height": height}])
            await tab.send_bytes(b"\0" * 1000)
            await tab.send_json(["stdin", "still here\r"])
            await heard(tab, b"you said: still here")
            (app,) = server.apps()
            with contextlib.suppress(ConnectionError):
                await tab.send_json(["stdin", "x" * (5 << 20)])
            await asyncio.to_thread(wait_gone, [app], 4.0)

    with Serving(ECHO, tmp_path) as server:
        asyncio.run(converse(server))
        assert server.interrupt() == ("", "")


def test_a_fifth_tab_is_told_so(tmp_path: Path) -> None:
    async def converse(server: Serving) -> None:
        async with browsing(server) as open_tab:
            tabs = [await open_tab(b"ready") for _ in range(4)]
            await open_tab(b"4 tabs are open already; close one of them")
            assert len(server.apps()) == 4
            await tabs[0].close()
            tabs[0] = await open_tab(b"ready")
            assert len(server.apps()) == 4

    with Serving(ECHO, tmp_path) as server:
        asyncio.run(converse(server))


def test_why_an_app_did_not_start_is_said_in_the_tab_and_the_terminal(tmp_path: Path) -> None:
    async def converse(server: Serving) -> None:
        async with browsing(server) as open_tab:
            await open_tab("error: There is no model \ufffd[31m`nobody`".encode())

    with Serving(FAILING, tmp_path) as server:
        for _ in range(20):
            asyncio.run(converse(server))
        out, err = server.interrupt()
        assert (out, err) == ("", "error: There is no model \x1b[31m`nobody`\n" * 20)  # `announce` makes it safe


# -- the end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_app_outlives_the_server(tmp_path: Path, number: signal.Signals) -> None:
    async def converse(server: Serving) -> None:
        async with browsing(server) as open_tab:
            tabs = [await open_tab(b"ready") for _ in range(2)]
            apps = server.apps()
            begun = time.monotonic()
            assert await asyncio.to_thread(server.interrupt, number) == ("", "")
            await asyncio.to_thread(wait_gone, apps, 5.0)
            assert time.monotonic() - begun < 5
            assert len(tabs) == len(apps)

    with Serving(ECHO, tmp_path) as server:
        asyncio.run(converse(server))
        assert server.process.returncode == (-9 if number == signal.SIGKILL else 0)


def test_an_app_that_will_not_end_is_killed(tmp_path: Path) -> None:
    async def converse(server: Serving) -> None:
        async with browsing(server) as open_tab:
            tab = await open_tab(b"xxxx")
            apps = server.apps()
            assert len(apps) == 2
            await tab.close()
            await asyncio.to_thread(wait_gone, apps, 12.0)

    with Serving(STUBBORN, tmp_path) as server:
        asyncio.run(converse(server))
        assert server.interrupt() == ("", "")
