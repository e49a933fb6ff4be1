"""A headless Chromium that a test drives over the DevTools protocol: keys in, the terminal's text and pictures out."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

SECONDS = 30.0
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = ("--headless=new", "--no-sandbox", "--remote-debugging-port=0", "--no-first-run", "--disable-sync")
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")
_DOMAINS = ("Page", "Network", "Runtime", "Log")
# key -> its code, its Windows number and the text that it types
_KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Tab": ("Tab", 9, ""),
    "Backspace": ("Backspace", 8, ""),
    "PageUp": ("PageUp", 33, ""),
    "PageDown": ("PageDown", 34, ""),
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    **{f"F{number}": (f"F{number}", 111 + number, "") for number in range(1, 13)},
}
_CTRL = 2
# The page keeps its terminal to itself; its owner is the one object that is ever given a `websocket_url`.
_FIND_TERMINAL = """
Object.defineProperty(Object.prototype, "websocket_url", {set(url) {
  Object.defineProperty(this, "websocket_url", {value: url});
  Object.defineProperty(window, "terminalOwner", {value: this, configurable: true});
}});
"""
_READ_SCREEN = """(() => {
  const buffer = window.terminalOwner?.terminal.buffer.active;
  if (!buffer) return "";
  return Array.from({length: terminalOwner.terminal.rows}, (_, row) =>
    buffer.getLine(buffer.viewportY + row)?.translateToString(true) ?? "").join("\\n");
})()"""


def find() -> str | None:
    """The browser's program, where there is one."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One browser with one tab at a time: `async with Chromium(profile_folder) as browser`."""

    def __init__(self, profile: Path, *flags: str, size: tuple[int, int] = (1000, 600)) -> None:
        self._profile = profile
        self._flags = (*flags, f"--window-size={size[0]},{size[1]}")
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: list[dict[str, Any]] = []
        self._tab, self._target = "", ""

    async def __aenter__(self) -> Chromium:
        program = find()
        assert program is not None
        command = [program, *_ARGUMENTS, *_QUIET, *self._flags, f"--user-data-dir={self._profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        home = os.environ | {"HOME": str(self._profile)}
        self._process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=home, start_new_session=True)
        self._session = aiohttp.ClientSession()
        port_file = self._profile / "DevToolsActivePort"
        await until(lambda: port_file.exists() and port_file.read_text().count("\n") == 1, "Chromium did not start")
        port, path = port_file.read_text().split("\n")
        self._socket = await self._session.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._socket.close()
        await self._reader
        await self._session.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(SECONDS)

    async def open(self, url: str) -> None:
        """Load an address in a new tab; what other tabs asked for is forgotten."""
        self._events.clear()
        self._target = (await self._do("Target.createTarget", url="about:blank"))["targetId"]
        answer = await self._do("Target.attachToTarget", targetId=self._target, flatten=True)
        self._tab = answer["sessionId"]
        for domain in _DOMAINS:
            await self._do(f"{domain}.enable")
        await self._do("Page.addScriptToEvaluateOnNewDocument", source=_FIND_TERMINAL)
        await self._do("Page.navigate", url=url)

    async def reload(self) -> None:
        """Load the page again."""
        await self._do("Page.reload")

    async def close_tab(self) -> None:
        """Close the tab, as a user does."""
        target, self._tab = self._target, ""
        await self._do("Target.closeTarget", targetId=target)

    async def type(self, text: str) -> None:
        """Press the keys of a text, one after the other; letters that no key has come as from an input method."""
        for character in text:
            if character.isascii():
                await self._key(key=character, text=character)
            else:
                await self._do("Input.insertText", text=character)

    async def press(self, key: str) -> None:
        """Press a key by its name in the DOM, or `ctrl+` and a letter."""
        if key.startswith("ctrl+"):
            letter = key.removeprefix("ctrl+")
            number = ord(letter.upper())
            await self._key(key=letter, code=f"Key{letter.upper()}", windowsVirtualKeyCode=number, modifiers=_CTRL)
            return
        code, number, text = _KEYS[key]
        await self._key(key=key, code=code, windowsVirtualKeyCode=number, text=text)

    async def click(self, x: int, y: int) -> None:
        """Press and release the left button at a place of the page."""
        for kind in ("mousePressed", "mouseReleased"):
            await self._do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def screen_text(self) -> str:
        """What the terminal in the page shows, line by line."""
        return str(await self.value(_READ_SCREEN))

    async def wait_for(self, text: str, seconds: float = SECONDS) -> str:
        """The screen once it shows `text`."""
        end = time.monotonic() + seconds
        while text not in (screen := await self._settled(_READ_SCREEN) or ""):
            assert time.monotonic() < end, f"no {text!r} on\n{screen}\n{self.complaints()}"
            await asyncio.sleep(0.05)
        return screen

    async def wait_until(self, expression: str, seconds: float = SECONDS) -> None:
        """Return once a line of JavaScript is true in the page."""
        end = time.monotonic() + seconds
        while not await self._settled(expression):
            assert time.monotonic() < end, f"never {expression}\n{self.complaints()}"
            await asyncio.sleep(0.05)

    async def value(self, expression: str) -> Any:
        """What a line of JavaScript is in the page."""
        answer = await self._do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def _settled(self, expression: str) -> Any:
        """A value, or None while the tab goes from one page to another."""
        with contextlib.suppress(AssertionError):
            return await self.value(expression)
        return None

    async def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode((await self._do("Page.captureScreenshot"))["data"]))

    def requests(self) -> list[str]:
        """Every address that the tab asked for, sockets included."""
        asked = [event["params"]["request"]["url"] for event in self._of("Network.requestWillBeSent")]
        return asked + [event["params"]["url"] for event in self._of("Network.webSocketCreated")]

    def complaints(self) -> list[str]:
        """Exceptions of the page, and the errors that the browser logged: refused loads, broken policies."""
        logged = [event["params"]["entry"] for event in self._of("Log.entryAdded")]
        thrown = [event["params"]["exceptionDetails"] for event in self._of("Runtime.exceptionThrown")]
        return [entry["text"] for entry in logged if entry["level"] == "error"] + [str(details) for details in thrown]

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [event for event in self._events if event["method"] == method]

    async def _key(self, **key: Any) -> None:
        await self._do("Input.dispatchKeyEvent", type="keyDown" if key.get("text") else "rawKeyDown", **key)
        await self._do("Input.dispatchKeyEvent", type="keyUp", **(key | {"text": ""}))

    async def _do(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        coming = self._answers[number] = asyncio.get_running_loop().create_future()
        tab = {"sessionId": self._tab} if self._tab and not method.startswith("Target.") else {}
        await self._socket.send_json({"id": number, "method": method, "params": params} | tab)
        async with asyncio.timeout(SECONDS):
            answer = await coming
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    async def _read(self) -> None:
        async for message in self._socket:
            received = message.json()
            if "id" in received:
                self._answers.pop(received["id"]).set_result(received)
            else:
                self._events.append(received)


async def until(condition: Any, otherwise: str, seconds: float = SECONDS) -> None:
    """Return once `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, otherwise
        await asyncio.sleep(0.05)
