"""The chat on the screen when its disk is full or read-only: it says so, goes on, and loses nothing."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.terminals import READY, ask, kept, leave, program, send, write_counting

SAID = re.compile(r"w\d{4}")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model on another disk that talks for some seconds, and what it says."""
    path = tmp_path_factory.mktemp("words") / "words.gguf"
    return path, write_counting(path, 1500)


@pytest.fixture
def small(home: Path) -> Iterator[Path]:
    """The test's home on a file system of 4 MB of its own."""
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(home)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield home
    subprocess.run(["umount", "--lazy", home], check=True)


def fill(folder: Path) -> None:
    with (folder / "other").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_question_waits_for_room(small: Path, words: tuple[Path, str]) -> None:
    long = "which of these is the best? " * 100  # several lines
    with program("chat", words[0]) as terminal:
        terminal.wait_for(READY)
        send(terminal, "Go on")
        terminal.wait_for(SAID)
        terminal.press("Escape")
        terminal.wait_for("■ stopped")
        fill(small)
        terminal.paste(long)
        terminal.wait_for("the best")
        terminal.press("Enter")
        screen = terminal.wait_for("Not sent: it could not be put on disk")
        assert " free" in screen
        terminal.wait_without("Not sent", 20)
        assert "the best" in terminal.wait_for("│ ")  # still in the question
        terminal.press("Enter")
        terminal.wait_for("Not sent")
        (small / "other").unlink()
        terminal.press("Enter")
        terminal.wait_for("▸ answering")
        terminal.press("Escape")
        terminal.wait_for("■ stopped")
        leave(terminal)
    asked = [one.text for one in kept(small) if one.role == "user"]
    assert asked == ["Go on", long.strip()]


def test_an_answer_is_told_and_kept_when_there_is_room_again(small: Path, words: tuple[Path, str]) -> None:
    model, text = words
    with program("chat", model) as terminal:
        terminal.wait_for(READY)
        send(terminal, "Go on")
        terminal.wait_for(SAID)
        fill(small)
        terminal.wait_for("The answer is not on disk")
        terminal.wait_for("w1499", 60)
        terminal.wait_for(READY)
        (small / "other").unlink()
        send(terminal, "Go on")
        terminal.wait_for("▸ answering")
        time.sleep(0.1)
        terminal.press("Escape")
        terminal.wait_for("■ stopped")
        leave(terminal)
    first, second = (one for one in kept(small) if one.role == "assistant")
    assert (first.text, first.state) == (text, "complete")
    assert second.state == "stopped"


def test_a_home_that_is_read_only(small: Path, words: tuple[Path, str], tmp_path: Path) -> None:
    model, _ = words
    with program("chat", model) as terminal:
        terminal.wait_for(READY)
        send(terminal, "Go on")
        terminal.wait_for(SAID)
        terminal.press("Escape")
        terminal.wait_for("■ stopped")
        leave(terminal)
    before = (small / "history.sqlite3").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    chat_without_home(tmp_path)
    assert (small / "history.sqlite3").read_bytes() == before


def test_a_home_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("PHI4LOCAL_HOME", str(tmp_path / "file" / "home"))
    chat_without_home(tmp_path)


def chat_without_home(folder: Path) -> None:
    """It says that nothing is kept, and chats."""
    write_counting(folder / "few.gguf", 60)
    with program("chat", folder / "few.gguf") as terminal:
        terminal.wait_for("Chats of this session are not kept")
        terminal.wait_for(READY)
        ask(terminal, "Go on", "w0059")
        ask(terminal, "Once more", "w0059")
        leave(terminal)
