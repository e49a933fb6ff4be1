"""The chat's screen as a user meets it: the program in a real terminal (a pty), everything that it writes read and timed.

    python -m bench.tui [--only stream|open|start|quit] [--cells 120x40] [--rounds 5] [--no-baseline]

`stream`: 3,000 tokens at 100 a second from an engine that only talks; sending to the end on the screen, CPU of the whole
process, and a letter typed every 150 ms. `open`: a chat of 500 messages from the list of chats, then page by page to its
beginning. `start`: `python -m phi4local` to the first box on the screen, with phi4-nano installed. `quit`: Ctrl-Q to the
end of the process. Beside them what Textual's own Markdown widget does, and what `import textual.app` alone takes.

A thing is on the screen when the frame that holds it has been written to the end: the terminal here says that it knows
synchronized output (mode 2026), which marks where frames end. What a terminal then needs to paint it is not in it. Each
typed letter is one that has not been on the screen before, so that its bytes in a frame are that key's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pexpect
import psutil

from bench.tui_child import LAST, PACE_SECONDS, TOKENS, chat_texts
from phi4local.history import History
from phi4local.settings import nano_folder

MESSAGES, MODEL = 500, "phi-4:Q4_K_M"
_ASKED, _KNOWS_SYNC, _FRAME_END = b"\x1b[?2026$p", b"\x1b[?2026;2$y", b"\x1b[?2026l"
_BOX = "╭".encode()
_TAG = re.compile(rb"m(\d{4})\.(\d\d)")
# one cell wide, and nothing else on these screens is written with them
_LETTERS = [
    chr(code) for code in (*range(0x410, 0x450), *range(0x531, 0x557), *range(0x561, 0x587), *range(0x10D0, 0x10F1))
]
PAGE_UP, SHIFT_TAB, CTRL_N, CTRL_O, CTRL_Q = b"\x1b[5~", b"\x1b[Z", b"\x0e", b"\x0f", b"\x11"


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
            return self.data.find(_FRAME_END, at) if at >= 0 else -1

        end = self.find(frame, start, timeout)
        if end is None:
            raise TimeoutError(f"{text!r} has not come in {timeout} s; the last: {bytes(self.data[-400:])!r}")
        return self.time_of(end)

    def quiet(self, seconds: float = 0.5) -> None:
        """Wait until nothing has been written for so long."""
        while self._times and time.monotonic() - self._times[-1] < seconds:
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


# ---- a long answer ----


@dataclass(frozen=True, slots=True)
class Stream:
    """`ratio`: sending to the end on the screen, by the time that the tokens alone take; `cpu`: a share of one core."""

    ratio: float
    cpu: float
    key_seconds: list[float]
    bytes_per_second: float
    lost: int


def stream(name: str, folder: Path, cells: tuple[int, int]) -> Stream:
    """One answer, and somebody who types meanwhile."""
    report = folder / f"{name}.json"
    with program(["-m", "bench.tui_child", name, str(report)], folder / name, cells) as terminal:
        terminal.shown("ready" if name == "chat" else _FRAME_END)
        terminal.quiet()
        start, cpu = len(terminal.data), terminal.cpu_seconds()
        sent = terminal.press(b"go\r" if name == "chat" else CTRL_N)
        keys, done = [], threading.Event()
        typist = threading.Thread(target=_type, args=(terminal, keys, done))
        typist.start()
        try:
            ended = terminal.shown(LAST, start, timeout=TOKENS * PACE_SECONDS * 3)
            used = terminal.cpu_seconds() - cpu
            size = len(terminal.data) - start
        finally:
            done.set()
            typist.join()
        terminal.quiet()
        seconds = [at for letter, pressed in keys if (at := _seen(terminal, letter, pressed)) is not None]
        terminal.close()
    took = ended - sent
    return Stream(took / (TOKENS * PACE_SECONDS), used / took, seconds, size / took, len(keys) - len(seconds))


def _type(terminal: Terminal, keys: list[tuple[str, float]], done: threading.Event) -> None:
    for letter in _LETTERS:
        if done.wait(0.15):
            return
        keys.append((letter, terminal.press(letter.encode())))


def _seen(terminal: Terminal, letter: str, pressed: float) -> float | None:
    """Seconds from a key to the end of the frame with its letter; None: it never came."""
    try:
        return terminal.shown(letter, timeout=0) - pressed
    except TimeoutError:
        return None


# ---- a long chat ----


@dataclass(frozen=True, slots=True)
class Opening:
    """`skipped`: paragraphs that were on no page on the way to the beginning."""

    first_seconds: float
    page_seconds: list[float]
    skipped: int
    idle_bytes: int
    idle_cpu: float


def opening(name: str, folder: Path, cells: tuple[int, int]) -> Opening:
    """Open it, rest for two seconds, and go up page by page."""
    home = folder / f"open-{name}"
    if name == "chat":
        _write_chat(home)
    count = [] if name == "chat" else [str(MESSAGES)]
    with program(["-m", "bench.tui_child", name, str(folder / "open.json"), *count], home, cells) as terminal:
        terminal.shown("ready" if name == "chat" else _FRAME_END)
        terminal.quiet()
        if name == "chat":
            start = len(terminal.data)
            terminal.press(CTRL_O)
            terminal.shown("The long one", start)
            terminal.quiet()
        start = len(terminal.data)
        pressed = terminal.press(b"\r" if name == "chat" else CTRL_N)
        first = terminal.shown(LAST, start, timeout=300) - pressed
        size, cpu = len(terminal.data), terminal.cpu_seconds()
        time.sleep(2)
        idle = len(terminal.data) - size, (terminal.cpu_seconds() - cpu) / 2
        if name == "chat":
            terminal.press(SHIFT_TAB)
            terminal.quiet()
        pages = _page_up(terminal, start)
        tags = {match[0] for match in _TAG.finditer(terminal.data, start)}
        terminal.close()
    wanted = {match[0] for text in chat_texts(MESSAGES) for match in _TAG.finditer(text.encode())}
    return Opening(first, pages, len(wanted - tags), *idle)


def _write_chat(home: Path) -> None:
    history = History(home / "history.sqlite3")
    chat = history.new_chat("The long one", model=MODEL)
    parent = None
    for number, text in enumerate(chat_texts(MESSAGES)):
        if number % 2:
            message = history.begin_answer(chat.id, parent or 0)
            history.finish(message.id, text, state="complete", stats={"ttft_seconds": 0.2, "generation_tps": 9.0})
        else:
            message = history.add(chat.id, parent, "user", text)
        parent = message.id
    history.close()


def _page_up(terminal: Terminal, start: int) -> list[float]:
    """Seconds from each key to the end of the frame that shows text from further up."""
    seconds = []
    lowest = min(match[0] for match in _TAG.finditer(terminal.data, start))
    while lowest > b"m0000.00":
        start, before = len(terminal.data), lowest

        def new_page(start: int, before: bytes = before) -> int:
            end = terminal.data.rfind(_FRAME_END, start)
            return (
                end if any(match[0] < before for match in _TAG.finditer(terminal.data, start, max(start, end))) else -1
            )

        pressed = terminal.press(PAGE_UP)
        end = terminal.find(new_page, start, timeout=5)
        if end is None:
            break
        seconds.append(terminal.time_of(end) - pressed)
        lowest = min(before, *(match[0] for match in _TAG.finditer(terminal.data, start, end)))
    return seconds


# ---- the beginning and the end ----


def first_paint(home: Path, cells: tuple[int, int]) -> tuple[float, float, bool]:
    """Seconds to the first box, seconds to leave, and whether what was typed at that moment is there."""
    with program(["-m", "phi4local"], home, cells) as terminal:
        end = terminal.find(lambda start: terminal.data.find(_BOX, start), 0, 60)
        assert end is not None, bytes(terminal.data)
        painted = terminal.time_of(end) - terminal.started
        terminal.press("ЖЩЮ".encode())
        try:
            terminal.shown("ЖЩЮ", timeout=10)
            is_kept = True
        except TimeoutError:
            is_kept = False
        terminal.quiet(1)
        return painted, terminal.close(), is_kept


def leave_generating(folder: Path, cells: tuple[int, int]) -> float:
    with program(["-m", "bench.tui_child", "chat", str(folder / "leave.json")], folder / "leave", cells) as terminal:
        terminal.shown("ready")
        terminal.press(b"go\r")
        terminal.shown("bandwidth")
        return terminal.close()


def seconds_of(code: str) -> float:
    """A whole process of the interpreter."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.monotonic() - started


# ---- the table ----


def spread(seconds: list[float]) -> str:
    if not seconds:
        return "nothing came"
    ordered = sorted(seconds)
    p95 = ordered[max(0, -(-95 * len(ordered) // 100) - 1)]
    return f"p50 {1e3 * statistics.median(ordered):6.1f} ms   p95 {1e3 * p95:6.1f} ms   max {1e3 * ordered[-1]:6.1f} ms   ({len(ordered)})"


def show_stream(name: str, one: Stream) -> None:
    print(f"stream, {name}")
    print(f"  to the end on the screen  {one.ratio:.3f} of the tokens' own {TOKENS * PACE_SECONDS:.0f} s")
    print(f"  CPU                       {one.cpu:.1%} of a core     {one.bytes_per_second / 1e3:.1f} kB/s written")
    print(f"  key to its frame          {spread(one.key_seconds)}   lost {one.lost}", flush=True)


def show_opening(name: str, one: Opening) -> None:
    print(f"open {MESSAGES} messages, {name}")
    print(f"  to the last message       {one.first_seconds:.3f} s")
    print(f"  two seconds at rest       {one.idle_cpu:.1%} of a core     {one.idle_bytes / 1e3:.1f} kB written")
    print(f"  page up                   {spread(one.page_seconds)}   paragraphs not seen {one.skipped}", flush=True)


def show_start(folder: Path, cells: tuple[int, int], rounds: int, *, leaving: bool) -> None:
    home = folder / "start"
    command = [sys.executable, "-m", "phi4local", "quantize", nano_folder(), "--to", "Q8_0"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PHI4LOCAL_HOME": str(home)})
    painted, left, kept, alone, bare = [], [], [], [], []
    for _ in range(rounds):
        for seconds, value in zip((painted, left, kept), first_paint(home, cells), strict=True):
            seconds.append(value)
        alone.append(seconds_of("import textual.app"))
        bare.append(seconds_of("pass"))
    if not leaving:
        print(f"start, {rounds} rounds: median and least")
        for label, values in (("first box", painted), ("import textual.app", alone), ("python -c pass", bare)):
            print(f"  {label:25} {statistics.median(values):.3f} s   {min(values):.3f} s")
        print(f"  typed at the first box    kept {sum(kept)} of {rounds}", flush=True)
    generating = [leave_generating(folder, cells) for _ in range(rounds)]
    print(f"quit: idle {spread(left)}\n      generating {spread(generating)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("stream", "open", "start", "quit"))
    parser.add_argument("--cells", default="120x40")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-baseline", action="store_true")
    arguments = parser.parse_args()
    columns, rows = map(int, arguments.cells.split("x"))
    cells = columns, rows
    programs = ["chat"] if arguments.no_baseline else ["chat", "markdown"]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("textual", "rich"))
    print(f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before, {columns}x{rows}")
    print(f"Python {platform.python_version()}, {versions}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        if arguments.only in (None, "stream"):
            for one in programs:
                show_stream(one, stream(one, folder, cells))
        if arguments.only in (None, "open"):
            for one in programs:
                show_opening(one, opening(one, folder, cells))
        if arguments.only in (None, "start", "quit"):
            show_start(folder, cells, arguments.rounds, leaving=arguments.only == "quit")
    print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
