"""The screen of all chats: what it lists and finds, what its keys change, and what it says when the disk fails."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Footer, Label

from phi4local.history import History
from phi4local.settings import history_file
from tests.listing import HOSTILE, LEFT_OPEN, Host, ask, play, until, write
from ui.chats import NEW, ChatsScreen, Chosen
from ui.dialogs import Ask, Confirm, Line, Pick
from ui.finder import SearchBox
from ui.listing import when


@pytest.fixture
def history() -> Iterator[History]:
    with contextlib.closing(History(history_file())) as opened:
        yield opened


KEYS = ("Open", "Search", "New", "Rename", "Pin", "Move", "Folder", "Delete", "Export", "Import", "Back")


def titles(history: History) -> list[str]:
    return [one.chat.title for one in history.chats()]


async def find(host: Host, pilot: Pilot[None], text: str) -> None:
    """Type into the search box until the list is what the text finds."""
    await pilot.press("ctrl+f", *(("space" if letter == " " else letter) for letter in text))
    await until(pilot, lambda: host.finder._found.text == text)
    await pilot.pause()


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
@pytest.mark.parametrize("theme", ["textual-dark", "textual-light"])
def test_a_chat_is_listed_with_all_that_is_known_of_it(history: History, size: tuple[int, int], theme: str) -> None:
    current = ask(history, "Fourier series", "How do\nI derive it?", "So.", folder="Physics", model="phi-4:Q4_K_M")
    ask(history, "", "Hello")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        host.theme = theme
        # The footer comes last, and its keys once more when a row is chosen.
        await until(pilot, lambda: all(host.shows(name) for name in ("2 chats", *KEYS)))
        text = "\n".join(host.lines())
        assert re.search(r"▌ Fourier series +today \d\d:\d\d", text)
        assert re.search(r"▌ How do I derive it\? +open · Physics · 2 messages · phi-4:Q4_K_M", text)
        assert re.search(r"  Untitled +today", text)
        assert "· " not in text.split("Hello")[1].split("1 message")[0]
        assert {cell_len(line) for line in host.lines()} == {size[0]}

    play(scene, history, size=size, current=current)


def test_the_chosen_chat_is_given_back(history: History) -> None:
    first, second = ask(history, "first", "a"), ask(history, "second", "b")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        await pilot.press("down", "enter")
        await until(pilot, lambda: host.left is not LEFT_OPEN)

    assert play(scene, history, current=second).left == Chosen(first)


@pytest.mark.parametrize(("key", "left"), [("n", NEW), ("escape", None)])
def test_leaving_without_a_chat(history: History, key: str, left: Chosen | None) -> None:
    async def scene(host: Host, pilot: Pilot[None]) -> None:
        assert host.shows("No chats yet")
        await pilot.press("enter", "r", "p", "m", "d", "e", key)
        await until(pilot, lambda: host.left is not LEFT_OPEN)

    assert play(scene, history).left == left


def test_a_search_leads_to_an_old_message(history: History) -> None:
    old = ask(history, "Analysis", "Tell me of\nwaves", f"Near a jump the {HOSTILE} Gibbs phenomenon stays", "Thanks")
    for number in range(60):
        ask(history, f"chat {number}", f"nothing of interest {number}")
    found = history.tree(old)[1][1].id

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        assert isinstance(host.focused, SearchBox)
        await find(host, pilot, "gibbs")
        assert host.shows("Gibbs phenomenon")
        assert host.shows("1 message in 1 chat")
        assert host.shows("Analysis")
        assert host.shows("Answer …")
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", "".join(host.lines()))
        assert isinstance(host.focused, SearchBox)
        await pilot.press("enter")
        await until(pilot, lambda: host.left is not LEFT_OPEN)

    assert play(scene, history, searching=True).left == Chosen(old, found)


def test_the_cursor_goes_through_what_was_found_while_the_search_box_keeps_the_focus(history: History) -> None:
    first = ask(history, "one", "needle a", "no", "needle b")
    ask(history, "needle case", "c")
    messages = [message.id for message in history.tree(first)[1]]

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        await find(host, pilot, "needle")
        seen = [host.finder.place]
        for _ in range(3):
            await pilot.press("down")
            seen.append(host.finder.place)
        assert seen == [(2, None), (1, messages[2]), (1, messages[0]), (1, messages[0])]
        assert isinstance(host.focused, SearchBox)
        await pilot.press("pageup", "escape")
        assert host.finder.box.value == ""
        assert not isinstance(host.focused, SearchBox)
        assert host.shows("2 chats")
        assert host.left is LEFT_OPEN

    play(scene, history)


def test_letters_are_typed_into_the_search_box_and_change_nothing(history: History) -> None:
    ask(history, "kept", "a")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        await pilot.press("slash", *"nrpmfdei/", "delete")
        await until(pilot, lambda: host.shows("Nothing found"))
        assert host.finder.box.value == "nrpmfdei/"
        assert host.screen is host.chats
        await pilot.press("enter")
        assert host.left is LEFT_OPEN

    play(scene, history)
    assert titles(history) == ["kept"]


def test_typing_and_leaving_do_not_wait_for_the_disk(history: History) -> None:
    ask(history, "a", "needle")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        with history._file._lock:  # as held by a slow write
            await pilot.press("slash", *"need")
            host.finder._search()
            await pilot.press("l", "e")
            assert host.finder.box.value == "needle"
        await until(pilot, lambda: host.shows("1 message in 1 chat"))
        with history._file._lock:
            host.finder._search()
            await pilot.press("escape", "escape")
            await until(pilot, lambda: host.left is None)

    play(scene, history)


@pytest.mark.parametrize("size", [(1, 1), (12, 5), (30, 8)])
def test_a_tiny_terminal_shows_what_it_can(history: History, size: tuple[int, int]) -> None:
    ask(history, "日本語のテキスト", "needle " * 20, folder="日本語")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        await find(host, pilot, "needle")
        await pilot.press("down", "escape", "down", "d")
        await until(pilot, lambda: isinstance(host.screen, Confirm))
        assert {cell_len(line) for line in host.lines()} == {size[0]}

    play(scene, history, size=size)


@pytest.mark.parametrize("key", ["r", "f2"])
def test_a_chat_is_renamed(history: History, key: str) -> None:
    chat = ask(history, HOSTILE, "a")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        assert host.shows("[red]no[/red] [@click=app.quit]x[/] \\x1b]52;c;aGk=\\x07\\x1b[31m \\x202eback $x {y}")
        await pilot.press(key)
        await until(pilot, lambda: isinstance(host.screen, Ask))
        host.screen.query_one(Line).value = "[b]\x1b[31m\u202e new\nname "
        await pilot.press("enter")
        await until(pilot, lambda: history.chat(chat).title != HOSTILE)
        await until(pilot, lambda: host.shows("[b]\ufffd[31m\ufffd new name"))
        await pilot.press(key, "x", "escape")
        await pilot.pause()

    play(scene, history)
    assert titles(history) == ["[b]\ufffd[31m\ufffd new name"]


def test_pinned_chats_come_first_and_the_cursor_stays_on_its_chat(history: History) -> None:
    for title in "abc":
        ask(history, title, "x")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        await pilot.press("down", "down", "p")
        await until(pilot, lambda: host.shows("★ a"))
        assert host.finder.place == (1, None)
        assert host.rows.cursor == 0
        await pilot.press("p")
        await until(pilot, lambda: not host.shows("★"))
        assert host.rows.cursor == 2

    play(scene, history)
    assert titles(history) == ["c", "b", "a"]


def test_chats_are_moved_to_folders_and_listed_by_folder(history: History) -> None:
    ask(history, "a", "x")
    ask(history, "b", "x", folder="[i]Work")
    chat = ask(history, "c", "x")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        await pilot.press("m")
        await until(pilot, lambda: host.shows("[i]Work") and isinstance(host.screen, Ask))
        await pilot.press("down", "enter")
        await until(pilot, lambda: history.chat(chat).folder == "[i]Work")
        await pilot.press("f")
        await until(pilot, lambda: isinstance(host.screen, Pick))
        assert host.shows("All 3 chats")
        assert host.shows("[i]Work (2)")
        await pilot.press("end", "enter")
        await until(pilot, lambda: host.shows("2 of 3 chats, in “[i]Work”"))
        assert not host.shows("a today")
        for _ in range(2):  # the folder that is listed loses its last chat
            await pilot.press("m")
            await until(pilot, lambda: isinstance(host.screen, Ask))
            chats = host.finder._chats
            await write(pilot, "")
            await until(pilot, lambda before=chats: host.finder._chats is not before)
        await until(pilot, lambda: host.shows("3 chats") and host.shows("a today"))

    play(scene, history)
    assert {one.chat.folder for one in history.chats()} == {""}


def test_a_chat_is_deleted_after_a_question_that_names_it(history: History) -> None:
    kept, chat = ask(history, "kept", "a"), ask(history, "[b]Gone", "a", "b", "c")
    gone: list[int] = []

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        for answer in ("enter", "n", "escape"):
            await pilot.press("d")
            await until(pilot, lambda: isinstance(host.screen, Confirm))
            assert host.shows("Delete “[b]Gone”?")
            assert host.shows("3 messages, which cannot be brought back")
            await pilot.press(answer)
            await until(pilot, lambda: host.screen is host.chats)
        assert len(history.chats()) == 2
        await pilot.press("delete")
        await until(pilot, lambda: isinstance(host.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: gone and host.shows("1 chat"))
        assert host.finder.place == (kept, None)
        await pilot.press("escape")
        await until(pilot, lambda: host.left is not LEFT_OPEN)

    # The chat that was open is gone: the one behind this screen cannot go on.
    assert play(scene, history, current=chat, on_delete=gone.append).left == NEW
    assert gone == [chat]
    assert titles(history) == ["kept"]


def test_the_mouse_selects_and_opens(history: History) -> None:
    chats = [ask(history, title, "x") for title in "abc"]

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        await pilot.click("Rows", offset=(10, 3))
        assert host.finder.place == (chats[1], None)
        await pilot.click("Rows", offset=(10, 20))  # below the last row
        assert host.finder.place == (chats[1], None)
        assert host.left is LEFT_OPEN
        await pilot.click("Rows", offset=(10, 4), times=2)
        await until(pilot, lambda: host.left is not LEFT_OPEN)

    assert play(scene, history).left == Chosen(chats[0])


def change(history: History, query: str) -> None:
    with contextlib.closing(sqlite3.connect(history.path)) as db, db:
        db.execute(query)


def test_a_damaged_file_is_named_in_the_screen(history: History) -> None:
    ask(history, "a", "x")
    change(history, "UPDATE chat SET sampling = 'nonsense'")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: host.shows("` are damaged:"))
        assert host.shows("Move `history.sqlite3`")
        await pilot.press("r", "slash", "x", "enter", "escape", "escape")
        await until(pilot, lambda: host.left is None)

    play(scene, history)


def test_a_file_that_cannot_be_written_leaves_all_as_it_is(history: History) -> None:
    ask(history, "a", "x")
    gone: list[int] = []

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        host.history._file._db.execute("PRAGMA query_only = ON")
        await pilot.press("d")
        await until(pilot, lambda: isinstance(host.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: host.shows("cannot be written"))
        assert host.shows("PHI4LOCAL_HOME")
        host.history._file._db.execute("PRAGMA query_only = OFF")
        await pilot.press("p")
        await until(pilot, lambda: host.shows("★ a"))
        assert not host.shows("cannot be written")

    play(scene, history, on_delete=gone.append)
    assert gone == []


def test_only_what_is_seen_is_drawn(history: History) -> None:
    with history._file.writing() as db:
        chat = "INSERT INTO chat VALUES (?, ?, ?, ?, 0, '', '', '', '{}', NULL)"
        time = "2026-01-02T03:04:05Z"
        db.executemany(chat, [(number, f"chat {number}", time, time) for number in range(1, 3001)])
    drawn: list[int] = []

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: host.shows("chat 3000"))
        rows: Any = host.rows
        line = rows.render_line
        rows.render_line = lambda y: drawn.append(y) or line(y)
        await pilot.press("end")
        await until(pilot, lambda: host.shows("▌ chat 1 "))
        await pilot.press("home")
        await until(pilot, lambda: host.shows("▌ chat 3000 "))
        assert len(drawn) < 500

    play(scene, history)


def test_times_are_said_as_people_say_them() -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    said = {"2026-03-01T09:05:00Z": "today 09:05", "2026-02-28T23:59:59Z": "yesterday", "2026-01-02T00:00:00Z": "2 Jan"}
    assert {time: when(time, now) for time in said} == said
    assert when("2024-02-29T00:00:00Z", now) == "29 Feb 2024"
    assert when("\x1b[31m nonsense", now) == "\\x1b[31m nons"
    assert when("9999-12-31T23:59:59-12:00", now + timedelta(days=1)).startswith("9999")


def test_a_question_is_shown_as_text_and_gives_back_what_was_typed() -> None:
    answers: list[Any] = []

    async def scene() -> None:
        app = App[None]()
        async with app.run_test() as pilot:
            app.push_screen(Ask(HOSTILE, text="a", choices=["[b]x", "y"], note=HOSTILE), answers.append)
            await pilot.pause()
            assert len(app.screen.query(Label)) == 2
            assert app.screen.query_one(Footer)
            await pilot.click("OptionList", offset=(1, 0))
            await pilot.press("1", "enter")
            await pilot.pause()
            app.push_screen(Pick(HOSTILE, ["a", HOSTILE]), answers.append)
            await pilot.pause()
            await pilot.click("OptionList", offset=(1, 1))
            await pilot.pause()
            app.push_screen(Confirm(HOSTILE, note=HOSTILE), answers.append)
            await pilot.pause()
            await pilot.press("left", "enter")
            await pilot.pause()

    asyncio.run(scene())
    assert answers == ["[b]x1", 1, True]


def test_every_key_says_what_it_does() -> None:
    bindings = [binding for screen in (ChatsScreen, Ask, Confirm, Pick) for binding in screen.BINDINGS]
    assert all(binding.id and binding.description and binding.tooltip for binding in bindings)  # type: ignore[union-attr]
    assert Path(ChatsScreen.CSS_PATH).suffix == ".tcss"  # type: ignore[arg-type]
