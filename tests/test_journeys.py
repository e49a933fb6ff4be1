"""Whole journeys on the screen, in a real terminal with real models."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from phi4local.settings import nano_folder
from tests.gguf_models import smollm2
from tests.running import json_of, phi4local
from tests.terminals import READY, ask, kept, leave, program, send, transcript, write_counting
from tests.tmux import Terminal

SUM = "What is 17 + 25?"
ANSWER = "17 + 25 = 42."


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the built-in model in it."""
    home = tmp_path_factory.mktemp("built")
    json_of(phi4local("quantize", nano_folder(), "--to", "Q8_0", "--json", env={"PHI4LOCAL_HOME": str(home)}))
    return home


@pytest.fixture
def nano(built: Path, home: Path) -> Path:
    """The test's home, with that model."""
    shutil.copytree(built, home)
    return home


def settled(terminal: Terminal, seconds: float = 10) -> str:
    """The screen when it has not changed for a while."""
    end, last, since = time.monotonic() + seconds, "", 0.0
    while time.monotonic() < end:
        if (now := terminal.screen()) != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > 0.2:
            return last
        time.sleep(0.03)
    raise AssertionError(f"the screen keeps changing:\n{last}")


def browse(terminal: Terminal) -> None:
    """From the question to the messages; keys that come together go where the first one went."""
    terminal.press("C-Up")
    terminal.wait_for("e Edit")


def find(terminal: Terminal, text: str, count: str) -> None:
    """Type into the search box, and go on with what is found first."""
    settled(terminal)
    terminal.type(text)
    terminal.wait_for(count)
    terminal.press("Enter")
    terminal.wait_for("Ask something")


def write_name(terminal: Terminal, name: str) -> None:
    """Put a name in the place of what a dialog proposes."""
    terminal.press("C-u")
    terminal.wait_without(".md")
    terminal.type(name)
    terminal.wait_for(re.compile(rf"^ *│ *{re.escape(name)} *│", re.MULTILINE))
    terminal.press("Enter")


def test_from_nothing_to_an_answer(home: Path) -> None:
    with program() as terminal:
        terminal.wait_for("Welcome to phi4local")
        terminal.wait_for("tiny built-in model")
        terminal.press("t")
        terminal.wait_for("phi4-nano:Q8_0 is here", 90)
        terminal.press("Enter")
        terminal.wait_for(READY)
        screen = ask(terminal, SUM, ANSWER)
        assert "phi4-nano:Q8_0" in screen
        leave(terminal)
    assert [(one.role, one.text, one.state) for one in kept(home)] == [
        ("user", SUM, "complete"),
        ("assistant", ANSWER, "complete"),
    ]


def test_a_question_is_edited_and_both_branches_are_walked(nano: Path) -> None:
    with program() as terminal:
        terminal.wait_for(READY)
        ask(terminal, SUM, ANSWER)
        browse(terminal)
        terminal.press("Up", "e")
        terminal.wait_for("Another version")
        terminal.press("C-u")
        terminal.wait_for("Ask something")
        ask(terminal, "What is 20 + 30?", "20 + 30 = 50.")
        assert SUM not in "\n".join(transcript(terminal.wait_for("‹ 2 of 2 ›")))
        browse(terminal)
        terminal.press("Up", "Left")
        assert ANSWER in terminal.wait_for("‹ 1 of 2 ›")
        terminal.press("Left")
        terminal.wait_for("There is no other version")
        terminal.press("Right")
        assert "= 50." in terminal.wait_for("‹ 2 of 2 ›")
        terminal.press("Left")
        terminal.wait_for("‹ 1 of 2 ›")
        terminal.press("Enter")  # back to the question: it goes on where it was walked to
        ask(terminal, "What is 60 + 9?", "60 + 9 = 69.")
        leave(terminal)
    first, _, edited, _, last, _ = kept(nano)
    assert (first.parent, edited.parent) == (None, None)
    assert last.parent == first.id + 1


def test_an_old_chat_is_found_and_goes_on(nano: Path) -> None:
    with program() as terminal:
        terminal.wait_for(READY)
        for first, second, sum_ in ((11, 22, 33), (40, 4, 44), (50, 5, 55)):
            ask(terminal, f"What is {first} + {second}?", f"= {sum_}.")
            ask(terminal, f"What is {second} + 1?", f"{second} + 1 = {second + 1}.")
            terminal.press("C-n")
            terminal.wait_for("New chat")
        leave(terminal)
    with program() as terminal:
        terminal.wait_for(READY)
        terminal.press("C-g")
        terminal.wait_for("3 chats")
        find(terminal, "40 + 4", "messages in 1 chat")
        screen = settled(terminal)
        assert "40 + 4 = 44." in screen
        assert "4 + 1 = 5." in screen
        ask(terminal, "What is 2 + 2?", "2 + 2 = 4.")
        terminal.press("F3")
        terminal.wait_for("/ Search")
        terminal.press("/")
        terminal.wait_without("/ Search")
        find(terminal, "22 + 1 = 23", "1 message in 1 chat")
        assert "What is 11 + 22?" in terminal.wait_for("22 + 1 = 23.")
        leave(terminal)
    messages = kept(nano)
    asked = next(one for one in messages if one.text == "What is 2 + 2?")
    assert next(one for one in messages if one.id == asked.parent).text == "4 + 1 = 5."


def test_what_is_typed_after_the_key_for_searching_is_searched_for(nano: Path) -> None:
    """Somebody types on at once: no letter is taken for a key of the list, as `d` and then `y` would be."""
    with program() as terminal:
        terminal.wait_for(READY)
        ask(terminal, SUM, ANSWER)
        terminal.press("C-g")
        for letter in "daily":
            time.sleep(0.1)
            terminal.type(letter)
        screen = settled(terminal)
        leave(terminal)
    assert [one.text for one in kept(nano)] == [SUM, ANSWER]
    assert "daily" in screen


def test_a_chat_is_exported_twice(nano: Path, tmp_path: Path) -> None:
    with program(folder=tmp_path) as terminal:
        terminal.wait_for(READY)
        ask(terminal, SUM, ANSWER)
        terminal.press("C-s")
        terminal.wait_for("Export the chat")
        terminal.press("Enter")
        terminal.wait_for("Written")
        terminal.press("C-s")
        terminal.wait_for("Export the chat")
        write_name(terminal, "chat.json")
        terminal.wait_for("Written: chat.json")
        terminal.press("C-s")
        terminal.wait_for("Export the chat")
        write_name(terminal, "chat.json")
        terminal.wait_for("Overwrite chat.json?")
        terminal.press("Enter")  # no
        terminal.wait_without("Overwrite")
        leave(terminal)
    [markdown] = tmp_path.glob("*.md")
    assert SUM in markdown.read_text()
    assert ANSWER in markdown.read_text()
    value = json.loads((tmp_path / "chat.json").read_text())
    assert [one["text"] for one in value["messages"]] == [SUM, ANSWER]


def test_a_file_of_another_architecture(home: Path) -> None:
    model = smollm2()
    with program("chat", model, "--temperature", "0") as terminal:
        terminal.wait_for(READY, 60)
        assert model.name[:20] in terminal.screen()
        send(terminal, "Say hello in one word.")
        terminal.wait_for("▸ answering", 60)
        terminal.press("Escape")
        terminal.wait_for(READY)
        leave(terminal)
    assert re.search("[a-z]{3}", kept(home)[-1].text)


def test_a_terminal_that_changes_its_size_while_an_answer_comes(home: Path, tmp_path: Path) -> None:
    text = write_counting(tmp_path / "words.gguf", 1600)
    with program("chat", tmp_path / "words.gguf") as terminal:
        terminal.wait_for(READY)
        send(terminal, "Go on")
        terminal.wait_for("w00")
        for width, height in ((200, 60), (40, 12), (80, 24), (31, 9), (200, 60), (80, 24)):
            terminal.resize(width, height)
            time.sleep(0.25)
        assert "▸ answering" in terminal.screen()  # it was long enough
        terminal.wait_for("w1599", 60)
        terminal.wait_for(READY)
        read = pages(terminal)
        leave(terminal)
    assert kept(home)[-1].text == text
    words = re.findall(r"w\d{4}", text)
    assert re.findall(r"w\d{4}", "\n".join(merged(read))) == words
    with program("chat", tmp_path / "words.gguf") as terminal:  # the same as if nothing had happened
        terminal.wait_for(READY)
        terminal.press("C-g")
        terminal.wait_for("1 chat")
        find(terminal, "w0000", "1 message in 1 chat")
        assert spoken(pages(terminal)) == spoken(read)
        leave(terminal)


def pages(terminal: Terminal) -> list[list[str]]:
    """The whole transcript from its beginning, page by page."""
    browse(terminal)
    terminal.press("Home")
    found = [transcript(settled(terminal))]
    while True:
        terminal.press("PageDown")
        page = transcript(settled(terminal))
        if page == found[-1]:
            return found
        found.append(page)
        assert len(found) < 100


def spoken(read: list[list[str]]) -> list[str]:
    """The lines of all pages that say something."""
    return [line for line in merged(read) if line]


def merged(read: list[list[str]]) -> list[str]:
    """The lines of all pages; the last page repeats some of the one before it."""
    *whole, last = read
    lines = [line for page in whole for line in page]
    again = max(count for count in range(len(last) + 1) if lines[len(lines) - count :] == last[:count])
    return lines + last[again:]
