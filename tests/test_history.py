"""The chats on disk: a tree against a plain model of it, search, and what goes out to files and comes back."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4local.chats import MOST_TEXT, Attachment, Chat, Message
from phi4local.errors import FormatError, NotFound, UsageError
from phi4local.exchange import from_json, to_json, to_markdown
from phi4local.history import History
from phi4local.settings import history_file

ODD = [
    "",
    "naïve café",
    "\x00\x1b[31m\x07",
    "日本語のテキスト",
    "😀 \ud83d half",
    'a "quoted" AND (NOT near* ^x:y',
    "a",
]


@pytest.fixture
def history() -> Iterator[History]:
    with contextlib.closing(History(history_file())) as opened:
        yield opened


def check(path: Path) -> None:
    """SQLite and its index agree that the file is whole."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        db.execute("UPDATE message SET indexed = 1 WHERE NOT indexed")
        db.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")


def talk(history: History, *texts: str) -> tuple[Chat, list[Message]]:
    chat = history.new_chat("talk")
    said: list[Message] = []
    for index, text in enumerate(texts):
        role: Any = "assistant" if index % 2 else "user"
        said.append(history.add(chat.id, said[-1].id if said else None, role, text))
    return chat, said


def test_what_was_kept_is_there_again(history: History) -> None:
    chat = history.new_chat("t" * 300, model="phi-4:Q4_K_M", system="Be brief", sampling={"temperature": 0.5})
    note = Attachment("a.txt", 3, 1, "abc")
    asked = history.add(chat.id, None, "user", "What?", [note])
    answer = history.begin_answer(chat.id, asked.id)
    history.grow(answer.id, "Th", "hm", 0.5)
    history.finish(answer.id, "This", thinking="hmm", thinking_seconds=1.5, state="stopped", stats={"tokens": 1})
    with contextlib.closing(History(history.path)) as again:
        kept = again.chat(chat.id)
        assert (kept.title, kept.model, kept.system, kept.leaf) == ("t" * 200, "phi-4:Q4_K_M", "Be brief", answer.id)
        assert kept.sampling == {"temperature": 0.5}
        first, second = again.branch(answer.id)
    assert first == asked
    assert first.attachments == (note,)
    assert (second.text, second.thinking, second.thinking_seconds) == ("This", "hmm", 1.5)
    assert (second.state, second.stats, second.parent) == ("stopped", {"tokens": 1}, asked.id)
    assert history.path.stat().st_mode & 0o77 == 0


def test_the_last_questions_of_all_chats_come_once_each_and_the_newest_first(history: History) -> None:
    assert history.questions(5) == []
    talk(history, "one", "answer", "two", "answer", "one")
    talk(history, "three\nlines", "two", "two")
    assert history.questions(5) == ["two", "three\nlines", "one"]
    assert history.questions(2) == ["two", "three\nlines"]
    assert history.questions(0) == []


@pytest.mark.parametrize("text", ODD)
def test_any_text_is_kept_and_may_be_searched(history: History, text: str) -> None:
    chat, (message,) = talk(history, text)
    whole = text.replace("\ud83d", "\ufffd")
    assert history.branch(message.id)[0].text == whole
    history.rename(chat.id, text)
    assert history.chat(chat.id).title == whole
    for hit in history.search(text):
        assert hit.message == message.id
    history.delete_chat(chat.id)
    check(history.path)


def test_the_list_of_chats(history: History) -> None:
    old, _ = talk(history, "first words " + "x" * 500, "two")
    new, _ = talk(history, "other")
    assert [one.chat.id for one in history.chats()] == [new.id, old.id]
    history.pin(old.id, True)
    history.move(old.id, "work")
    history.set_options(old.id, model="m", sampling={"seed": 1})
    first = history.chats()[0]
    assert (first.chat.id, first.chat.pinned, first.messages) == (old.id, True, 2)
    assert first.start == ("first words " + "x" * 500)[:200]
    assert (first.chat.model, first.chat.system, first.chat.sampling) == ("m", "", {"seed": 1})
    assert [one.chat.id for one in history.chats("work")] == [old.id]
    assert [one.chat.id for one in history.chats("")] == [new.id]


def test_editing_makes_a_branch(history: History) -> None:
    chat, (first, second, third) = talk(history, "a", "b", "c")
    edited = history.add(chat.id, second.id, "user", "C")
    assert history.siblings(third.id) == history.siblings(edited.id) == [third.id, edited.id]
    assert [one.text for one in history.branch(edited.id)] == ["a", "b", "C"]
    assert history.newest_leaf(first.id) == edited.id
    history.open_at(chat.id, third.id)
    assert history.chat(chat.id).leaf == third.id
    history.delete_message(edited.id)
    assert history.chat(chat.id).leaf == third.id
    history.delete_message(second.id)
    assert history.chat(chat.id).leaf == first.id
    assert history.newest_leaf(first.id) == first.id
    copy = history.copy_chat(first.id)
    assert copy.leaf not in (None, first.id)
    assert [one.text for one in history.tree(copy.id)[1]] == ["a"]


def test_a_long_chat_is_deleted_whole(history: History) -> None:
    chat, said = talk(history, *("x" for _ in range(1200)))
    assert len(history.branch(said[-1].id)) == 1200
    history.delete_message(said[0].id)
    assert history.tree(chat.id) == (history.chat(chat.id), [])


def test_requests_that_make_no_sense(history: History) -> None:
    chat, (message,) = talk(history, "a")
    other, _ = talk(history, "b")
    with pytest.raises(NotFound):
        history.add(other.id, message.id, "user", "x")
    with pytest.raises(NotFound):
        history.open_at(other.id, message.id)
    with pytest.raises(UsageError, match="finished"):
        history.grow(message.id, "late")
    with pytest.raises(UsageError, match="too long"):
        history.add(chat.id, None, "user", "é" * (MOST_TEXT // 2 + 1))
    for call in (history.chat, history.branch, history.siblings, history.newest_leaf, history.delete_message):
        with pytest.raises(NotFound):
            call(999)


def test_search(history: History) -> None:
    chat, (message, *_) = talk(history, "The Café serves crème brûlée; " * 3, "nothing here", "cafe")
    hits = history.search("CAFE crem")
    assert [hit.message for hit in hits] == [message.id]
    (hit,) = hits
    marked = {hit.snippet[start:end] for start, end in hit.matches}
    assert marked == {"Café", "crème"}
    assert (hit.chat, hit.title, hit.role, hit.created) == (chat.id, "talk", "user", message.created)
    assert [one.snippet for one in history.search("cafe", limit=1)] == ["cafe"]
    history.delete_message(message.id)
    assert history.search("cafe") == []


def test_a_snippet_stands_around_its_first_match(history: History) -> None:
    talk(history, "before " * 100 + "needle" + " after" * 100)
    (hit,) = history.search("need")
    assert len(hit.snippet) <= 202
    assert [hit.snippet[start:end] for start, end in hit.matches] == ["needle"]


def test_a_very_long_text_is_found_in_time(history: History) -> None:
    talk(history, "word " * 300_000)
    assert history.search("word")[0].snippet.startswith("word word")


def test_an_answer_is_found_while_it_grows(history: History) -> None:
    chat, (message,) = talk(history, "question")
    answer = history.begin_answer(chat.id, message.id)
    for text in ("alpha", "alpha beta", "gamma"):
        history.grow(answer.id, text)
        assert [hit.message for hit in history.search(text)] == [answer.id]
    assert history.search("alpha") == []
    history.finish(answer.id, "delta", state="failed")
    assert history.search("gamma") == []
    assert len(history.search("delta")) == 1
    check(history.path)


OPERATION = st.tuples(
    st.sampled_from(["chat", "add", "begin", "finish", "open", "delete", "copy", "drop"]), st.integers(0, 99)
)


class Model:
    """The same as dictionaries: chats with their leaves, messages with their parents."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.leaves: dict[int, int | None] = {}
        self.messages: dict[int, tuple[int, int | None, str, str]] = {}

    def branch(self, leaf: int | None) -> list[int]:
        found: list[int] = []
        while leaf is not None:
            found.insert(0, leaf)
            leaf = self.messages[leaf][1]
        return found

    def below(self, top: int) -> set[int]:
        return {one for one in self.messages if top in self.branch(one)}

    def step(self, name: str, number: int) -> None:
        if name == "chat" or not self.leaves:
            self.leaves[self.history.new_chat(f"c{number}").id] = None
            return
        chat = sorted(self.leaves)[number % len(self.leaves)]
        here = sorted(one for one, values in self.messages.items() if values[0] == chat)
        one = here[number % len(here)] if here else None
        if name == "add":
            self._added(chat, self.history.add(chat, one, "user", f"word{number}"))
        elif name == "drop":
            self._drop(chat)
        elif one is not None:
            getattr(self, f"_{name}")(chat, one)

    def _added(self, chat: int, message: Message) -> None:
        self.messages[message.id] = (chat, message.parent, message.text, message.state)
        self.leaves[chat] = message.id

    def _drop(self, chat: int) -> None:
        self.history.delete_chat(chat)
        del self.leaves[chat]
        self.messages = {one: values for one, values in self.messages.items() if values[0] != chat}

    def _begin(self, chat: int, one: int) -> None:
        self._added(chat, self.history.begin_answer(chat, one))

    def _finish(self, chat: int, one: int) -> None:
        if self.messages[one][3] == "partial":
            self.history.finish(one, f"end{one}", state="complete")
            self.messages[one] = (chat, self.messages[one][1], f"end{one}", "complete")

    def _open(self, chat: int, one: int) -> None:
        self.history.open_at(chat, one)
        self.leaves[chat] = one

    def _delete(self, chat: int, one: int) -> None:
        self.history.delete_message(one)
        gone = self.below(one)
        if self.leaves[chat] in gone:
            self.leaves[chat] = self.messages[one][1]
        self.messages = {key: values for key, values in self.messages.items() if key not in gone}

    def _copy(self, _chat: int, one: int) -> None:
        copied = self.history.copy_chat(one)
        self.leaves[copied.id] = None
        for message in self.history.tree(copied.id)[1]:
            self._added(copied.id, message)
        texts = [self.messages[key][2:] for key in self.branch(one)]
        assert [self.messages[key][2:] for key in self.branch(self.leaves[copied.id])] == texts

    def check(self) -> None:
        assert {one.chat.id: one.chat.leaf for one in self.history.chats()} == self.leaves
        kept = [message for chat in self.leaves for message in self.history.tree(chat)[1]]
        assert {one.id: (one.chat, one.parent, one.text, one.state) for one in kept} == self.messages
        for one, (chat, parent, text, _) in self.messages.items():
            assert [message.id for message in self.history.branch(one)] == self.branch(one)
            assert self.history.newest_leaf(one) == max(self.below(one))
            same = sorted(key for key, values in self.messages.items() if values[:2] == (chat, parent))
            assert self.history.siblings(one) == same
            if text:
                found = {hit.message for hit in self.history.search(text + " ", limit=1000)}
                assert found == {key for key, values in self.messages.items() if values[2].startswith(text)}


@settings(max_examples=40, deadline=None)
@given(operations=st.lists(OPERATION, max_size=40))
def test_any_sequence_of_operations(
    operations: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("model") / "h.sqlite3"
    with contextlib.closing(History(path)) as history:
        model = Model(history)
        for operation in operations:
            model.step(*operation)
        model.check()
    check(path)


def test_markdown(history: History) -> None:
    chat, (message,) = talk(history, "Why?")
    answer = history.begin_answer(chat.id, message.id)
    history.finish(answer.id, "Because $x$", thinking="Hm", thinking_seconds=12, state="stopped")
    text = to_markdown(history.chat(chat.id), history.branch(answer.id))
    assert text.startswith("# talk\n\n")
    for part in ("## You\n\nWhy?", "Thought for 12 s", "Because $x$", "*(stopped)*"):
        assert part in text
    assert text.index("Why?") < text.index("Hm") < text.index("Because")


def test_json_there_and_back(history: History) -> None:
    chat, (first, *_) = talk(history, *ODD)
    history.add(chat.id, first.id, "assistant", "other", [Attachment("n", 1, 2, "t")])
    data = to_json(history, chat.id)
    again = from_json(history, data.encode())

    def plain(text: str) -> Any:
        value = json.loads(text)
        ids = {one["id"]: index for index, one in enumerate(value["messages"])} | {None: None}
        for one in value["messages"]:
            one["id"], one["parent"] = ids[one["id"]], ids[one["parent"]]
        return value | {"leaf": ids[value["leaf"]], "changed": ""}

    assert plain(to_json(history, again.id)) == plain(data)


BAD: list[tuple[list[Any], Any]] = [
    (["phi4local_chat"], 2), (["title"], 1), (["sampling"], []), (["leaf"], 99), (["created"], "now"),
    (["messages"], {}),
    (["messages", 0], 3), (["messages", 0, "parent"], 2), (["messages", 0, "parent"], 1), (["messages", 1, "id"], 1),
    (["messages", 1, "role"], "system"), (["messages", 1, "state"], []), (["messages", 1, "stats"], 1),
    (["messages", 1, "thinking_seconds"], -1), (["messages", 1, "thinking_seconds"], float("nan")),
    (["messages", 1, "attachments"], [{"name": "x"}]), (["messages", 1, "text"], "x" * (MOST_TEXT + 1)),
]  # fmt: skip


@pytest.mark.parametrize(("where", "value"), BAD, ids=lambda value: str(value)[:30])
def test_an_imported_chat_is_distrusted(history: History, where: list[Any], value: Any) -> None:
    chat, _ = talk(history, "a", "b")
    data = json.loads(to_json(history, chat.id))
    entry = data
    for key in where[:-1]:
        entry = entry[key]
    entry[where[-1]] = value
    with pytest.raises(FormatError, match=str(where[-1])):
        from_json(history, json.dumps(data))
    assert len(history.chats()) == 1


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{}", b"[" * 100_000, b'{"phi4local_chat": 1}'])
def test_what_is_no_chat_is_refused(history: History, data: bytes) -> None:
    with pytest.raises(FormatError):
        from_json(history, data)
