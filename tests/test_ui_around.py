"""What surrounds a conversation: files, keys, leaving, what cannot be kept, and text that would like to act."""

from __future__ import annotations

import json
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
from ui.dialogs import Ask
from ui.help import HelpScreen

Stage = Pilot[None]


def endless(messages: Sequence[Message]) -> Iterable[str]:
    while True:
        yield "on "


def test_a_full_disk_keeps_the_question_in_its_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise InsufficientResources("The disk is full", hint="Make room")

        monkeypatch.setattr(chat.talk.history, "put", refuse)
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
        chat.composer.attach_path(tmp_path / "notes.txt")
        await until(pilot, lambda: chat.composer.files and chat.composer.files[0].tokens)
        await ask(pilot, chat, "what?")
        assert "one two three four" in engine.asked[-1][-1].content
        assert "+ notes.txt, 19 B" in drawn(chat)
        assert chat.composer.files == []

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
        pilot.app.post_message(Paste("line\n" * 10))
        await until(pilot, lambda: chat.prompt.text == "line\n" * 10)
        pilot.app.post_message(Paste("line\n" * 10_000))
        await until(pilot, lambda: chat.composer.files)
        assert chat.composer.files[0].bytes == 50_000
        assert chat.prompt.text == "line\n" * 10

    play(scene)


def test_files_follow_the_text_that_names_them(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        def names() -> list[str]:
            return [file.name for file in chat.composer.files]

        chat.prompt.insert("see @a.txt and @b.txt here")
        await until(pilot, lambda: names() == ["a.txt", "b.txt"])
        chat.prompt.take("see @b.txt here")
        await until(pilot, lambda: names() == ["b.txt"])
        await pilot.press("enter")
        await until(pilot, lambda: chat.waiting is None and len(texts(chat)) == 2)
        assert names() == []
        await pilot.press("ctrl+up", "up", "e")
        await until(pilot, lambda: chat.prompt.text == "see @b.txt here")
        await pilot.pause(0.1)
        assert names() == ["b.txt"]
        await pilot.press("escape")
        await until(pilot, lambda: names() == [])
        await pilot.press("up")
        await until(pilot, lambda: names() == ["b.txt"])
        await pilot.press("down")
        await until(pilot, lambda: names() == [])

    play(scene)


@pytest.mark.parametrize("name", ["a[", "[slug]", "[@click=app.quit]x[", "[bold]"])
def test_folders_may_be_called_anything(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / f"{name}here"
    (folder / name).mkdir(parents=True)
    monkeypatch.chdir(folder)

    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await pilot.press(*"see", "space", "@")
        assert chat.prompt.choices
        await until(pilot, lambda: chat.prompt.choices and chat.prompt.choices.display)
        assert str(chat.prompt.choices.get_option_at_index(0).prompt).lstrip(chr(34)) == f"{name}/"
        await pilot.press("escape")
        assert not chat.prompt.choices.display
        folder.joinpath(name).rmdir()
        folder.rmdir()
        await pilot.press(*"gone")
        assert chat.prompt.text == "see @gone"

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
        await until(pilot, lambda: chat.talk.chat.title == "er")
        for name, key in (("chat.md", "f8"), ("chat.json", "f8")):
            await pilot.press(key)
            await until(pilot, lambda: isinstance(pilot.app.screen, Ask))
            await pilot.press("ctrl+u", *name, "enter")
            await until(pilot, (tmp_path / name).exists)
        assert "first" in (tmp_path / "chat.md").read_text()
        assert json.loads((tmp_path / "chat.json").read_text())["title"] == "er"

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
        assert {"Chats", "Export", "Quit", "Send"} <= offered

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
