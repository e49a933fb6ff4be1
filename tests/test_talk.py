"""An open chat: what the model is told, answers on disk while they come, and what happens when the context is full."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from phi4local.actions import talk
from phi4local.chats import Attachment, Chat, Message
from phi4local.conversation import Message as Turn
from phi4local.engine import Chunk, GenerationOptions
from phi4local.errors import BackendError, InsufficientResources, Phi4LocalError, UsageError
from phi4local.history import History
from tests.fakes import FakeEngine
from ui.open_chat import OpenChat
from ui.turn import Place

OPTIONS = GenerationOptions()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(tmp_path / "history.sqlite3")
    yield history
    history.close()


@pytest.fixture
def chat(history: History) -> OpenChat:
    return OpenChat(history, "phi-4:Q4_K_M")


def ask(chat: OpenChat, text: str, engine: FakeEngine | None = None) -> talk.Answered:
    """A question and its whole answer."""
    chat.ask(text, (), chat.branch[-1].id if chat.branch else None)
    *_, end = answer(chat, engine or FakeEngine())
    assert isinstance(end, talk.Answered)
    chat.answered(end.message)
    return end


def answer(chat: OpenChat, engine: FakeEngine) -> Generator[talk.Event]:
    session = engine.open_session()
    prompt = talk.prompt_of(chat.chat, chat.branch)
    return talk.answer(chat.history, chat.branch[-1], prompt, lambda turns: session.stream(turns, OPTIONS), "fake")


def texts(chat: OpenChat) -> list[str]:
    return [message.text for message in chat.branch]


# ---- what the model is told ----


def message(number: int, role: Any, text: str, *files: Attachment) -> Message:
    return Message(number, 1, number - 1 or None, role, text, "thought", 1.0, "complete", None, files, "")


def told(chat: Chat, *branch: Message) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in talk.prompt_of(chat, branch)]


def test_the_model_is_told_texts_without_thinking(chat: OpenChat) -> None:
    about = dataclasses.replace(chat.chat, system="Be brief")
    branch = message(1, "user", "a"), message(2, "assistant", "b"), message(3, "user", "c")
    assert told(about, *branch) == [("system", "Be brief"), ("user", "a"), ("assistant", "b"), ("user", "c")]


def test_turns_alternate_when_an_answer_failed(chat: OpenChat) -> None:
    branch = message(1, "user", "a"), message(2, "assistant", ""), message(3, "user", "c")
    assert told(chat.chat, *branch) == [("user", "a\n\nc")]


def test_attached_files_are_told_by_name(chat: OpenChat) -> None:
    [(role, text)] = told(chat.chat, message(1, "user", "What is it?", Attachment("a.py", 9, 3, "print(1)")))
    assert role == "user"
    assert "a.py" in text
    assert "print(1)" in text
    assert text.endswith("What is it?")


def test_a_shortened_chat_begins_later_and_with_its_summary(chat: OpenChat) -> None:
    branch = [message(n, "user" if n % 2 else "assistant", f"m{n}") for n in range(1, 6)]
    short = dataclasses.replace(chat.chat, sampling=talk.shortened(chat.chat, 3, "Before: m1, m2"))
    system, *rest = told(short, *branch)
    assert system == ("system", "What was said before, in short:\nBefore: m1, m2")
    assert rest == [("user", "m3"), ("assistant", "m4"), ("user", "m5")]
    other_branch = [branch[0], message(9, "assistant", "m9")]
    assert told(short, *other_branch) == [("user", "m1"), ("assistant", "m9")]
    again = dataclasses.replace(short, sampling=talk.shortened(short, None))
    assert len(told(again, *branch)) == 5


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.5, "top_k": 3, "seed": 7}, {"temperature": 0.5, "top_k": 3, "seed": 7}),
        ({"temperature": 1}, {"temperature": 1}),
        ({"temperature": True, "top_k": 1.5, "top_p": "1", "seed": -1, "max_tokens": 0}, {}),
        ({"temperature": float("nan"), "nonsense": 1, "start": 3}, {}),
    ],
)
def test_options_take_what_makes_sense(sampling: dict[str, Any], expected: dict[str, Any]) -> None:
    assert talk.options_of(OPTIONS, sampling) == dataclasses.replace(OPTIONS, **expected)


# ---- answers on disk ----


def test_an_answer_is_on_disk_with_what_it_cost(chat: OpenChat) -> None:
    end = ask(chat, "one two")
    kept = chat.history.branch(end.message.id)
    assert [one.text for one in kept] == ["one two", "one two "]
    assert kept[-1].state == "complete"
    assert kept[-1].stats
    assert (kept[-1].stats["model"], kept[-1].stats["reason"], kept[-1].stats["generation_tokens"]) == (
        "fake",
        "stop",
        2,
    )


def test_an_empty_answer_is_there_before_its_first_word(chat: OpenChat) -> None:
    chat.ask("one two", (), None)
    events = answer(chat, FakeEngine())
    begun = next(events)
    assert isinstance(begun, talk.Begun)
    kept = chat.history.branch(begun.message.id)[-1]
    assert (kept.text, kept.state) == ("", "partial")


def test_closing_stops_and_keeps(chat: OpenChat) -> None:
    chat.ask("one two three", (), None)
    events = answer(chat, FakeEngine())
    begun, first = next(events), next(events)
    assert isinstance(begun, talk.Begun)
    assert first == Chunk("one ")
    events.close()
    kept = chat.history.branch(begun.message.id)[-1]
    assert (kept.text, kept.state) == ("one ", "stopped")


def test_thinking_is_kept_apart_with_its_time(chat: OpenChat) -> None:
    engine = FakeEngine(lambda _: ["<think>", "so ", "so", "</think>", "4"], seconds=0.02)
    end = ask(chat, "2 + 2", engine)
    kept = chat.history.branch(end.message.id)[-1]
    assert (kept.text, kept.thinking) == ("4", "so so")
    assert 0 < kept.thinking_seconds < 5


def test_a_death_keeps_what_was_said(chat: OpenChat) -> None:
    engine = FakeEngine()

    def dies(messages: Sequence[Turn]) -> Iterable[str]:
        yield "half "
        engine.die()
        yield "never"

    engine.script = dies
    end = ask(chat, "q", engine)
    assert isinstance(end.error, BackendError)
    kept = chat.history.branch(end.message.id)[-1]
    assert (kept.text, kept.state) == ("half ", "failed")
    engine.script = lambda _: ["whole"]
    assert ask(chat, "again", engine).message.text == "whole"


class FullDisk(History):
    """No room for answers while `full`."""

    full = True

    def grow(self, *args: Any, **kwargs: Any) -> None:
        self._refuse()
        super().grow(*args, **kwargs)

    def finish(self, *args: Any, **kwargs: Any) -> None:
        self._refuse()
        super().finish(*args, **kwargs)

    def _refuse(self) -> None:
        if self.full:
            raise InsufficientResources("The disk is full")


def test_a_full_disk_ends_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "SAVE_SECONDS", 0.0)
    history = FullDisk(tmp_path / "history.sqlite3")
    chat = OpenChat(history)
    chat.ask("one two", (), None)
    events = list(answer(chat, FakeEngine()))
    assert [type(event) for event in events] == [
        *(talk.Begun, Chunk, talk.Unsaved, Chunk, talk.Unsaved),
        talk.Answered,
    ]
    end = events[-1]
    assert isinstance(end, talk.Answered)
    assert end.message.text == "one two "
    assert isinstance(end.unsaved, InsufficientResources)
    history.full = False
    assert talk.save(history, end.message) is None
    assert history.branch(end.message.id)[-1].text == "one two "
    history.close()


# ---- too long ----


def long_chat(chat: OpenChat, turns: int) -> None:
    for number in range(turns):
        ask(chat, f"q{number} " + "word " * 96)


def test_the_fewest_turns_are_dropped_that_leave_a_quarter_free(chat: OpenChat) -> None:
    engine = FakeEngine(context_tokens=1000)  # a turn takes about 200 with its answer
    long_chat(chat, 6)
    chat.ask("and now?", (), chat.branch[-1].id)
    index = talk.turns_to_drop(engine, chat.chat, chat.branch)
    assert chat.branch[index].role == "user"

    def used(start: int) -> int:
        return engine.count(talk.prompt_of(chat.chat, chat.branch[start:]))

    assert used(index) <= 750 < used(index - 2)


def test_where_nothing_can_be_dropped_the_last_question_stays(chat: OpenChat) -> None:
    chat.ask("word " * 2000, (), None)
    assert talk.turns_to_drop(FakeEngine(context_tokens=1000), chat.chat, chat.branch) == 0


def test_a_summary_is_asked_for_what_goes(chat: OpenChat) -> None:
    long_chat(chat, 3)
    turns = talk.summarise(chat.chat, chat.branch, 4)
    assert [turn.role for turn in turns] == ["user", "assistant"] * 2 + ["user"]
    assert turns[-1].content.startswith("Summarise")


def test_too_long_says_both_numbers() -> None:
    error = talk.TooLong(5000, 4096)
    assert isinstance(error, UsageError)
    assert "5,000" in error.message
    assert "4,096" in error.message


# ---- branches ----


def test_editing_keeps_both_branches(chat: OpenChat) -> None:
    ask(chat, "first")
    ask(chat, "second")
    first = chat.branch[0]
    edited = chat.ask("other", (), first.parent)
    assert texts(chat) == ["other"]
    assert chat.places() == [Place(2, 2)]
    assert chat.walk(edited.id, -1) == first.id
    assert texts(chat) == ["first", "first ", "second", "second "]
    assert chat.walk(first.id, -1) is None
    assert chat.walk(first.id, 1) == edited.id
    assert texts(chat) == ["other"]


def test_a_chat_opens_where_it_was_left(chat: OpenChat) -> None:
    ask(chat, "first")
    ask(chat, "second")
    chat.ask("other", (), None)
    chat.walk(chat.branch[0].id, -1)
    again = OpenChat(chat.history)
    again.open(chat.chat.id)
    assert texts(again) == ["first", "first ", "second", "second "]
    again.open(chat.chat.id, again.history.siblings(again.branch[0].id)[1])
    assert texts(again) == ["other"]


def test_another_answer_is_a_version(chat: OpenChat) -> None:
    ask(chat, "first")
    ask(chat, "second")
    question = chat.ask_again(chat.branch[1].id)
    assert question == chat.branch[0]
    assert texts(chat) == ["first"]
    *_, end = answer(chat, FakeEngine(lambda _: ["otherwise"]))
    assert isinstance(end, talk.Answered)
    chat.answered(end.message)
    assert texts(chat) == ["first", "otherwise"]
    assert [place.of for place in chat.places()] == [1, 2]


def test_deleting_opens_another_version(chat: OpenChat) -> None:
    ask(chat, "first")
    ask(chat, "second")
    edited = chat.ask("other", (), None)
    assert chat.below(edited.id) == 1
    chat.delete(edited.id)
    assert texts(chat) == ["first", "first ", "second", "second "]
    assert chat.below(chat.branch[1].id) == 3
    chat.delete(chat.branch[1].id)
    assert texts(chat) == ["first"]
    chat.delete(chat.branch[0].id)
    assert texts(chat) == []


def test_a_branch_becomes_a_chat(chat: OpenChat) -> None:
    ask(chat, "first")
    before = chat.chat.id
    chat.fork()
    assert chat.chat.id != before
    assert texts(chat) == ["first", "first "]


def test_where_a_chat_was_shortened_goes_along_when_it_is_copied(chat: OpenChat) -> None:
    long_chat(chat, 3)
    chat.set(sampling=talk.shortened(chat.chat, chat.branch[2].id))
    assert chat.start == 2
    chat.fork()
    assert chat.start == 2


def test_settings_before_the_first_message_are_kept(chat: OpenChat) -> None:
    chat.begin_with("Be brief", {"temperature": 0.3})
    chat.rename("Mine")
    ask(chat, "first")
    kept = chat.history.chat(chat.chat.id)
    assert (kept.title, kept.system, kept.sampling, kept.model) == (
        "Mine",
        "Be brief",
        {"temperature": 0.3},
        "phi-4:Q4_K_M",
    )
    chat.start_anew()
    assert chat.is_new
    assert (chat.chat.system, chat.chat.title) == ("Be brief", "")


def test_the_first_question_is_the_title(chat: OpenChat) -> None:
    chat.ask("What   is\nit? " + "x" * 100, (), None)
    assert chat.chat.title.startswith("What is it? xxx")
    assert len(chat.chat.title) == 60


def test_a_deleted_chat_takes_its_state_along(chat: OpenChat, home: Path) -> None:
    ask(chat, "first")
    from phi4local.backends.states import state_path

    state = state_path(*talk.chat_state(chat.chat.id))
    state.parent.mkdir(parents=True)
    state.write_bytes(b"state")
    chat.delete_chat()
    assert not state.exists()
    assert chat.is_new
    with pytest.raises(Phi4LocalError):
        chat.open(1)
