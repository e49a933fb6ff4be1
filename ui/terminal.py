"""The terminal under the chat: a paste is text whatever it holds, and signals leave as a key would.

Textual's parser acts on the rest of a bracketed paste as keys once an ESC is in it. Its driver ends in a traceback for
a byte that is not UTF-8, and waits for ever once the terminal is gone.

    def get_driver_class(self) -> type[Driver]:         # in the app
        return instead_of(super().get_driver_class())

    async def run_async(self, **how: Any) -> None:
        with leaving_on_signals(self):
            await super().run_async(**how)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import signal
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TextIO, cast

from textual import constants, events
from textual._time import get_time
from textual._xterm_parser import BRACKETED_PASTE_END as END
from textual._xterm_parser import BRACKETED_PASTE_START as START
from textual._xterm_parser import XTermParser
from textual.app import App
from textual.driver import Driver
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

_SILENCE_SECONDS = 2.0  # after which a paste whose end has not come is told
_MOST_CHARACTERS = 16 << 20  # of one paste; a longer one is told in pieces
_LONGEST_KEYS = 64  # characters that keys and the mouse send at once
_READ_BYTES = 1 << 16
_GLANCE_SECONDS = 0.05


class PasteParser(XTermParser):
    """Takes bracketed pastes out of the input; the base class sees the rest of it and never a mark of a paste."""

    def __init__(self, debug: bool = False) -> None:
        self._held = ""  # the end of the input, where the mark that is looked for may begin
        self._missed = ""  # the same, once it was taken for a key because nothing followed
        self._pasting = self._is_quiet = False
        self._pieces: list[str] = []
        self._size = 0
        self._came_at = 0.0
        super().__init__(debug)

    def feed(self, data: str) -> Iterator[Message]:
        """What the input means; an empty string is its end."""
        self._came_at = get_time()
        if not data or (self._is_quiet and self._is_typed(data)):
            yield from self._end_paste()
        if not data:
            if self._held:
                yield from super().feed(self._held)
            yield from super().feed(data)
            return
        self._is_quiet = False
        data = self._held + self._with_missed(data)
        while data:
            mark = END if self._pasting else START
            text, found, data = data.partition(mark)
            text, self._held = (text, "") if found else _split(text, mark)
            if self._pasting:
                yield from self._add(text)
            elif text:
                yield from super().feed(text)
            if found and self._pasting:
                yield from self._end_paste()
            elif found:
                yield from self._settle()
                self._pasting = True

    def tick(self) -> Iterator[Message]:
        """What the silence means; to be asked several times a second."""
        waited = get_time() - self._came_at
        if self._pasting:
            if waited >= _SILENCE_SECONDS and not self._is_quiet:
                self._is_quiet = True
                yield from self._deliver()
        elif not self._held:
            yield from super().tick()
        elif waited >= (constants.ESCAPE_DELAY if len(self._held) < 3 else _SILENCE_SECONDS):
            # Esc, or Alt with a bracket; nothing else sends so little.
            self._missed, self._held = self._held, ""
            yield from super().feed(self._missed)
            yield from self._settle()

    def _add(self, text: str) -> Iterator[Message]:
        self._pieces.append(text)
        self._size += len(text)
        if self._size >= _MOST_CHARACTERS:
            yield from self._deliver()

    def _end_paste(self) -> Iterator[Message]:
        if self._pasting:
            yield from self._add(self._held)
            yield from self._deliver()
            self._held = ""
            self._pasting = self._is_quiet = False

    def _deliver(self) -> Iterator[Message]:
        text = "".join(self._pieces)
        self._pieces, self._size = [], 0
        if text:
            yield events.Paste(text.replace("\x00", ""))  # as Textual does

    def _settle(self) -> Iterator[Message]:
        """Let the base class make keys of a sequence that does not go on."""
        if self._timeout_time is not None:
            self._timeout_time = 0.0
            yield from super().tick()

    def _with_missed(self, data: str) -> str:
        """On a slow line the rest of a mark may come after its beginning was taken for a key."""
        missed, self._missed = self._missed, ""
        return missed + data if missed and data.startswith(START[len(missed) :]) else data

    def _is_typed(self, data: str) -> bool:
        """Whether keys or the mouse send this, rather than a paste that goes on after a silence."""
        return END not in self._held + data and (len(data) <= _LONGEST_KEYS or data.startswith("\x1b"))


def _split(text: str, mark: str) -> tuple[str, str]:
    """The text, and its end from where it may be the beginning of `mark`."""
    for length in range(len(mark) - 1, 0, -1):
        if text.endswith(mark[:length]):
            return text[:-length], text[-length:]
    return text, ""


class TerminalDriver(LinuxDriver):
    """Textual's driver for a terminal that may send anything and may go away, with which the app is left."""

    def __init__(
        self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]
        self._file = cast(Any, _Output(cast(TextIO, self._file), self._let_go))

    def run_input_thread(self) -> None:
        """Read until the app or the input ends."""
        parser = PasteParser(self._debug)
        decode = getincrementaldecoder("utf-8")("replace").decode
        with selectors.SelectSelector() as selector:  # macOS has no other for terminals
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                if selector.select(_GLANCE_SECONDS):
                    data = self._read()
                    if data == b"":
                        break
                    if text := decode(data or b""):
                        self._process(parser.feed(text))
                self._process(parser.tick())
        if not self.exit_event.is_set() and self.fileno in self._terminals:
            self._let_go()
            _ask_to_leave(self._app, self._loop)

    def _read(self) -> bytes | None:
        """What came; None: another has read it; no bytes: the input has ended."""
        try:
            return os.read(self.fileno, _READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _process(self, found: Iterable[Message]) -> None:
        for message in found:
            self.process_message(message)

    def _let_go(self) -> None:
        """Put nothing in the place of a terminal that is gone, so that no writing fails, here or at Python's exit."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in self._terminals:
            if not os.isatty(number):  # else something else has failed
                os.dup2(nothing, number)
        os.close(nothing)


class _Output:
    """A file that never fails: the thread that writes would end, and those that give it work would wait for ever."""

    def __init__(self, file: TextIO, failed: Callable[[], None]) -> None:
        self.fileno = file.fileno
        self._file = file
        self._failed = failed

    def write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError:
            self._failed()

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError:
            self._failed()


def instead_of(usual: type[Driver]) -> type[Driver]:
    """Our driver in the place of Textual's for terminals; a browser's or a test's stays."""
    return TerminalDriver if usual is LinuxDriver else usual


@contextlib.contextmanager
def leaving_on_signals(app: App[Any]) -> Iterator[None]:
    """While the block runs SIGTERM, and SIGHUP of a terminal that closes, leave the app as its `quit` does.

    A second SIGTERM ends the process at once; a second SIGHUP does not, because shell and kernel send one each. The
    handlers are Python's and not the loop's, which wait while the loop does: for a terminal that stands still, say.
    """
    loop = asyncio.get_running_loop()

    def leave(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
        _ask_to_leave(app, loop)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    ours = [number for number, handler in before.items() if handler not in (None, signal.SIG_IGN)]  # nohup's stays
    try:
        for number in ours:
            signal.signal(number, leave)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _ask_to_leave(app: App[Any], loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon_threadsafe(app.call_next, app.action_quit)
