"""A terminal that the benches run programs in: a pty whose output is kept with the times at which it came.

It says that it knows synchronized output (mode 2026), so the program marks where each frame ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import psutil

FRAME_END, CTRL_Q = b"\x1b[?2026l", b"\x11"
_ASKED, _KNOWS_SYNC = b"\x1b[?2026$p", b"\x1b[?2026;2$y"


class Terminal:
    """A program on a pty; a thread keeps all it writes and when that came."""

    def __init__(self, arguments: list[str], home: Path, cells: tuple[int, int]) -> None:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PHI4LOCAL_")}
        variables |= {"PHI4LOCAL_HOME": str(home), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        variables.pop("NO_COLOR", None)
        self.started = time.monotonic()
        self.child = pexpect.spawn(
            sys.executable,
            arguments,
            env=variables,
            dimensions=(cells[1], cells[0]),
            cwd=str(Path(__file__).parents[1]),
        )
        self.data = bytearray()
        self._ends: list[int] = []  # where each piece of `data` ends, and when it came
        self._times: list[float] = []
        self._news = threading.Condition()
        self.has_ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self.child.child_fd, 1 << 16)
            except OSError:
                piece = b""
            now = time.monotonic()
            if not piece:
                with self._news:
                    self.has_ended = True
                    self._news.notify_all()
                return
            if _ASKED in piece:
                self.press(_KNOWS_SYNC)
            with self._news:
                self.data += piece
                self._ends.append(len(self.data))
                self._times.append(now)
                self._news.notify_all()

    def press(self, keys: bytes) -> float:
        """Type; when that was."""
        os.write(self.child.child_fd, keys)
        return time.monotonic()

    def time_of(self, position: int) -> float:
        return self._times[bisect_right(self._ends, position)]

    def find(self, what: Callable[[int], int], start: int, timeout: float) -> int | None:
        """Where something ends that `what` finds from a position on (-1: not there yet); None: it has not come."""
        until = time.monotonic() + timeout
        with self._news:
            while (found := what(start)) < 0:
                if self.has_ended or time.monotonic() >= until:
                    return None
                self._news.wait(max(0.0, until - time.monotonic()))
        return found

    def shown(self, text: str | bytes, start: int = 0, timeout: float = 60) -> float:
        """When the frame with that text was there (TimeoutError)."""
        needle = text.encode() if isinstance(text, str) else text

        def frame(start: int) -> int:
            at = self.data.find(needle, start)
            return self.data.find(FRAME_END, at) if at >= 0 else -1

        end = self.find(frame, start, timeout)
        if end is None:
            raise TimeoutError(f"{text!r} has not come in {timeout} s; the last: {bytes(self.data[-400:])!r}")
        return self.time_of(end)

    def quiet(self, seconds: float = 0.3) -> None:
        """Wait until nothing has been written for so long, which a blinking cursor keeps below half a second."""
        until = time.monotonic() + 10
        while self._times and time.monotonic() < min(until, self._times[-1] + seconds):
            time.sleep(0.02)

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.child.pid).cpu_times()
        return times.user + times.system

    def close(self, timeout: float = 10) -> float:
        """Press Ctrl-Q; seconds until the process has ended."""
        pressed = self.press(CTRL_Q)
        process = psutil.Process(self.child.pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() - pressed > timeout:
                self.child.kill(9)
                raise TimeoutError("Ctrl-Q does not leave")
            time.sleep(0.002)
        ended = time.monotonic()
        self.child.close(force=True)
        return ended - pressed


@contextmanager
def program(arguments: list[str], home: Path, cells: tuple[int, int]) -> Iterator[Terminal]:
    """Run it; it is killed if something goes wrong."""
    terminal = Terminal(arguments, home, cells)
    try:
        yield terminal
    finally:
        terminal.child.close(force=True)
