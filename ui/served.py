"""One app process behind one browser tab: started without a shell, ended with the tab, its last words shown there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
from collections.abc import Coroutine, Sequence
from typing import Any

from aiohttp import web
from textual_serve.app_service import AppService
from textual_serve.download_manager import DownloadManager

from phi4local.printing import printable_lines

_PATIENCE_SECONDS = 4.0  # for an app that was asked to end, and again for one that was told to
_TAIL_BYTES = 16_000
_MOST_CELLS = 1000


def as_terminal_bytes(text: str) -> bytes:
    """Plain text for a terminal whose app is gone: on the main screen, every line from its left end."""
    return b"\x1b[?1049l\x1b[2J\x1b[H" + printable_lines(text).replace("\n", "\r\n").encode()


class Served(AppService):
    """An app process; it is gone when `stop` returns."""

    def __init__(self, command: Sequence[str], websocket: web.WebSocketResponse, downloads: DownloadManager) -> None:
        super().__init__(
            shlex.join(command),
            write_bytes=websocket.send_bytes,
            write_str=websocket.send_str,
            close=lambda: _close(websocket),
            download_manager=downloads,
        )
        self._arguments = command
        self.is_stopping = False
        self.gone = asyncio.Event()
        self.last_words = ""

    def _build_environment(self, width: int = 80, height: int = 24) -> dict[str, str]:
        driver = {"TEXTUAL_DRIVER": "ui.web_driver:Driver"}
        return super()._build_environment(_cells(width), _cells(height)) | driver

    async def _open_app_process(self, width: int = 80, height: int = 24) -> asyncio.subprocess.Process:
        """Start the app in a session of its own: Ctrl-C in the server's terminal is the server's to pass on."""
        pipe = asyncio.subprocess.PIPE
        self._process = process = await asyncio.create_subprocess_exec(
            *self._arguments,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=self._build_environment(width, height),
            start_new_session=True,
        )
        self._stdin = process.stdin
        return process

    async def set_terminal_size(self, width: int, height: int) -> None:
        """Tell the app about the new size of the terminal."""
        await super().set_terminal_size(_cells(width), _cells(height))

    async def run(self) -> None:
        """Pass on what the app writes until it has ended, then close the tab's connection.

        The base class's own is lost where an app fails at once, and prints what it was told on stderr as it came.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        tail = asyncio.create_task(_tail(self._process.stderr))
        try:
            # The app has ended, the tab is gone, or this is no app of Textual's.
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, LookupError, ValueError):
                await self._relay(self._process.stdout)
            # An app that ends must not wait for somebody to read what it writes meanwhile.
            await _tail(self._process.stdout)
            code, words = await self._process.wait(), (await tail).strip()
            if not self.is_stopping and (code or words):
                self.last_words = words or f"The app ended with exit code {code}"
                with contextlib.suppress(ConnectionError):
                    await self.remote_write_bytes(as_terminal_bytes(self.last_words))
        finally:
            tail.cancel()
            await self.remote_close()

    async def _relay(self, output: asyncio.StreamReader) -> None:
        """Act on packets: a letter, four bytes of length and as many of payload, after a line of their own."""
        handlers = {b"D": self.on_data, b"M": self.on_meta, b"P": self.on_packed}
        while await output.readline() not in (b"__GANGLION__\n", b""):
            pass
        while True:
            handle = handlers[await output.readexactly(1)]
            size = int.from_bytes(await output.readexactly(4), "big")
            await handle(await output.readexactly(size))

    async def on_meta(self, data: bytes) -> None:
        """Its farewell is not its end: the engine is closed after it, and errors are said."""
        if json.loads(data).get("type") != "exit":
            await super().on_meta(data)

    async def stop(self) -> None:
        """Ask the app to end, then tell it, then kill it."""
        self.is_stopping = True
        try:
            await self._end()
        finally:
            self.gone.set()

    async def _end(self) -> None:
        if self._process is None or self._task is None:
            return
        await self._download_manager.cancel_app_downloads(self.app_service_id)
        await _patiently(self.send_meta({"type": "quit"}))
        self.stdin.close()
        await _patiently(self._process.wait())
        if self._process.returncode is None:
            self._process.terminate()
            await _patiently(self._process.wait())
        # Its children too: an engine in the middle of a long prompt, or one that an app left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS has the latter for one that is dead
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._task
        self._task = None


async def _close(websocket: web.WebSocketResponse) -> None:
    await websocket.close()


async def _patiently(work: Coroutine[Any, Any, object]) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(work, _PATIENCE_SECONDS)


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """The last of what is written to `stream`, at its end."""
    kept = b""
    while stream is not None and (data := await stream.read(65536)):
        kept = (kept + data)[-_TAIL_BYTES:]
    return kept.decode(errors="replace")


def _cells(count: int) -> int:
    return max(1, min(int(count), _MOST_CELLS))
