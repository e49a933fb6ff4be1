"""The chat on the screen: asking, stopping, versions, a full context, a dying engine."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from textual.pilot import Pilot

from phi4local.conversation import Message
from tests.fakes import FakeEngine
from tests.screens import ask, drawn, notices, play, send, texts, until
from ui.chat import ChatScreen
from ui.context import ContextScreen
from ui.dialogs import Confirm

Stage = Pilot[None]


def endless(messages: Sequence[Message]) -> Iterable[str]:
    while True:
        yield "on "


def test_a_question_is_answered_and_kept(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "hello you")
        assert texts(chat) == ["hello you", "hello you "]
        assert "You\n" in drawn(chat).replace("▎ ", "")
        assert [one.text for one in chat.talk.history.branch(chat.talk.branch[-1].id)] == texts(chat)
        assert chat.status.budget.used_tokens == 8
        assert chat.prompt.text == ""
        assert chat.talk.chat.title == "hello you"

    play(scene)


def test_escape_stops_within_a_token_and_keeps_what_was_said(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await send(pilot, chat, "go on")
        await until(pilot, lambda: texts(chat)[-1].startswith("on "))
        await pilot.press("escape")
        await until(pilot, lambda: chat.waiting is None)
        assert chat.talk.branch[-1].state == "stopped"
        assert "stopped" in drawn(chat)
        await ask(pilot, chat, "/")  # the next one works; what was said is part of it

    engine = FakeEngine(
        lambda messages: endless(messages) if messages[-1].content == "go on" else ["yes"], seconds=0.01
    )
    play(scene, engine)
    assert [message.role for message in engine.asked[-1]] == ["user", "assistant", "user"]


def test_a_stop_before_the_first_word_counts(home: Path) -> None:
    reached = threading.Event()

    def slow(messages: Sequence[Message]) -> Iterable[str]:
        reached.wait(10)
        yield from endless(messages)

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await send(pilot, chat, "q")
        await pilot.press("escape")
        reached.set()
        await until(pilot, lambda: chat.waiting is None)
        assert chat.talk.branch[-1].state == "stopped"

    play(scene, FakeEngine(slow))


def test_nothing_is_asked_while_an_answer_comes(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await send(pilot, chat, "go on")
        await until(pilot, lambda: len(texts(chat)) == 2)
        chat.prompt.insert("another")
        await pilot.press("enter")
        await pilot.pause()
        assert chat.prompt.text == "another"
        assert any("still coming" in one for one in notices(pilot))
        await pilot.press("escape")
        await until(pilot, lambda: chat.waiting is None)

    play(scene, FakeEngine(endless, seconds=0.01))


def test_letters_and_enter_keep_their_order(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await pilot.press(*"abc", "enter", *"de", "ctrl+j", *"f")
        await until(pilot, lambda: len(texts(chat)) == 2 and chat.prompt.text == "de\nf")
        assert texts(chat)[0] == "abc"

    play(scene)


def test_an_edited_question_is_another_version(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "first")
        await ask(pilot, chat, "second")
        await pilot.press("ctrl+up", *["up"] * 3, "e")
        assert chat.prompt.text == "first"
        await pilot.press("home", *"new", "space", "enter")
        await until(pilot, lambda: chat.waiting is None and len(texts(chat)) == 2)
        assert texts(chat) == ["new first", "new first "]
        assert "‹ 2 of 2 ›" in drawn(chat)
        await pilot.press("ctrl+up", "up", "left")
        await until(pilot, lambda: len(texts(chat)) == 4)
        assert texts(chat)[0] == "first"
        assert chat.transcript.current == 0
        await pilot.press("right")
        await until(pilot, lambda: len(texts(chat)) == 2)

    play(scene)


def test_escape_gives_up_an_edit(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "first")
        await pilot.press("ctrl+up", "up", "e", "escape")
        assert chat.prompt.text == ""
        await ask(pilot, chat, "second")
        assert texts(chat)[::2] == ["first", "second"]

    play(scene)


def test_an_answer_can_be_written_by_the_user(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "first")
        await pilot.press("ctrl+up", "e", *"!!", "enter")
        await until(pilot, lambda: texts(chat)[-1] == "first!!" or texts(chat)[-1] == "first !!")
        assert chat.waiting is None
        assert chat.talk.places()[-1].of == 2

    play(scene)


def test_another_answer_to_the_same_question(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "first")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: chat.waiting is None and "‹ 2 of 2 ›" in drawn(chat))
        assert len(texts(chat)) == 2

    play(scene)


def test_deleting_asks_first(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "first")
        await ask(pilot, chat, "second")
        await pilot.press("ctrl+up", "up", "d")
        await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
        await pilot.press("n")
        assert len(texts(chat)) == 4
        await pilot.press("d")
        await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: len(texts(chat)) == 2)
        assert len(chat.talk.branch) == 2

    play(scene)


def test_copying_a_message_and_its_code(home: Path) -> None:
    answer = "Run\n\n```python\nprint(1)\n```\n\nor\n\n```sh\nls -l\n```\n"

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "how?")
        await pilot.press("ctrl+up", "y")
        assert pilot.app.clipboard == answer
        await pilot.press("c")
        assert pilot.app.clipboard.strip() == "print(1)"
        await pilot.press("c")
        assert pilot.app.clipboard.strip() == "ls -l"
        await pilot.press("c")
        assert pilot.app.clipboard.strip() == "print(1)"

    play(scene, FakeEngine(lambda _: [answer]))


def test_quoting_goes_into_the_question(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "first")
        await pilot.press("ctrl+up", "q", *"why")
        assert chat.prompt.text == "> first \n\nwhy"

    play(scene)


def test_thinking_is_folded_with_length_and_time(home: Path) -> None:
    pieces = ["<think>", "first I ", "thought so", "</think>", "It is $x^2$."]

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "q")
        assert "▸ Thought for" in drawn(chat)
        assert "4 words" in drawn(chat)
        assert "first I thought" not in drawn(chat)
        assert "x²" in drawn(chat)
        await pilot.press("ctrl+up", "t")
        assert "first I thought so" in drawn(chat)
        await pilot.press("t", "s")
        assert "$x^2$" in drawn(chat)
        assert "first I thought" not in drawn(chat)

    play(scene, FakeEngine(lambda _: pieces))


def test_the_engine_may_die_in_an_answer(home: Path) -> None:
    engine = FakeEngine()

    def dies(messages: Sequence[Message]) -> Iterable[str]:
        yield "half "
        if messages[-1].content == "die":
            engine.die()
        yield "more"

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await send(pilot, chat, "die")
        await until(pilot, lambda: chat.waiting is None, seconds=2)
        assert "SIGKILL" in drawn(chat)
        assert chat.talk.branch[-1].state == "failed"
        await ask(pilot, chat, "live")
        assert texts(chat)[-1] == "half more"

    engine.script = dies
    play(scene, engine)


def test_the_engine_may_die_while_nothing_is_asked(home: Path) -> None:
    engine = FakeEngine()

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        engine.die()
        await until(pilot, lambda: any("has ended" in one for one in notices(pilot)), seconds=2)
        await ask(pilot, chat, "live")
        assert texts(chat)[-1] == "live "

    play(scene, engine)


def test_what_does_not_fit_is_not_cut(home: Path) -> None:
    engine = FakeEngine(context_tokens=400)

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        for number in range(3):
            await ask(pilot, chat, f"{number} " + "word " * 50)
        await send(pilot, chat, "more " * 60)
        await until(pilot, lambda: isinstance(pilot.app.screen, ContextScreen))
        asked = len(engine.asked)
        await pilot.press("escape")
        assert len(engine.asked) == asked
        assert "not" in drawn(chat) or "takes" in drawn(chat)
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(pilot.app.screen, ContextScreen))
        await until(pilot, lambda: chat._drop_at is not None)
        await pilot.press("1")
        await until(pilot, lambda: len(engine.asked) == asked + 1 and chat.waiting is None)
        assert len(texts(chat)) == 8
        assert "no longer told" in "\n".join(turn.rule for turn in chat.transcript.turns)
        assert len(engine.asked[-1]) < 7

    play(scene, engine)


def test_a_summary_stands_for_what_goes(home: Path) -> None:
    def script(messages: Sequence[Message]) -> Iterable[str]:
        return ["In short"] if messages[-1].content.startswith("Summarise") else ["word " for _ in range(50)]

    engine = FakeEngine(script, context_tokens=500)

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        for number in range(3):
            await ask(pilot, chat, f"{number} " + "word " * 50)
        await send(pilot, chat, "more " * 150)
        await until(pilot, lambda: isinstance(pilot.app.screen, ContextScreen))
        await until(pilot, lambda: chat._drop_at is not None)
        await pilot.press("2")
        await until(pilot, lambda: chat.waiting is None and len(texts(chat)) == 8)
        assert "In short" in engine.asked[-1][0].content
        assert chat.talk.chat.sampling["summary"] == "In short"

    play(scene, engine)
