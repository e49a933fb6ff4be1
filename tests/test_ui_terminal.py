"""What a terminal sends and how it ends: pastes that hold anything, signals, and a terminal that is closed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual import events
from textual._xterm_parser import BRACKETED_PASTE_END as END
from textual._xterm_parser import BRACKETED_PASTE_START as START
from textual._xterm_parser import XTermParser
from textual.message import Message

from ui import terminal
from ui.terminal import PasteParser

ROOT = Path(__file__).parents[1]
EVIL = "line1\r\tindented\r\x1b]52;c;aGk=\x07 evil \x1b[31mred\r\x11\x03last\x1b"
RESTORED = ("\x1b[?1000l", "\x1b[?1003l", "\x1b[?1006l", "\x1b[?2004l", "\x1b[<u", "\x1b[?1049l", "\x1b[?25h")
# An app that writes down what it is told, one JSON array a line.
APP = """
import json, sys, time
from typing import Any
from textual.app import App
from ui import terminal

class Probe(App[None]):
    def say(self, *what: object) -> None:
        with open(sys.argv[1], "a") as file:
            print(json.dumps(what), file=file)

    def get_driver_class(self) -> Any:
        return terminal.instead_of(super().get_driver_class())

    async def run_async(self, **how: Any) -> None:
        with terminal.leaving_on_signals(self):
            await super().run_async(**how)

    def on_ready(self) -> None:
        self.say("ready")

    def on_key(self, event: Any) -> None:
        self.say("key", event.key)
        if event.key == "z":
            time.sleep(60)
        if event.key == "b":
            self.set_interval(0.01, lambda: [self._driver.write("busy" * 100) for _ in range(50)])

    def on_paste(self, event: Any) -> None:
        self.say("paste", event.text)

    async def action_quit(self) -> None:
        self.say("quit")
        await super().action_quit()

app = Probe()
app.run()
app.say("gone")
sys.exit(app.return_code)
"""


def said(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(log: Path, what: list[str], meanwhile: Callable[[], None] = lambda: time.sleep(0.02)) -> list[list[str]]:
    end = time.monotonic() + 15
    while what not in (found := said(log)):
        assert time.monotonic() < end, found
        meanwhile()
    return found[1:]


class Probe:
    """That app in a terminal of its own."""

    def __init__(self, log: Path, ignore_sighup: bool = False) -> None:
        self._log = log
        self.child: Any = pexpect.spawn(
            sys.executable,
            ["-c", APP, str(log)],
            cwd=str(ROOT),
            timeout=20,
            dimensions=(24, 80),
            ignore_sighup=ignore_sighup,
            # whatever the tests themselves were started with
            preexec_fn=None if ignore_sighup else lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        self.child.delaybeforesend = None
        self.screen = b""

    def said(self) -> list[list[str]]:
        return said(self._log)

    def wait_for(self, what: list[str]) -> list[list[str]]:
        """What it was told until `what`; the terminal is read meanwhile."""
        return wait_for(self._log, what, lambda: self.read(0.02))

    def read(self, seconds: float) -> None:
        with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF):
            self.screen += self.child.read_nonblocking(65536, seconds)

    def type(self, text: str) -> None:
        os.write(self.child.child_fd, text.encode())

    def code(self) -> tuple[int | None, int | None]:
        """The exit code and the signal that it ended with."""
        self.child.expect(pexpect.EOF)
        self.screen += self.child.before
        self.child.close()
        return self.child.exitstatus, self.child.signalstatus


@contextlib.contextmanager
def running(log: Path, ignore_sighup: bool = False) -> Iterator[Probe]:
    probe = Probe(log, ignore_sighup)
    try:
        probe.wait_for(["ready"])
        yield probe
    finally:
        probe.child.close(force=True)


@pytest.fixture
def probe(tmp_path: Path) -> Iterator[Probe]:
    with running(tmp_path / "log") as probe:
        yield probe


# ---- the parser ----


def told(messages: Iterable[Message]) -> list[str | tuple[str]]:
    """Texts that were pasted, and the keys in tuples."""
    known = [one for one in messages if isinstance(one, events.Paste | events.Key)]
    return [one.text if isinstance(one, events.Paste) else (one.key,) for one in known]


def feed(parser: PasteParser, *pieces: str) -> list[str | tuple[str]]:
    return told([message for piece in pieces for message in parser.feed(piece)])


PARTS = [
    "\x1b",
    "\x1b[",
    "\x1b[2",
    "\x1b[20",
    "00~",
    "01~",
    "~",
    "\x1b[A",
    "\x1b[97;5u",
    "\r",
    "\n",
    "\t",
    "\x00",
    "a",
    "é",
]
ANYTHING = st.lists(st.sampled_from(PARTS) | st.characters(), max_size=12).map("".join).filter(bool)
CUTS = st.lists(st.integers(0, 90), max_size=8) | st.just(list(range(90)))


def cut(stream: str, cuts: list[int]) -> list[str]:
    ends = sorted({min(one, len(stream)) for one in cuts} | {0, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(ends)]


@settings(max_examples=300)
@given(text=ANYTHING.filter(lambda text: END not in text + END[:-1]), cuts=CUTS)
def test_a_paste_is_its_text_wherever_it_is_cut(text: str, cuts: list[int]) -> None:
    pieces = cut(f"a{START}{text}{END}\rb\x1b[A", cuts)
    assert feed(PasteParser(), *pieces) == [("a",), text.replace("\x00", ""), ("enter",), ("b",), ("up",)]


@settings(max_examples=300)
@given(stream=ANYTHING.filter(lambda text: START not in text), cuts=CUTS)
def test_other_input_means_what_it_meant(stream: str, cuts: list[int]) -> None:
    ours, textuals = PasteParser(), XTermParser()
    pieces = [*cut(stream, cuts), ""]
    assert feed(ours, *pieces) == told([message for piece in pieces for message in textuals.feed(piece)])


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("ui.terminal.get_time", lambda: self.now)
        monkeypatch.setattr("textual._parser.get_time", lambda: self.now)

    def after(self, seconds: float, parser: PasteParser) -> list[str | tuple[str]]:
        self.now += seconds
        return told(list(parser.tick()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("at", range(1, len(EVIL) + len(START + END)))
def test_a_slow_line_makes_no_keys_of_a_paste(clock: Clock, at: int) -> None:
    parser, stream = PasteParser(), START + EVIL + END
    told = [*feed(parser, stream[:at]), *clock.after(0.3, parser), *feed(parser, stream[at:])]
    early = [("escape",)] if at == 1 else [("left_square_bracket",)] if at == 2 else []
    assert told == [*early, EVIL]
    assert feed(parser, "\r") == [("enter",)]


def test_keys_come_as_soon_as_they_did(clock: Clock) -> None:
    parser = PasteParser()
    assert feed(parser, "\x1b") == []
    assert clock.after(0.05, parser) == []
    assert clock.after(0.06, parser) == [("escape",)]
    assert feed(parser, "[", "a") == [("left_square_bracket",), ("a",)]
    assert feed(parser, "\x1b", START + "text" + END) == [("escape",), "text"]
    assert feed(parser, "\x1b[2") == []
    assert clock.after(1, parser) == []
    assert feed(parser, "0~") == [("f9",)]


def test_a_paste_without_its_end_is_told_after_a_silence(clock: Clock) -> None:
    parser = PasteParser()
    assert feed(parser, START + "one\r") == []
    assert clock.after(1.9, parser) == []
    assert feed(parser, "two\r\x1b[20") == []
    assert [clock.after(seconds, parser) for seconds in (1.9, 0.2, 5)] == [[], ["one\rtwo\r"], []]
    assert feed(parser, "\x11") == ["\x1b[20", ("ctrl+q",)]  # keys are keys again


def test_a_paste_goes_on_after_a_silence(clock: Clock) -> None:
    parser, much = PasteParser(), "\r\x11" * 50
    assert [*feed(parser, START + "one"), *clock.after(3, parser)] == ["one"]
    assert [*feed(parser, much), *clock.after(1, parser)] == []
    assert clock.after(2, parser) == [much]
    assert feed(parser, "\r" + END + "\r") == ["\r", ("enter",)]
    assert [*feed(parser, START + "one"), *clock.after(3, parser)] == ["one"]
    assert feed(parser, END + "\r") == [("enter",)]


def test_a_paste_without_end_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_MOST_CHARACTERS", 1000)
    parser = PasteParser()
    assert feed(parser, START, *["\r" * 300] * 4) == ["\r" * 1200]
    assert feed(parser, "\r" * 300, END, "\r") == ["\r" * 300, ("enter",)]
    assert feed(parser, START + "the input ends", "") == ["the input ends"]


# ---- in a terminal ----


@pytest.mark.parametrize("pause", [0, 0.02])
def test_a_paste_is_one_text_in_the_app(probe: Probe, pause: float) -> None:
    stream = f"{START}{EVIL}{END}"
    for start in range(0, len(stream), 7 if pause else len(stream)):
        probe.type(stream[start : start + 7 if pause else None])
        time.sleep(pause)
    probe.type("q")
    assert probe.wait_for(["key", "q"]) == [["paste", EVIL], ["key", "q"]]


def test_a_long_paste_is_one_text(probe: Probe) -> None:
    text = "\x1b[31mé\r\t" * 30_000
    rest = f"{START}{text}{END}q".encode()
    while rest:
        rest = rest[os.write(probe.child.child_fd, rest[:4000]) :]
    assert probe.wait_for(["key", "q"]) == [["paste", text], ["key", "q"]]


def test_bytes_that_are_no_text_do_not_end_the_app(probe: Probe) -> None:
    os.write(probe.child.child_fd, START.encode() + b"a\xff\xfe\xc3(b" + END.encode() + b"q")
    assert probe.wait_for(["key", "q"])[0] == ["paste", "a\ufffd\ufffd\ufffd(b"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_as_the_key_does(probe: Probe, number: int) -> None:
    probe.child.kill(number)
    assert probe.code() == (0, None)
    assert probe.said() == [["ready"], ["quit"], ["gone"]]
    assert [mode for mode in RESTORED if mode.encode() not in probe.screen] == []


def test_many_signals_leave_once(probe: Probe) -> None:
    for _ in range(3):
        probe.child.kill(signal.SIGHUP)
    probe.child.kill(signal.SIGTERM)
    assert probe.code() == (0, None)
    assert probe.said()[-1] == ["gone"]


def test_a_second_sigterm_ends_at_once(probe: Probe) -> None:
    probe.type("z")
    probe.wait_for(["key", "z"])
    probe.child.kill(signal.SIGTERM)
    time.sleep(0.2)
    assert probe.child.isalive()
    probe.child.kill(signal.SIGTERM)
    assert probe.code() == (None, signal.SIGTERM)


@pytest.mark.parametrize("with_nohup", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_a_terminal_that_is_closed_ends_the_app(tmp_path: Path, busy: bool, with_nohup: bool) -> None:
    with running(tmp_path / "log", with_nohup) as probe:
        if busy:  # it writes all the time
            probe.type("b")
            probe.wait_for(["key", "b"])
        probe.child.ptyproc.fileobj.close()
        assert (probe.child.wait(), probe.child.signalstatus) == (0, None)
        assert probe.said()[-2:] == [["quit"], ["gone"]]


def test_a_paste_in_a_browser_is_one_text(tmp_path: Path) -> None:
    """The driver there reads packets: a letter, four bytes of length, as many of payload."""
    log = tmp_path / "log"
    sent = f"{START}{EVIL}{END}q".encode()
    env = os.environ | {"TEXTUAL_DRIVER": "ui.web_driver:Driver"}
    command = [sys.executable, "-c", APP, str(log)]
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as app:
        assert app.stdin is not None
        wait_for(log, ["ready"])
        for payload in (sent[:40], sent[40:]):
            app.stdin.write(b"D" + len(payload).to_bytes(4, "big") + payload)
            app.stdin.flush()
        said = wait_for(log, ["key", "q"])
        app.stdin.close()
        assert app.wait(20) == 0
    assert [one for one in said if one[0] in ("paste", "key")] == [["paste", EVIL], ["key", "q"]]
