"""Versions of messages on the screen, and what must not get mixed up: branches, chats, windows, models."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from phi4local.actions.chat import Opened
from phi4local.errors import InsufficientResources
from phi4local.history import History
from phi4local.settings import history_file
from tests.fakes import FakeEngine, loads
from tests.screens import ask, drawn, notices, play, send, texts, until
from ui import told
from ui.chat import ChatScreen
from ui.dialogs import Confirm

Stage = Pilot[None]


def test_another_answer_is_drawn_otherwise(home: Path) -> None:
    engine = FakeEngine()

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "q")
        for versions in (2, 3):
            await pilot.press("ctrl+r")
            await until(pilot, lambda n=versions: chat.waiting is None and f"of {n} ›" in drawn(chat))

    play(scene, engine)
    assert engine.options[0].temperature == 0
    assert [one.temperature for one in engine.options[1:]] == [0.7, 0.7]
    assert len({one.seed for one in engine.options}) == 3


def test_what_the_user_has_set_is_kept_for_another_answer(home: Path) -> None:
    engine = FakeEngine()

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "q")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: chat.waiting is None and "of 2 ›" in drawn(chat))

    play(scene, engine, sampling={"temperature": 0, "seed": 7})
    assert [(one.temperature, one.seed) for one in engine.options] == [(0, 7), (0, 7)]


def test_editing_ends_when_another_branch_is_opened(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "one")
        await ask(pilot, chat, "two")
        await pilot.press("ctrl+up", *["up"] * 3, "e")
        await until(pilot, lambda: chat.prompt.text == "one")
        await ask(pilot, chat, " more")
        await pilot.press("ctrl+up", "up", "left")  # back to the first branch
        await until(pilot, lambda: len(texts(chat)) == 4)
        await pilot.press("down", "down", "e")
        await until(pilot, lambda: chat.prompt.text == "two")
        await pilot.press("ctrl+up", "up", "up", "right")
        await until(pilot, lambda: len(texts(chat)) == 2)
        assert chat.prompt.text == ""
        await ask(pilot, chat, "three")
        assert texts(chat)[::2] == ["one more", "three"]
        kept = chat.talk.history.branch(chat.talk.branch[-1].id)
        assert [one.text for one in kept] == texts(chat)

    play(scene)


def test_editing_ends_with_a_new_chat(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "one")
        await pilot.press("ctrl+up", "up", "e")
        await until(pilot, lambda: chat.prompt.text == "one")
        await pilot.press("ctrl+n")
        await until(pilot, lambda: texts(chat) == [])
        assert chat.prompt.has_focus
        await ask(pilot, chat, "other")
        assert len(chat.talk.history.chats()) == 2

    play(scene)


def test_a_new_chat_begins_as_the_program_did(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "one")
        chat.talk.set(system="You are a pirate", sampling={"temperature": 1.5})
        await pilot.press("ctrl+n")
        await ask(pilot, chat, "two")
        assert (chat.talk.chat.system, chat.talk.chat.sampling) == ("Be brief", {})
        assert chat.talk.chat.model == "phi-4:Q4_K_M"

    play(scene, system="Be brief")


def test_a_failure_on_disk_leaves_the_branch_as_it_was(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise InsufficientResources("The disk is full")

        await ask(pilot, chat, "one")
        with monkeypatch.context() as patch:
            patch.setattr(chat.talk.history, "open_at", refuse)
            await pilot.press("ctrl+r")
            await until(pilot, lambda: any("disk is full" in one for one in notices(pilot)))
        assert len(chat.talk.branch) == len(texts(chat)) == 2
        with monkeypatch.context() as patch:
            patch.setattr(chat.talk.history, "delete_message", refuse)
            await pilot.press("ctrl+up", "d")
            await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
            pilot.app.clear_notifications()
            await pilot.press("y")
            await until(pilot, lambda: any("disk is full" in one for one in notices(pilot)))
        await ask(pilot, chat, "two")
        assert [one.text for one in chat.talk.history.branch(chat.talk.branch[-1].id)] == texts(chat)

    play(scene)


def test_an_answer_that_a_full_disk_refused_is_saved_later(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise InsufficientResources("The disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(chat.talk.history, "finish", refuse)
            await ask(pilot, chat, "one two")
            chat.show_chat()
            assert texts(chat)[-1] == "one two "
        await pilot.press("ctrl+q")

    play(scene)
    history = History(history_file())
    leaf = history.chats()[0].chat.leaf
    assert leaf
    assert [(one.text, one.state) for one in history.branch(leaf)][-1] == ("one two ", "complete")
    history.close()


def test_a_chat_that_was_deleted_elsewhere_is_kept(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "one")
        other = History(history_file())
        other.delete_chat(chat.talk.chat.id)
        other.close()
        await ask(pilot, chat, "two")
        assert texts(chat)[::2] == ["one", "two"]
        assert [one.messages for one in chat.talk.history.chats()] == [4]

    play(scene)


def test_a_late_answer_about_room_is_not_for_another_chat(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await pilot.press("ctrl+l")
        await until(pilot, lambda: chat._drop_at is not None)
        chat.post_message(told.DropCounted(chat._asked - 1, 2, 30))
        await pilot.pause(0.1)
        assert chat._drop_at == 0

    play(scene)


def test_escape_takes_a_question_back_that_waits_for_its_model(home: Path) -> None:
    go_on, engine = threading.Event(), FakeEngine()

    def slow(choice: told.ModelChoice, before: Opened | None, leave: Any) -> Opened:
        if choice.name == "other":
            go_on.wait(30)
        return loads(engine)(choice, before, leave)

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        chat.model._load = slow
        chat.model.open(told.ModelChoice("other"))
        await until(pilot, lambda: chat._state == "loading")
        await send(pilot, chat, "q")
        await pilot.press("escape")
        await until(pilot, lambda: chat.waiting is None)
        assert "not asked" in drawn(chat)
        go_on.set()
        await until(pilot, lambda: chat._state == "ready")
        assert engine.asked == []
        await pilot.press("ctrl+r")
        await until(pilot, lambda: len(texts(chat)) == 2 and chat.waiting is None)

    play(scene, engine)


def test_the_summary_can_be_read(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "one")
        await ask(pilot, chat, "two")
        chat.shorten(chat.talk.branch[2].id, "They said one")
        assert "a summary of the 2 messages above" in drawn(chat)
        assert "They said one" in drawn(chat)

    play(scene)
