"""The chat on the screen and its engine killed at any moment: nothing acknowledged is lost, nothing is left running.

PHI4LOCAL_KILLS sets how often.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from phi4local.chats import Message
from tests.terminals import READY, check_gone, kept, leave, processes, program, send, write_counting
from tests.tmux import Terminal

KILLS = int(os.environ.get("PHI4LOCAL_KILLS", "8"))
DEATHS = int(os.environ.get("PHI4LOCAL_KILLS", "6"))
SAID = re.compile(r"w\d{4}")
SOON = 2.0
LOST_SECONDS = 1.5  # of an answer, at most: one between two writes, and what a busy machine adds


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model that talks for some seconds, and what it says."""
    path = tmp_path_factory.mktemp("words") / "words.gguf"
    return path, write_counting(path, 2000)


# ---- the program ----


@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * KILLS)
def test_the_program_is_killed_while_it_answers(home: Path, words: tuple[Path, str]) -> None:
    model, text = words
    luck, cut = random.Random(7), 0
    for number in range(KILLS):
        question = f"question {number} of many"
        with program("chat", model) as terminal:
            terminal.wait_for(READY)
            if number:
                check_listed(terminal, f"question {number - 1} of many")
            send(terminal, question)
            seen = watch_and_kill(terminal, luck.uniform(0, 2.5))
        cut += check_kept(kept(home), number, seen, text)
    assert cut > KILLS // 2  # most of the kills fell into an answer
    check_opened(model, f"question {KILLS - 1} of many")


def watch_and_kill(terminal: Terminal, seconds: float) -> int:
    """Kill the program some time after a question; the last word that was seen early enough to be on disk."""
    seen: list[tuple[float, int]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        told = SAID.findall(terminal.screen())
        if told:
            seen.append((time.monotonic(), int(told[-1][1:])))
    family = processes(terminal)
    assert family
    os.kill(terminal.pid, signal.SIGKILL)
    struck = time.monotonic()
    assert terminal.exit_code() == -signal.SIGKILL
    check_gone(family)
    return max((word for moment, word in seen if moment < struck - LOST_SECONDS), default=-1)


def check_kept(messages: list[Message], number: int, seen: int, text: str) -> int:
    """Everything acknowledged is on disk; whether the last answer was cut."""
    asked = [one.text for one in messages if one.role == "user"]
    assert asked == [f"question {one} of many" for one in range(number + 1)]
    last = messages[-1]
    if last.role == "user":  # its answer had not begun
        assert seen == -1
        return 0
    assert text.startswith(last.text)
    assert len(SAID.findall(last.text)) > seen
    assert last.state == ("complete" if last.text == text else "partial")
    return last.state == "partial"


def check_listed(terminal: Terminal, question: str) -> None:
    """The chat is among those of the next start."""
    terminal.press("F3")
    terminal.wait_for(re.compile(rf"^[▌ ] {question}", re.MULTILINE))
    terminal.press("Escape")
    terminal.wait_for("Ask something")


def check_opened(model: Path, question: str) -> None:
    """The last chat opens with what was said of its answer."""
    with program("chat", model) as terminal:
        terminal.wait_for(READY)
        terminal.press("F3")
        terminal.wait_for(re.compile(rf"^▌ {question}", re.MULTILINE))
        terminal.press("Enter")
        terminal.wait_for("Ask something")
        terminal.wait_for("■ cut off before its end")
        leave(terminal)


# ---- its engine ----

Moment = Callable[[Terminal, random.Random], float]


def worker(terminal: Terminal) -> psutil.Process:
    """The engine's process."""
    [found] = [one for one in processes(terminal) if "llamacpp_worker" in " ".join(one.cmdline())]
    return found


def strike(terminal: Terminal) -> float:
    worker(terminal).kill()
    return time.monotonic()


def while_idle(terminal: Terminal, luck: random.Random) -> float:
    time.sleep(luck.uniform(0, 0.5))
    return strike(terminal)


def while_reading(terminal: Terminal, luck: random.Random) -> float:
    """The model reads some thousand tokens, one a letter."""
    terminal.paste(f"{luck.random()} " + "some words " * 250)
    terminal.wait_for("some words")
    terminal.press("Enter")
    terminal.wait_for(re.compile("▸ reading [0-9]"))
    return strike(terminal)


def while_answering(terminal: Terminal, luck: random.Random) -> float:
    send(terminal, f"Go on {luck.random()}")
    terminal.wait_for(SAID)
    time.sleep(luck.uniform(0, 0.7))
    return strike(terminal)


@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * DEATHS)
def test_the_engine_dies_again_and_again(home: Path, words: tuple[Path, str]) -> None:
    luck = random.Random(3)
    moments: tuple[Moment, ...] = (while_idle, while_reading, while_answering)
    with program("chat", words[0]) as terminal:
        terminal.wait_for(READY)
        for number in range(DEATHS):
            moment = moments[number % len(moments)]
            died = moment(terminal, luck)
            terminal.wait_for("✗ the engine stopped", SOON)
            assert time.monotonic() - died < SOON
            check_works_again(terminal)
            terminal.press("C-n")
            terminal.wait_for("New chat")
        leave(terminal)
    assert {one.state for one in kept(home) if one.role == "assistant"} <= {"failed", "stopped"}


def check_works_again(terminal: Terminal) -> None:
    """The next question is answered by one new process."""
    send(terminal, "Are you there?")
    terminal.wait_for("▸ answering")
    terminal.press("Escape")
    terminal.wait_for("■ stopped")
    terminal.wait_for(READY)
    assert worker(terminal).status() != psutil.STATUS_ZOMBIE
