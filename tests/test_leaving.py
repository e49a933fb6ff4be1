"""Stopping an answer and leaving the chat, in whatever it does; what the terminal and the machine are left as."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.terminals import READY, check_gone, kept, processes, program, send, write_counting
from tests.tmux import Terminal

SOON = 3.0  # seconds: a tenth of that on a machine with nothing else to do
MODES = ("alternate_on", "mouse_any_flag", "mouse_sgr_flag", "mouse_button_flag", "keypad_flag", "keypad_cursor_flag")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that talks for some seconds."""
    path = tmp_path_factory.mktemp("words") / "words.gguf"
    write_counting(path, 2000)
    return path


def test_ctrl_c_stops_an_answer_and_the_next_works(home: Path, words: Path) -> None:
    with program("chat", words) as terminal:
        terminal.wait_for(READY)
        send(terminal, "Go on")
        terminal.wait_for("w0020")
        terminal.press("C-c")
        terminal.wait_for("■ stopped", SOON)
        terminal.wait_for(READY)
        terminal.type("half a question")
        terminal.press("C-c")  # empties it
        terminal.wait_for("Ask something")
        send(terminal, "Go on again")
        terminal.wait_for("w0010")
        terminal.press("Escape")
        terminal.wait_for("■ stopped", SOON)
        terminal.wait_for(READY)
        terminal.press("C-c")
        terminal.wait_for("Ctrl-C again leaves")
        terminal.press("C-c")
        assert terminal.exit_code() == 0
    answers = [one for one in kept(home) if one.role == "assistant"]
    assert [one.state for one in answers] == ["stopped", "stopped"]
    assert all(one.text.startswith("w0000 w0001") for one in answers)


def test_the_terminal_is_left_as_it_was(home: Path, words: Path, tmp_path: Path) -> None:
    """In a shell, which needs the terminal afterwards."""
    with Terminal(["sh"], env={"PS1": "shell> ", "HF_HUB_OFFLINE": "1"}, folder=tmp_path) as terminal:
        terminal.wait_for("shell>")
        terminal.type("stty -a > before")
        terminal.press("Enter")
        modes = [terminal.fact(mode) for mode in MODES]
        for leaves in (("C-q",), ("C-c", "C-c")):
            terminal.type(f"clear; {sys.executable} -m phi4local chat {words}; echo left with $?")
            terminal.press("Enter")
            terminal.wait_for(READY)
            assert terminal.fact("alternate_on") == "1"
            terminal.press(*leaves)
            terminal.wait_for("left with 0")
            assert [terminal.fact(mode) for mode in MODES] == modes
            assert terminal.fact("cursor_flag") == "1"
        terminal.type("stty -a > after; cmp before after && echo as be''fore; exec cat -v")
        terminal.press("Enter")
        assert "echo as be''fore" in terminal.wait_for(re.compile("^as before", re.MULTILINE))  # typing is seen again
        terminal.paste("pasted")
        assert "^[" not in terminal.wait_for("pasted")


def while_loading(terminal: Terminal) -> None:
    terminal.wait_for("loading")


def while_idle(terminal: Terminal) -> None:
    terminal.wait_for(READY)


def while_answering(terminal: Terminal) -> None:
    terminal.wait_for(READY)
    send(terminal, "Go on")
    terminal.wait_for("w0030")


def while_reading(terminal: Terminal) -> None:
    terminal.wait_for(READY)
    terminal.type("many words " * 150)
    terminal.press("Enter")
    terminal.wait_for("reading")


@pytest.mark.parametrize("moment", [while_loading, while_idle, while_reading, while_answering])
def test_leaving_takes_no_time_and_leaves_nothing(home: Path, words: Path, moment: Callable[[Terminal], None]) -> None:
    with program("chat", words) as terminal:
        moment(terminal)
        family = processes(terminal)
        assert family or moment is while_loading
        start = time.monotonic()
        terminal.press("C-q")
        code = terminal.exit_code()
        assert time.monotonic() - start < SOON
        assert code == 0
        check_gone(family)
    if moment is while_answering:
        assert kept(home)[-1].text.startswith("w0000 w0001")


def test_a_terminal_that_is_closed_takes_everything_along(home: Path, words: Path) -> None:
    with program("chat", words) as terminal:
        terminal.wait_for(READY)
        send(terminal, "Go on")
        terminal.wait_for("w0020")
        family = [psutil.Process(terminal.pid), *processes(terminal)]
    check_gone(family)
    assert kept(home)[-1].state == "stopped"
