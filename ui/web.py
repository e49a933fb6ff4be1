"""The terminal app in a browser of this machine: Textual's own web serving, on loopback, behind a token.

Every tab runs `command` in a process of its own. Knows nothing of the app, except that it is one of Textual.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp_jinja2
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from textual_serve.server import Server, to_int

from phi4local.errors import UsageError
from ui.guard import Guard
from ui.served import Served, as_terminal_bytes

_PAGE = Path(__file__).parent / "page"
_SIZE = (("width", 80), ("height", 24))
_MOST_APPS = 4
_MOST_MESSAGE_BYTES = 4 << 20  # a paste is one message
_CLOSE_SECONDS = 2.0  # how long a tab may take to answer that it is closed
_SHUTDOWN_SECONDS = 15.0  # longer than the most patient end of an app
# Half an emoji or a size without a number, say: nothing is made of it.
_NO_MESSAGE = (AssertionError, AttributeError, LookupError, TypeError, ValueError)


def serve(command: Sequence[str], *, announce: Callable[[str], object], title: str, port: int = 0) -> None:
    """Serve until Ctrl-C; `announce` gets the address, whose port is a free one for 0, and what failing apps say.

    The address is for the user's eyes: as an argument of a browser's process every user of the machine could read it.
    """
    with _listen(port) as listening:
        guard = Guard(listening.getsockname()[1])
        asyncio.run(_Server(command, title, guard, announce).run(listening))


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # without the address that `strerror` adds
        raise UsageError(f"Port {port} cannot be opened: {reason}", hint="Leave the port out") from None


class _Server(Server):
    """Textual's server with a page of ours, which needs nothing from elsewhere."""

    def __init__(self, command: Sequence[str], title: str, guard: Guard, announce: Callable[[str], object]) -> None:
        super().__init__(shlex.join(command), "127.0.0.1", guard.port, title, templates_path=_PAGE)
        self._arguments = command
        self._guard = guard
        self._announce = announce
        self._tabs: set[web.WebSocketResponse] = set()
        self._apps: set[Served] = set()

    async def run(self, listening: socket.socket) -> None:
        """Serve until a signal ends it; no app is left when this returns."""
        app = await self._make_app()
        self._guard.install(app)
        app.router.add_static("/page", _PAGE)
        runner = web.AppRunner(app, access_log=None, logger=_logger(), shutdown_timeout=_SHUTDOWN_SECONDS)
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        try:
            await runner.setup()
            await web.SockSite(runner, listening).start()
            self._announce(self._guard.address)
            await ended.wait()
        finally:
            await runner.cleanup()

    async def on_startup(self, app: web.Application) -> None:
        """Print nothing."""

    async def on_shutdown(self, app: web.Application) -> None:  # noqa: ARG002  the base class's signature
        """Close every tab's connection, which ends its app."""
        await asyncio.gather(*[websocket.close() for websocket in self._tabs])

    async def handle_index(self, request: web.Request) -> web.Response:
        """The page, and the cookie with which it asks for the rest."""
        socket_url = f"ws://{request.host}/ws"
        response = aiohttp_jinja2.render_template(
            "app_index.html", request, {"title": self.title, "socket": socket_url}
        )
        self._guard.admit(response)
        return response

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Run an app for as long as its tab is there."""
        websocket = web.WebSocketResponse(
            heartbeat=15, timeout=_CLOSE_SECONDS, max_msg_size=_MOST_MESSAGE_BYTES, compress=False
        )
        await websocket.prepare(request)
        self._tabs.add(websocket)
        try:
            # A page that is loaded again finds the memory of its model free.
            await asyncio.gather(*[app.gone.wait() for app in self._apps if app.is_stopping])
            if len(self._apps) < _MOST_APPS:
                await self._run_app(websocket, request)
            else:
                await websocket.send_bytes(as_terminal_bytes(f"{_MOST_APPS} tabs are open already; close one of them"))
        finally:
            self._tabs.remove(websocket)
            await websocket.close()
        return websocket

    async def _run_app(self, websocket: web.WebSocketResponse, request: web.Request) -> None:
        width, height = (to_int(request.query.get(name, ""), usual) for name, usual in _SIZE)
        app = Served(self._arguments, websocket, self.download_manager)
        self._apps.add(app)
        try:
            await app.start(width, height)
            while not websocket.closed:
                with contextlib.suppress(*_NO_MESSAGE):
                    await self._process_messages(websocket, app)
        finally:
            try:
                await app.stop()
            finally:
                self._apps.remove(app)
        if app.last_words:
            self._announce(app.last_words)


def _logger() -> logging.Logger:
    """Tracebacks of bugs; a request that cannot be parsed is none, and its text may hold the token."""
    logging.getLogger("textual-serve").addHandler(logging.NullHandler())
    logger = logging.getLogger("phi4local.web")
    logger.addFilter(lambda record: not isinstance((record.exc_info or (None, None))[1], HttpProcessingError))
    return logger
