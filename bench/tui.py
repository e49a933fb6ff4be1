"""The chat's screen as a user meets it: the program in a terminal (a pty), everything that it writes read and timed.

    python -m bench.tui [--only stream|open|start|quit] [--cells 120x40] [--rounds 5] [--no-baseline]

`stream`: 3,000 tokens at 100 a second from an engine that only talks: sending to the end on the screen, CPU of the
whole process, and a letter typed every 150 ms, before and meanwhile. `open`: a chat of 500 messages from the list of
chats, two seconds of rest, then page by page to its beginning. `start`: `python -m phi4local` to the first box on the
screen, with phi4-nano installed. `quit`: Ctrl-Q to the end of the process. Beside them what Textual's own Markdown
widgets do in a screen of their own, and what `import textual.app` takes, in turns.

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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.terminal import FRAME_END, Terminal, program
from bench.tui_child import LAST, PACE_SECONDS, TOKENS, chat_texts
from phi4local.history import History
from phi4local.settings import nano_folder

MESSAGES, MODEL = 500, "phi-4:Q4_K_M"
_FRAME_BEGIN = b"\x1b[?2026h"
_BOX = "╭".encode()
_TAG = re.compile(rb"m(\d{4})\.(\d\d)")
# Cyrillic, Armenian and Georgian: one cell wide, and nothing else on these screens is written with them
_RANGES = ((0x410, 0x450), (0x531, 0x557), (0x561, 0x587), (0x10D0, 0x10F1), (0x460, 0x482), (0x48A, 0x4C0))
_LETTERS = "".join(chr(code) for start, end in _RANGES for code in range(start, end))
_AT_REST = 30  # letters that are typed before
PAGE_UP, SHIFT_TAB, CTRL_N, CTRL_O = b"\x1b[5~", b"\x1b[Z", b"\x0e", b"\x0f"


# ---- a long answer ----


@dataclass(frozen=True, slots=True)
class Stream:
    """`ratio`: sending to the end on the screen, by the time that the tokens alone take; `cpu`: a share of one core."""

    ratio: float
    cpu: float
    rest_seconds: list[float]
    key_seconds: list[float]
    bytes_per_second: float
    lost: int


def stream(name: str, folder: Path, cells: tuple[int, int]) -> Stream:
    """One answer, and somebody who types meanwhile."""
    with program(["-m", "bench.tui_child", name], folder / name, cells) as terminal:
        terminal.shown("ready" if name == "chat" else FRAME_END)
        terminal.quiet()
        before = _type(terminal, _LETTERS[:_AT_REST], threading.Event())
        terminal.quiet()
        terminal.press(b"\x15")  # Ctrl-U: the line is empty again
        start, cpu = len(terminal.data), terminal.cpu_seconds()
        sent = terminal.press(b"go\r" if name == "chat" else CTRL_N)
        done = threading.Event()
        with ThreadPoolExecutor(1) as hands:
            typing = hands.submit(_type, terminal, _LETTERS[_AT_REST:], done)
            try:
                ended = terminal.shown(LAST, start, timeout=TOKENS * PACE_SECONDS * 3)
                used = terminal.cpu_seconds() - cpu
                size = len(terminal.data) - start
            finally:
                done.set()
            keys = typing.result()
        terminal.quiet()
        rest, meanwhile = (_latencies(terminal, each) for each in (before, keys))
        terminal.close()
    took = ended - sent
    lost = len(before) + len(keys) - len(rest) - len(meanwhile)
    return Stream(took / (TOKENS * PACE_SECONDS), used / took, rest, meanwhile, size / took, lost)


def _type(terminal: Terminal, letters: Sequence[str], done: threading.Event) -> list[tuple[str, float]]:
    """Press one after the other until told not to; when each was pressed."""
    keys = []
    for letter in letters:
        if done.wait(0.15):
            break
        keys.append((letter, terminal.press(letter.encode())))
    return keys


def _latencies(terminal: Terminal, keys: list[tuple[str, float]]) -> list[float]:
    """Seconds from each key to the end of the frame with its letter; without those that never came."""
    seconds = []
    for letter, pressed in keys:
        with suppress(TimeoutError):
            seconds.append(terminal.shown(letter, timeout=0) - pressed)
    return seconds


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
    with program(["-m", "bench.tui_child", name, *count], home, cells) as terminal:
        terminal.shown("ready" if name == "chat" else FRAME_END)
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
    shown = terminal.data.rfind(_FRAME_BEGIN, 0, terminal.data.find(LAST.encode(), start))  # not the list of chats
    lowest = min(match[0] for match in _TAG.finditer(terminal.data, shown))
    while lowest > b"m0000.00":
        start, before = len(terminal.data), lowest

        def new_page(start: int, before: bytes = before) -> int:
            end = terminal.data.rfind(FRAME_END, start)
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
        terminal.quiet()
        return painted, terminal.close(), is_kept


def leave_generating(folder: Path, cells: tuple[int, int]) -> float:
    with program(["-m", "bench.tui_child", "chat"], folder / "leave", cells) as terminal:
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


def spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "nothing came"
    ordered = sorted(seconds)
    p95 = ordered[max(0, -(-95 * len(ordered) // 100) - 1)]
    times = zip(("p50", "p95", "max"), (statistics.median(ordered), p95, ordered[-1]), strict=True)
    return "   ".join(f"{name} {1e3 * value:6.1f} ms" for name, value in times) + f"   ({len(ordered)})"


def show_stream(name: str, one: Stream) -> None:
    print(f"stream, {name}")
    print(f"  to the end on the screen  {one.ratio:.3f} of the tokens' own {TOKENS * PACE_SECONDS:.0f} s")
    print(f"  CPU                       {one.cpu:.1%} of a core     {one.bytes_per_second / 1e3:.1f} kB/s written")
    print(f"  key to its frame, before  {spread(one.rest_seconds)}")
    print(f"  key to its frame          {spread(one.key_seconds)}   lost {one.lost}", flush=True)


def show_opening(name: str, one: Opening) -> None:
    print(f"open {MESSAGES} messages, {name}")
    print(f"  to the last message       {one.first_seconds:.3f} s")
    print(f"  two seconds at rest       {one.idle_cpu:.1%} of a core     {one.idle_bytes / 1e3:.1f} kB written")
    print(f"  page up                   {spread(one.page_seconds)}   paragraphs not seen {one.skipped}", flush=True)


def show_start(folder: Path, cells: tuple[int, int], rounds: int, *, leaving: bool) -> None:
    home = folder / "start"
    command = [sys.executable, "-m", "phi4local", "quantize", str(nano_folder()), "--to", "Q8_0"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PHI4LOCAL_HOME": str(home)})
    starts, alone, bare = [], [], []
    for _ in range(rounds):
        starts.append(first_paint(home, cells))
        alone.append(seconds_of("import textual.app"))
        bare.append(seconds_of("pass"))
    painted, left, kept = zip(*starts, strict=True)
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
