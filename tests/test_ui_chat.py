"""The chat on the screen: asking, stopping, versions, files, and what cannot be kept or answered."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from phi4local.conversation import Message
from phi4local.errors import InsufficientResources
from phi4local.settings import history_file
from tests.fakes import FakeEngine
from tests.screens import ask, drawn, notices, play, send, texts, until
from ui.chat import ChatScreen
from ui.context import ContextScreen
from ui.dialogs import Ask, Confirm
from ui.help import HelpScreen

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
        assert chat.talk.place(chat.talk.branch[-1]).of == 2

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


def test_a_full_disk_keeps_the_question_in_its_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise InsufficientResources("The disk is full", hint="Make room")

        monkeypatch.setattr(chat.talk.history, "add", refuse)
        chat.prompt.insert("important")
        await pilot.press("enter")
        await until(pilot, lambda: any("disk is full" in one for one in notices(pilot)))
        assert chat.prompt.text == "important"
        assert texts(chat) == []
        monkeypatch.undo()
        await pilot.press("enter")
        await until(pilot, lambda: len(texts(chat)) == 2)

    play(scene)


def test_files_cost_what_is_shown(home: Path, tmp_path: Path) -> None:
    engine = FakeEngine()
    (tmp_path / "notes.txt").write_text("one two three four\n")

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await pilot.press("ctrl+f")
        await until(pilot, lambda: isinstance(pilot.app.screen, Ask))
        await pilot.press(*str(tmp_path / "missing.txt"), "enter")
        await until(pilot, lambda: any("missing.txt" in one for one in notices(pilot)))
        chat.attached.read(tmp_path / "notes.txt")
        await until(pilot, lambda: chat.attached.files and chat.attached.files[0].tokens)
        await ask(pilot, chat, "what?")
        assert "one two three four" in engine.asked[-1][-1].content
        assert "+ notes.txt, 19 B" in drawn(chat)
        assert chat.attached.files == []

    play(scene, engine)


def test_a_file_is_named_by_its_path(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.txt").write_text("the numbers\n")
    engine = FakeEngine()

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await pilot.press(*"see", "space", "@", *"rep")
        await until(pilot, lambda: chat.prompt.choices and chat.prompt.choices.display)
        await pilot.press("tab")
        assert chat.prompt.text == "see @report.txt "
        await pilot.press("enter")
        await until(pilot, lambda: chat.waiting is None and len(texts(chat)) == 2)
        assert "the numbers" in engine.asked[-1][-1].content

    play(scene, engine)


def test_a_long_paste_becomes_a_file(home: Path) -> None:
    from textual.events import Paste

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        chat.prompt.post_message(Paste("line\n" * 10))
        await until(pilot, lambda: chat.prompt.text == "line\n" * 10)
        chat.prompt.post_message(Paste("line\n" * 10_000))
        await until(pilot, lambda: chat.attached.files)
        assert chat.attached.files[0].bytes == 50_000
        assert chat.prompt.text == "line\n" * 10

    play(scene)


def test_earlier_questions_come_back(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "first")
        await ask(pilot, chat, "second")
        await pilot.press(*"draft", "up")
        assert chat.prompt.text == "second"
        await pilot.press("up")
        assert chat.prompt.text == "first"
        await pilot.press("down", "down")
        assert chat.prompt.text == "draft"

    play(scene)


def test_export_and_rename(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "first")
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(pilot.app.screen, Ask))
        await pilot.press(*"er", "enter")
        await until(pilot, lambda: chat.talk.chat.title == "firster")
        for name, key in (("chat.md", "f8"), ("chat.json", "f8")):
            await pilot.press(key)
            await until(pilot, lambda: isinstance(pilot.app.screen, Ask))
            await pilot.press("ctrl+u", *name, "enter")
            await until(pilot, (tmp_path / name).exists)
        assert "first" in (tmp_path / "chat.md").read_text()
        assert json.loads((tmp_path / "chat.json").read_text())["title"] == "firster"

    play(scene)


def test_ctrl_c_means_the_nearest_thing(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await send(pilot, chat, "go on")
        await until(pilot, lambda: len(texts(chat)) == 2)
        await pilot.press("ctrl+c")
        await until(pilot, lambda: chat.waiting is None)
        await pilot.press(*"half", "ctrl+c")
        assert chat.prompt.text == ""
        await pilot.press("up")
        assert chat.prompt.text == "half"
        await pilot.press("ctrl+c", "ctrl+c")
        assert any("Ctrl-C again" in one for one in notices(pilot))
        await pilot.press("ctrl+c")
        await until(pilot, lambda: not pilot.app.is_running or pilot.app._exit)

    play(scene, FakeEngine(endless, seconds=0.01))


def test_leaving_in_an_answer_keeps_it(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await send(pilot, chat, "go on")
        await until(pilot, lambda: texts(chat)[-1].startswith("on "))
        await pilot.press("ctrl+q")

    play(scene, FakeEngine(endless, seconds=0.01))
    from phi4local.history import History

    history = History(history_file())
    [summary] = history.chats()
    assert summary.chat.leaf
    kept = history.branch(summary.chat.leaf)[-1]
    history.close()
    assert kept.text.startswith("on ")
    assert kept.state == "stopped"


def test_settings_of_the_command_line_reach_the_chat(home: Path) -> None:
    engine = FakeEngine()

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, "q")
        assert chat.talk.history.chat(chat.talk.chat.id).sampling == {"temperature": 0.5}

    play(scene, engine, system="Be brief", sampling={"temperature": 0.5})
    assert engine.asked[0][0] == Message("system", "Be brief")


def test_help_and_palette_come_from_the_bindings(home: Path) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(pilot.app.screen, HelpScreen))
        await pilot.press("escape")
        offered = {command.title for command in pilot.app.get_system_commands(chat)}
        assert {"All chats, and searching them", "Leave; everything is kept"} <= offered

    play(scene)


def test_keys_can_be_changed(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "keys.toml").write_text('"prompt.send" = "f12"\n"prompt.newline" = "enter"\n')

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await pilot.press(*"a", "enter", *"b", "f12")
        await until(pilot, lambda: len(texts(chat)) == 2)
        assert texts(chat)[0] == "a\nb"

    play(scene)


@pytest.mark.parametrize("text", ['"nothing" = "a"', "not toml", '"prompt.send" = 3', "\xff"])
def test_wrong_keys_are_told_and_change_nothing(home: Path, text: str) -> None:
    home.mkdir(parents=True)
    (home / "keys.toml").write_text(text, encoding="latin-1")

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await until(pilot, lambda: any("keys.toml" in one for one in notices(pilot)))
        await ask(pilot, chat, "works")

    play(scene)


FOREIGN = "[red]x[/] [@click=app.quit]y[/] \x1b[31mz \x1b]52;c;aGk=\x07 \x1b]8;;http://a.b\x07k\x1b]8;;\x07 \u202eabc [l](http://c.d)"


@pytest.mark.parametrize("role", ["question", "answer", "thinking", "title"])
def test_foreign_text_stays_text(home: Path, role: str) -> None:
    said = {"answer": FOREIGN, "thinking": f"<think>{FOREIGN}</think>ok"}.get(role, "ok")

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await ask(pilot, chat, FOREIGN if role in ("question", "title") else "q")
        await pilot.press("ctrl+up", "t")
        lines = [chat.transcript.render_line(y) for y in range(chat.transcript.size.height)]
        text = "\n".join(line.text for line in lines)
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        if role != "title":
            assert "[red]x" in text
        links = [segment.style.link for line in lines for segment in line if segment.style]
        assert set(links) <= {None}
        clicks = [segment.style.meta.get("@click") for line in lines for segment in line if segment.style]
        assert set(clicks) <= {None, "toggle_thinking"}
        screen = pilot.app.export_screenshot()
        assert "app.quit" not in screen or "@click=app.quit" in screen.replace("&#160;", " ")

    play(scene, FakeEngine(lambda _: [said]), size=(120, 40))


def test_no_key_of_the_chat_is_taken_by_the_editor() -> None:
    from textual.widgets import TextArea

    from ui.app import ChatApp
    from ui.keys import bindings_of

    taken = {key for binding in bindings_of(TextArea) for key in binding.key.split(",")}
    ours = [(binding.id, binding.key.split(",")) for place in (ChatApp, ChatScreen) for binding in bindings_of(place)]
    assert [name for name, keys in ours if taken & set(keys)] == ["chat.interrupt"]  # it copies, too
