"""The chats of the terminal: SQLite, one transaction a method; what a method has returned from is on disk.

    history.sqlite3    chat: title, settings and the branch that was open last;  message: a tree for each chat;
                       words: the full-text index over the messages' texts, kept in step by triggers

The row of an answer is there before its first word, as `partial`, so a process that dies keeps what it had said.
A parent is always older than its children, so no damage can make a walk through the tree endless.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from phi4local.chats import (
    CHAT_COLUMNS,
    LINK,
    MESSAGE_COLUMNS,
    NUMBER,
    TEXT,
    Attachment,
    Chat,
    Hit,
    Message,
    Speaker,
    State,
    Summary,
    as_json,
    attachments_json,
    clean,
    fields,
    label,
    now,
    read_chat,
    read_message,
    size_of,
)
from phi4local.database import Database
from phi4local.errors import InsufficientResources, NotFound, UsageError

_MOST_QUERY = 1_000
_SNIPPET, _BEFORE = 200, 60  # characters of a snippet, and of those how many before the first match
_MOST_MARKED = 1_000_000  # a longer text is found, but its start is shown: marking reads all of it
_BELOW = """WITH RECURSIVE below (id) AS (
    VALUES (?) UNION ALL SELECT m.id FROM below JOIN message AS m ON m.parent = below.id AND m.id > below.id) """


class History:
    """The open file; every thread may call it, and so may another process with its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = Database(path)

    def close(self) -> None:
        self._file.close()

    def new_chat(
        self,
        title: str,
        *,
        model: str = "",
        system: str = "",
        sampling: Mapping[str, Any] | None = None,
        folder: str = "",
    ) -> Chat:
        today = now()
        chat = Chat(0, title, today, today, False, folder, model, system, sampling or {}, None)
        return self.put(chat, [])

    def chat(self, chat: int) -> Chat:
        with self._file.reading() as db:
            return _one_chat(db, chat)

    def chats(self, folder: str | None = None) -> list[Summary]:
        """All chats or those of a folder: pinned ones first, then the last changed."""
        query = f"""SELECT {CHAT_COLUMNS}, (SELECT count(*) FROM message WHERE chat = chat.id),
            coalesce((SELECT substr(text, 1, 200) FROM message
                      WHERE chat = chat.id AND parent IS NULL ORDER BY id LIMIT 1), '')
            FROM chat WHERE ?1 IS NULL OR folder = ?1 ORDER BY pinned DESC, changed DESC, id DESC"""
        with self._file.reading() as db:
            rows = db.execute(query, (folder,)).fetchall()
            return [Summary(read_chat(row[:-2]), *fields(row[-2:], (NUMBER, TEXT))) for row in rows]

    def rename(self, chat: int, title: str) -> None:
        self._set(chat, title=label(title))

    def pin(self, chat: int, pinned: bool) -> None:
        self._set(chat, pinned=pinned)

    def move(self, chat: int, folder: str) -> None:
        self._set(chat, folder=label(folder))

    def set_options(
        self,
        chat: int,
        *,
        model: str | None = None,
        system: str | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        """Change those that are given."""
        self._set(
            chat,
            model=None if model is None else label(model),
            system=None if system is None else clean(system),
            sampling=None if sampling is None else as_json(sampling),
        )

    def delete_chat(self, chat: int) -> None:
        with self._file.writing() as db:
            _one_chat(db, chat)
            db.execute("UPDATE chat SET leaf = NULL WHERE id = ?", (chat,))
            db.execute("DELETE FROM message WHERE chat = ?", (chat,))
            db.execute("DELETE FROM chat WHERE id = ?", (chat,))

    def put(self, chat: Chat, messages: Sequence[Message]) -> Chat:
        """A new chat with new ids for all of these; a parent comes before its children."""
        with self._file.writing(sum(map(size_of, messages))) as db:
            values = (label(chat.title), chat.created, chat.changed, chat.pinned, label(chat.folder))
            options = (label(chat.model), clean(chat.system), as_json(chat.sampling))
            insert = """INSERT INTO chat (title, created, changed, pinned, folder, model, system, sampling)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id"""
            new = int(db.execute(insert, values + options).fetchall()[0][0])
            ids: dict[int | None, int | None] = {None: None}
            for message in messages:
                ids[message.id] = _insert(db, replace(message, chat=new, parent=ids[message.parent]))
            # Options may name a message: where the model's part of the chat begins.
            start = ids.get(chat.sampling.get("start")) if isinstance(chat.sampling.get("start"), int) else None
            moved = {"start": start} if start else {}
            sampling = {key: value for key, value in chat.sampling.items() if key != "start"} | moved
            change = "UPDATE chat SET leaf = ?, sampling = ? WHERE id = ?"
            db.execute(change, (ids[chat.leaf], as_json(sampling), new))
            return _one_chat(db, new)

    def copy_chat(self, leaf: int) -> Chat:
        """The branch that ends with `leaf` as a chat of its own."""
        branch = self.branch(leaf)
        today = now()
        return self.put(
            replace(self.chat(branch[0].chat), created=today, changed=today, pinned=False, leaf=leaf), branch
        )

    def tree(self, chat: int) -> tuple[Chat, list[Message]]:
        """A chat and all its messages, parents before children."""
        with self._file.reading() as db:
            rows = db.execute(f"SELECT {MESSAGE_COLUMNS} FROM message WHERE chat = ? ORDER BY id", (chat,))
            return _one_chat(db, chat), [read_message(row) for row in rows]

    def add(
        self, chat: int, parent: int | None, role: Speaker, text: str, attachments: Sequence[Attachment] = ()
    ) -> Message:
        """A whole message below `parent`; it ends the open branch now."""
        message = Message(0, chat, parent, role, text, "", 0.0, "complete", None, tuple(attachments), now())
        return self._append(message)

    def begin_answer(self, chat: int, parent: int) -> Message:
        """An answer that is still empty, marked as partial until `finish`."""
        return self._append(Message(0, chat, parent, "assistant", "", "", 0.0, "partial", None, (), now()))

    def grow(self, message: int, text: str, thinking: str = "", thinking_seconds: float = 0.0) -> None:
        """Keep all that was said so far; `text` and `thinking` are whole, not what is new."""
        values = (clean(text), clean(thinking), float(thinking_seconds), message)
        with self._file.writing(len(text) + len(thinking)) as db:
            # Indexing at each step would cost more than the answer; `search` and `finish` catch up.
            change = "SET text = ?, thinking = ?, thinking_seconds = ?, indexed = 0"
            _check_partial(db, message)
            db.execute(f"UPDATE message {change} WHERE id = ?", values)

    def finish(
        self,
        message: int,
        text: str,
        *,
        state: State,
        thinking: str = "",
        thinking_seconds: float = 0.0,
        stats: Mapping[str, Any] | None = None,
    ) -> None:
        """The answer as it stays, and why it ended."""
        said = (clean(text), clean(thinking), float(thinking_seconds))
        with self._file.writing(len(text) + len(thinking)) as db:
            chat = _check_partial(db, message)
            change = "SET text = ?, thinking = ?, thinking_seconds = ?, state = ?, stats = ?, indexed = 1"
            ended = (state, None if stats is None else as_json(stats), message)
            db.execute(f"UPDATE message {change} WHERE id = ?", said + ended)
            db.execute("UPDATE chat SET changed = ? WHERE id = ?", (now(), chat))

    def branch(self, leaf: int) -> list[Message]:
        """The messages from the first to `leaf`."""
        query = f"""WITH RECURSIVE above (id, parent) AS (
                SELECT id, parent FROM message WHERE id = ?
                UNION ALL SELECT m.id, m.parent FROM above JOIN message AS m ON m.id = above.parent AND m.id < above.id)
            SELECT {MESSAGE_COLUMNS} FROM message WHERE id IN (SELECT id FROM above) ORDER BY id"""
        with self._file.reading() as db:
            _place(db, leaf)
            return [read_message(row) for row in db.execute(query, (leaf,))]

    def siblings(self, message: int) -> list[int]:
        """All versions of a message, itself among them, the oldest first."""
        with self._file.reading() as db:
            chat, parent = _place(db, message)
            query = "SELECT id FROM message WHERE chat = ? AND parent IS ? ORDER BY id"
            return [int(row[0]) for row in db.execute(query, (chat, parent))]

    def versions(self, chat: int) -> dict[int | None, list[int]]:
        """The messages below each message of a chat, and under None those that begin it; the oldest first."""
        with self._file.reading() as db:
            found: dict[int | None, list[int]] = {}
            for row in db.execute("SELECT id, parent FROM message WHERE chat = ? ORDER BY id", (chat,)):
                message, parent = fields(row, (NUMBER, LINK))
                found.setdefault(parent, []).append(message)
            return found

    def newest_leaf(self, message: int) -> int:
        """The end of the branch through `message` that grew last."""
        with self._file.reading() as db:
            _place(db, message)
            return int(db.execute(_BELOW + "SELECT max(id) FROM below", (message,)).fetchone()[0])

    def open_at(self, chat: int, leaf: int | None) -> None:
        """Remember the branch that is open."""
        with self._file.writing() as db:
            _one_chat(db, chat)
            _check_parent(db, chat, leaf)
            db.execute("UPDATE chat SET leaf = ? WHERE id = ?", (leaf, chat))

    def delete_message(self, message: int) -> None:
        """Remove a message and all below it; a branch that was open there ends with its parent."""
        with self._file.writing() as db:
            chat, parent = _place(db, message)
            within = "IN (SELECT id FROM below)"
            db.execute(_BELOW + f"UPDATE chat SET leaf = ? WHERE id = ? AND leaf {within}", (message, parent, chat))
            db.execute(_BELOW + f"DELETE FROM message WHERE id {within}", (message,))
            db.execute("UPDATE chat SET changed = ? WHERE id = ?", (now(), chat))

    def search(self, text: str, limit: int = 50) -> list[Hit]:
        """The newest messages that have every word of `text`; the last word may be the start of one."""
        words = _quoted(text)
        if not words:
            return []
        self._catch_up()
        # The marks are random, so that no message can hold them.
        start, end = secrets.token_hex(16), secrets.token_hex(16)
        query = """SELECT m.chat, m.id, c.title, m.role, m.created, coalesce(found.marked, substr(m.text, 1, ?)) FROM (
                SELECT rowid AS id, CASE WHEN length(text) <= ? THEN highlight(words, 0, ?, ?) END AS marked
                FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT ?) AS found
            JOIN message AS m ON m.id = found.id JOIN chat AS c ON c.id = m.chat ORDER BY m.id DESC"""
        with self._file.reading() as db:
            rows = db.execute(query, (_SNIPPET, _MOST_MARKED, start, end, words, max(0, limit))).fetchall()
            return [_hit(row, start, end) for row in rows]

    def questions(self, limit: int = 100) -> list[str]:
        """What was asked last in all chats, the newest first, each text once."""
        found: dict[str, None] = {}
        with self._file.reading() as db:
            for row in db.execute("SELECT text FROM message WHERE role = 'user' ORDER BY id DESC"):
                if len(found) >= limit:
                    break
                found.setdefault(*fields(row, (TEXT,)))
        return list(found)

    def _catch_up(self) -> None:
        """Index the answers that are being given and those that a death cut; without room what is indexed is found."""
        with self._file.reading() as db:
            pending = db.execute("SELECT 1 FROM message WHERE NOT indexed LIMIT 1").fetchall()
        if pending:
            with contextlib.suppress(InsufficientResources, UsageError), self._file.writing() as db:
                db.execute("UPDATE message SET indexed = 1 WHERE NOT indexed")

    def _append(self, message: Message) -> Message:
        with self._file.writing(size_of(message)) as db:
            _one_chat(db, message.chat)
            _check_parent(db, message.chat, message.parent)
            new = _insert(db, message)
            db.execute("UPDATE chat SET leaf = ?, changed = ? WHERE id = ?", (new, message.created, message.chat))
            return read_message(db.execute(f"SELECT {MESSAGE_COLUMNS} FROM message WHERE id = ?", (new,)).fetchone())

    def _set(self, chat: int, **values: str | int | None) -> None:
        with self._file.writing() as db:
            _one_chat(db, chat)
            for column, value in values.items():
                if value is not None:
                    db.execute(f"UPDATE chat SET {column} = ? WHERE id = ?", (value, chat))


def _insert(db: sqlite3.Connection, message: Message) -> int:
    # An answer that has only begun is indexed when it is finished or searched for.
    indexed = message.state != "partial"
    stats = None if message.stats is None else as_json(message.stats)
    texts = (clean(message.text), clean(message.thinking), attachments_json(message.attachments))
    values = (message.chat, message.parent, message.role, message.state, message.created, message.thinking_seconds)
    insert = """INSERT INTO message (chat, parent, role, state, created, thinking_seconds, stats, indexed,
        text, thinking, attachments) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id"""
    return int(db.execute(insert, (*values, stats, indexed, *texts)).fetchall()[0][0])


def _one_chat(db: sqlite3.Connection, chat: int) -> Chat:
    row = db.execute(f"SELECT {CHAT_COLUMNS} FROM chat WHERE id = ?", (chat,)).fetchone()
    if row is None:
        raise NotFound(f"There is no chat {chat}", hint="It was deleted, here or in another window")
    return read_chat(row)


def _place(db: sqlite3.Connection, message: int) -> tuple[int, int | None]:
    """The chat and the parent of a message."""
    row = db.execute("SELECT chat, parent FROM message WHERE id = ?", (message,)).fetchone()
    if row is None:
        raise NotFound(f"There is no message {message}", hint="It was deleted, here or in another window")
    chat, parent = fields(row, (NUMBER, LINK))
    return chat, parent


def _check_parent(db: sqlite3.Connection, chat: int, parent: int | None) -> None:
    if parent is not None and _place(db, parent)[0] != chat:
        raise NotFound(f"Message {parent} is in another chat")


def _check_partial(db: sqlite3.Connection, message: int) -> int:
    """The chat of an answer that is not finished; a late thread must not change one that is."""
    chat, _ = _place(db, message)
    if db.execute("SELECT state FROM message WHERE id = ?", (message,)).fetchone()[0] != "partial":
        raise UsageError(f"Message {message} is finished")
    return chat


def _quoted(text: str) -> str:
    """A question to FTS5 in which the user's text is words and never syntax; a NUL would end it."""
    words = text[:_MOST_QUERY].replace("\0", " ").split()
    quoted = ['"' + clean(word).replace('"', '""') + '"' for word in words]
    return " ".join(quoted) + "*" if quoted else ""


def _hit(row: Sequence[Any], start: str, end: str) -> Hit:
    """A found message; what stands around its first match without the marks, and where they were."""
    chat, message, title, role, created, marked = fields(row, (NUMBER, NUMBER, TEXT, TEXT, TEXT, TEXT))
    before, *parts = marked.split(start)
    snippet = "…" + before[-_BEFORE:] if parts and len(before) > _BEFORE else before
    matches: list[tuple[int, int]] = []
    for part in parts:
        word, _, rest = part.partition(end)
        if matches and len(snippet) + len(word) > _SNIPPET:
            break
        matches.append((len(snippet), min(len(snippet) + len(word), _SNIPPET)))
        snippet += word + rest
    return Hit(chat, message, title, role, created, _cut(snippet), tuple(matches))


def _cut(text: str) -> str:
    return text if len(text) <= _SNIPPET else text[:_SNIPPET] + "…"
