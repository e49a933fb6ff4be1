"""Whole journeys line by line in a real terminal of 80 by 24, and when there is a screen instead of lines."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pexpect
import pytest

from phi4local.settings import nano_folder
from tests.gguf_models import smollm2
from tests.running import json_of, phi4local
from tests.terminals import PROGRAM, READY, ask, program
from tests.terminals import leave as leave_screen
from tests.tmux import Terminal

TIMEOUT_SECONDS = 60


def spawn(*arguments: str | Path) -> pexpect.spawn[str]:
    """The program in a terminal of its own."""
    command = ["-m", "phi4local", *map(str, arguments)]
    return pexpect.spawn(
        sys.executable, command, encoding="utf-8", codec_errors="replace", timeout=TIMEOUT_SECONDS, dimensions=(24, 80)
    )


def leave(terminal: pexpect.spawn[str], code: int) -> None:
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert (terminal.exitstatus, terminal.signalstatus) == (code, None)


@pytest.fixture
def nano(home: Path) -> str:
    json_of(phi4local("quantize", nano_folder(), "--to", "Q8_0", "--json"))
    return "phi4-nano"


def test_from_an_empty_home_to_an_answer(home: Path) -> None:
    terminal = spawn("chat", "--plain")
    terminal.expect("No model is here yet")
    terminal.expect("phi4local demo")
    leave(terminal, 3)
    terminal = spawn("demo")
    terminal.expect("Repairs +3")
    terminal.expect(r"17 \+ 25 = 42")
    terminal.expect("phi4local chat phi4-nano")
    leave(terminal, 0)
    terminal = spawn("chat", "--plain")
    terminal.expect(">>> ")
    terminal.sendline("What is 17 + 25?")
    terminal.expect(r"17 \+ 25 = 42")
    terminal.expect("tokens, .* per second")
    terminal.expect(">>> ")
    terminal.sendeof()
    leave(terminal, 0)


def test_a_plain_chat(nano: str) -> None:
    terminal = spawn("chat", "--plain", nano)
    terminal.expect(">>> ")
    terminal.sendline("")
    terminal.expect(">>> ")
    terminal.sendline("/hlep")
    terminal.expect("Ctrl-D leaves")
    terminal.sendline("What is 20 + 30?")
    terminal.expect("= 50")
    terminal.sendline("/new")
    terminal.expect(">>> ")
    terminal.sendintr()
    terminal.expect("Ctrl-D leaves")
    terminal.sendline("What is 60 + 9?")
    terminal.expect("= 69")
    terminal.sendline("/exit")
    leave(terminal, 0)


def test_a_byte_that_is_no_text_does_not_end_a_chat(nano: str) -> None:
    terminal = spawn("chat", "--plain", nano)
    terminal.expect(">>> ")
    os.write(terminal.child_fd, b"\xff\xfe\xc3(\n")
    terminal.expect("tokens, .* per second")
    terminal.expect(">>> ")
    terminal.sendline("What is 20 + 30?")
    terminal.expect("= 50")
    terminal.sendline("/exit")
    leave(terminal, 0)


def test_a_question_that_is_too_long_is_taken_back(nano: str) -> None:
    terminal = spawn("chat", "--plain", nano, "--context", "256")
    terminal.expect(">>> ")
    terminal.sendline("word " * 300)
    terminal.expect("error: ")
    terminal.expect("hint: ")
    terminal.sendline("What is 20 + 30?")
    terminal.expect("= 50")
    terminal.sendline("/exit")
    leave(terminal, 0)


def test_an_answer_is_stopped_and_the_chat_goes_on(home: Path) -> None:
    terminal = spawn("chat", "--plain", smollm2(), "--temperature", "0.7")
    terminal.expect(">>> ")
    terminal.sendline("Write a very long story about a fox.")
    terminal.expect(re.compile(r"\w+ \w+ \w+ \w+ \w+ \w+"))
    terminal.sendintr()
    terminal.expect("stopped")
    terminal.expect(">>> ")
    terminal.sendline("Say hello.")
    terminal.expect(re.compile(r"[A-Za-z]{2,}"))
    terminal.sendintr()
    terminal.expect(">>> ")
    terminal.sendline("/exit")
    leave(terminal, 0)


def test_a_build_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    from tests import shapes
    from tests.checkpoints import write_checkpoint

    folder = write_checkpoint(tmp_path / "weights", shapes.PHI4_TINY, shards=6)
    terminal = spawn("quantize", folder, "--to", "IQ4_XS")
    terminal.expect("Building weights-IQ4_XS.gguf")
    terminal.sendintr()
    terminal.expect("interrupted")
    leave(terminal, 130)
    terminal = spawn("quantize", folder, "--to", "IQ4_XS")
    terminal.expect("Done in")
    leave(terminal, 0)


# ---- when there is a screen ----


def test_a_terminal_gets_the_screen(nano: str) -> None:
    with program("chat", nano) as terminal:
        terminal.wait_for(READY)
        assert terminal.fact("alternate_on") == "1"
        leave_screen(terminal)


@pytest.mark.parametrize("arguments", [("chat", "phi-5"), ("chat", "no/such.gguf"), ("chat", "--plain", "phi-5")])
def test_a_name_that_is_not_here_is_told_at_once_without_a_screen(home: Path, arguments: tuple[str, ...]) -> None:
    before = time.monotonic()
    terminal = spawn(*arguments)
    terminal.expect("error: No ")
    said = (terminal.before or "") + terminal.read()
    leave(terminal, 3)
    assert time.monotonic() - before < 5  # less than half a second where nothing else runs
    assert "hint: " in said
    assert "\x1b[?1049h" not in said


def test_a_terminal_that_cannot_be_drawn_on_gets_lines(nano: str) -> None:
    with program("chat", nano, env={"TERM": "dumb"}) as terminal:
        converse_in_lines(terminal)


@pytest.mark.parametrize("pipe", ["| cat", "2>&1 | cat", "2> notes"])
def test_what_goes_into_a_pipe_is_lines(nano: str, tmp_path: Path, pipe: str) -> None:
    command = f"{' '.join(PROGRAM)} chat {nano} {pipe}"
    with Terminal(["bash", "-o", "pipefail", "-c", command], folder=tmp_path) as terminal:
        converse_in_lines(terminal)


def converse_in_lines(terminal: Terminal) -> None:
    terminal.wait_for(">>>")
    assert terminal.fact("alternate_on") == "0"
    terminal.type("What is 20 + 30?")
    terminal.press("Enter")
    terminal.wait_for(re.compile(r"20 \+ 30 = 50\.[^>]*>>>\s*$"))
    terminal.press("C-d")
    assert terminal.exit_code() == 0


def test_a_file_is_asked_instead_of_a_terminal(nano: str, tmp_path: Path) -> None:
    (tmp_path / "question").write_text("What is 20 + 30?")
    command = f"{' '.join(PROGRAM)} chat {nano} < question"
    with Terminal(["sh", "-c", command], folder=tmp_path) as terminal:
        terminal.wait_for("20 + 30 = 50.")
        assert terminal.exit_code() == 0


@pytest.mark.parametrize("wanted", [{}, {"NO_COLOR": "1"}])
def test_colours_are_left_out_on_demand(nano: str, wanted: dict[str, str]) -> None:
    """Without colours there are shades of grey: what is chosen can still be seen."""
    with program("chat", nano, env={"COLORTERM": "truecolor", **wanted}) as terminal:
        terminal.wait_for(READY)
        ask(terminal, "What is 20 + 30?", "20 + 30 = 50.")
        colours = terminal.colours()
        leave_screen(terminal)
    assert colours
    assert all(len(set(colour)) == 1 for colour in colours) == bool(wanted)
