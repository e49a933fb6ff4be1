"""The page in a real browser: keys reach the app, nothing comes from elsewhere, and a closed tab ends its app."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import chromium
from tests.chromium import Chromium
from tests.serving import ECHO, FAILING, Serving, wait_gone

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="no chromium, chromium-browser or google-chrome")


def drive(app: str, folder: Path, steps: Callable[[Serving, Chromium], Awaitable[None]], *flags: str) -> None:
    """Serve an app and let a browser do these steps."""

    async def main(server: Serving) -> None:
        async with Chromium(folder / "profile", *flags) as browser:
            await steps(server, browser)

    with Serving(app, folder) as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("flags", [(), ("--disable-3d-apis",)], ids=["canvas", "no WebGL"])
def test_keys_reach_the_app_and_its_answer_the_screen(tmp_path: Path, flags: tuple[str, ...]) -> None:
    async def steps(server: Serving, browser: Chromium) -> None:
        await browser.open(server.address)
        await browser.wait_for("ready")
        await browser.type("Grüße, 世界 ∑ 😀!")
        await browser.press("Backspace")
        await browser.press("Enter")
        screen = await browser.wait_for("you said: ")
        assert "you said: Grüße, 世界 ∑ 😀" in screen
        assert "you said: Grüße, 世界 ∑ 😀!" not in screen
        await browser.screenshot(tmp_path / "screen.png")
        assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
        assert browser.complaints() == []

    drive(ECHO, tmp_path, steps, *flags)


def test_nothing_comes_from_elsewhere_and_the_token_is_not_kept(tmp_path: Path) -> None:
    async def steps(server: Serving, browser: Chromium) -> None:
        await browser.open(server.address)
        await browser.wait_for("ready")
        asked = [urlsplit(url) for url in browser.requests()]
        assert {url.netloc for url in asked} == {f"127.0.0.1:{server.port}"}
        assert [url.query for url in asked if server.token in url.geturl()] == [f"token={server.token}"]
        assert "/ws" in [url.path for url in asked]
        assert await browser.value("location.href") == f"http://127.0.0.1:{server.port}/"
        assert await browser.value("document.cookie") == ""
        assert await browser.value("history.length") <= 2
        faces = await browser.value("[...document.fonts].map(face => face.style + ' ' + face.status).join()")
        assert faces == "normal loaded,italic loaded"
        elsewhere = "fetch('http://127.0.0.1:9/').then(() => 'asked', error => 'refused')"
        assert await browser.value(elsewhere) == "refused"
        assert any("Content Security Policy" in text for text in browser.complaints())

    drive(ECHO, tmp_path, steps)


def test_localhost_does_as_well(tmp_path: Path) -> None:
    async def steps(server: Serving, browser: Chromium) -> None:
        await browser.open(server.address.replace("127.0.0.1", "localhost"))
        await browser.wait_for("ready")
        assert {urlsplit(url).netloc for url in browser.requests()} == {f"localhost:{server.port}"}

    drive(ECHO, tmp_path, steps)


def test_a_page_of_another_site_gets_nothing(tmp_path: Path) -> None:
    async def steps(server: Serving, browser: Chromium) -> None:
        await browser.open(server.address)
        await browser.wait_for("ready")
        await browser.open("about:blank")
        url = f"ws://127.0.0.1:{server.port}/ws"
        tried = f"tried = new WebSocket('{url}'); tried.onopen = () => end('open'); tried.onclose = () => end('closed')"
        assert await browser.value(f"new Promise(end => {{{tried}}})") == "closed"
        assert len(server.apps()) == 1

    drive(ECHO, tmp_path, steps)


def test_a_closed_tab_ends_its_app_and_a_reload_starts_another(tmp_path: Path) -> None:
    async def steps(server: Serving, browser: Chromium) -> None:
        await browser.open(server.address)
        await browser.wait_for("ready")
        first = server.apps()
        await browser.reload()
        await asyncio.to_thread(wait_gone, first, 4.0)
        await browser.wait_for("ready")
        second = server.apps()
        assert len(first) == len(second) == 1
        await browser.close_tab()
        await asyncio.to_thread(wait_gone, second, 4.0)

    drive(ECHO, tmp_path, steps)


def test_the_end_is_shown_and_can_be_undone(tmp_path: Path) -> None:
    async def steps(server: Serving, browser: Chromium) -> None:
        await browser.open(server.address)
        await browser.wait_for("ready")
        assert await browser.value("getComputedStyle(ended).visibility") == "hidden"
        await browser.type("quit")
        await browser.press("Enter")
        await browser.wait_until("getComputedStyle(ended).visibility == 'visible'")
        await browser.click(300, await browser.value("innerHeight") - 20)
        await browser.wait_until("getComputedStyle(ended).visibility == 'hidden'")
        await browser.wait_for("ready")

    drive(ECHO, tmp_path, steps)


def test_why_an_app_did_not_start_is_read_on_the_page(tmp_path: Path) -> None:
    async def steps(server: Serving, browser: Chromium) -> None:
        await browser.open(server.address)
        await browser.wait_for("error: There is no model \ufffd[31m`nobody`")
        await browser.wait_until("getComputedStyle(ended).visibility == 'visible'")
        await browser.screenshot(tmp_path / "failed.png")

    drive(FAILING, tmp_path, steps)


def test_ctrl_c_ends_all_within_seconds(tmp_path: Path) -> None:
    async def steps(server: Serving, browser: Chromium) -> None:
        await browser.open(server.address)
        await browser.wait_for("ready")
        apps, begun = server.apps(), time.monotonic()
        assert await asyncio.to_thread(server.interrupt) == ("", "")
        await asyncio.to_thread(wait_gone, apps, 0.1)
        assert time.monotonic() - begun < 4
        await browser.wait_until("getComputedStyle(ended).visibility == 'visible'")

    drive(ECHO, tmp_path, steps)
