"""The chat in a real terminal: opened, asked, read, and what is left of it on disk."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from phi4local.chats import Message
from phi4local.history import History
from tests.gguf_models import write_scripted
from tests.tmux import Terminal

PROGRAM = (sys.executable, "-m", "phi4local")
READY = re.compile("● ready")
END = "<|im_end|>"


def program(
    *arguments: str | Path,
    width: int = 80,
    height: int = 24,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Terminal:
    """The program in a terminal of its own; it may not ask the network."""
    offline = {"HF_HUB_OFFLINE": "1"}
    return Terminal([*PROGRAM, *arguments], width, height, env=offline | dict(env or {}), folder=folder)


def send(terminal: Terminal, text: str) -> None:
    """Ask something; the question is in the transcript, so it was acknowledged."""
    terminal.type(text)
    terminal.wait_for(re.compile(rf"^│ .*{re.escape(text[-20:])}", re.MULTILINE))
    terminal.press("Enter")
    terminal.wait_for(re.compile(rf"^▎ .*{re.escape(text[:20])}", re.MULTILINE))


def ask(terminal: Terminal, text: str, answer: str, seconds: float = 30) -> str:
    """Ask something and wait for an answer and its end; the screen then."""
    send(terminal, text)
    terminal.wait_for(answer, seconds)
    return terminal.wait_for(READY, seconds)


def leave(terminal: Terminal, seconds: float = 30) -> None:
    """Leave, and see that nothing is left of it."""
    family = processes(terminal)
    terminal.press("C-q")
    assert terminal.exit_code(seconds) == 0
    check_gone(family)


def processes(terminal: Terminal) -> list[psutil.Process]:
    """What the program has started and what that has."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(terminal.pid).children(recursive=True)
    return []


def check_gone(family: Sequence[psutil.Process], seconds: float = 3) -> None:
    """None of these processes remains."""
    _, alive = psutil.wait_procs(family, timeout=seconds)
    assert alive == []


def transcript(screen: str) -> list[str]:
    """The lines between the title and the question, without the sign at their beginning and the scrollbar."""
    lines = screen.splitlines()
    end = next(index for index, line in enumerate(lines) if line.startswith("╭"))
    return [_SIGNS.sub("", line).rstrip() for line in lines[1:end]]


_SIGNS = re.compile(r"^[▌▎] ?|[▁▂▃▄▅▆▇█]$")


def kept(home: Path) -> list[Message]:
    """Every message that is on disk, in their order, after a look at the file's integrity."""
    path = home / "history.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with contextlib.closing(History(path)) as history:
        messages = [one for line in history.chats() for one in history.tree(line.chat.id)[1]]
    return sorted(messages, key=lambda one: one.id)


def write_counting(path: Path, words: int) -> str:
    """A model that answers everything with numbered words in paragraphs; the answer. Larger is slower."""
    ends = {39: "\n\n", 19: "\n- "}
    script = [f"w{number:04}{ends.get(number % 40, ' ')}" for number in range(words)]
    write_scripted(path, [*script, END])
    return "".join(script)
