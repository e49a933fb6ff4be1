"""What a chat is: its messages, the limits of their texts, and how rows become them. Rows are distrusted."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from types import NoneType
from typing import Any, Literal, get_args

from phi4local.errors import UsageError
from phi4local.units import file_size

Speaker = Literal["user", "assistant"]
State = Literal["complete", "partial", "stopped", "failed"]

MOST_TEXT = 16_000_000
MOST_LABEL = 200  # characters of a title, a folder's name or a model's


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that was given along with a message."""

    name: str
    bytes: int
    tokens: int
    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat without its messages; `leaf` ends the branch that was open last."""

    id: int
    title: str
    created: str
    changed: str
    pinned: bool
    folder: str
    model: str
    system: str
    sampling: Mapping[str, Any]
    leaf: int | None


@dataclass(frozen=True, slots=True)
class Message:
    """A node of a chat's tree; messages with the same parent are versions of each other."""

    id: int
    chat: int
    parent: int | None
    role: Speaker
    text: str
    thinking: str
    thinking_seconds: float
    state: State
    stats: Mapping[str, Any] | None
    attachments: tuple[Attachment, ...]
    created: str


@dataclass(frozen=True, slots=True)
class Summary:
    """A line of the list of chats: how many messages on all branches, and how the first one starts."""

    chat: Chat
    messages: int
    start: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that was found; `matches` are (start, end) pairs into `snippet`."""

    chat: int
    message: int
    title: str
    role: Speaker
    created: str
    snippet: str
    matches: tuple[tuple[int, int], ...]


Reader = Callable[[Any], Any]


def _kind(*kinds: type) -> Reader:
    """Damage may make a number of a text: what is not of one of these kinds is refused."""

    def read(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise sqlite3.DatabaseError("a value of another kind")
        return value

    return read


def _one_of(values: Sequence[str]) -> Reader:
    def read(value: Any) -> Any:
        if value not in values:
            raise sqlite3.DatabaseError("a word that has no meaning")
        return value

    return read


def _object(text: Any) -> dict[str, Any]:
    value = _value(text)
    if not isinstance(value, dict):
        raise sqlite3.DatabaseError("options that are none")
    return value


def _stats(text: Any) -> dict[str, Any] | None:
    return None if text is None else _object(text)


def _given(text: Any) -> tuple[Attachment, ...]:
    try:
        return tuple(Attachment(**one) for one in _value(text))
    except TypeError:
        raise sqlite3.DatabaseError("an attachment that is none") from None


def _value(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise sqlite3.DatabaseError("a value that is not JSON") from None


NUMBER, LINK, TEXT = _kind(int), _kind(int, NoneType), _kind(str)

CHAT_COLUMNS = "chat.id, title, chat.created, changed, pinned, folder, model, system, sampling, leaf"
_CHAT = (NUMBER, TEXT, TEXT, TEXT, bool, TEXT, TEXT, TEXT, _object, LINK)

MESSAGE_COLUMNS = (
    "id, chat, parent, role, text, thinking, thinking_seconds, state, stats, attachments, message.created AS created"
)
_MESSAGE = (
    *(NUMBER, NUMBER, LINK, _one_of(get_args(Speaker)), TEXT, TEXT, _kind(float)),
    *(_one_of(get_args(State)), _stats, _given, TEXT),
)


def fields(row: Sequence[Any], readers: Sequence[Reader]) -> list[Any]:
    """A row's values as they were written (sqlite3.DatabaseError)."""
    return [read(value) for read, value in zip(readers, row, strict=True)]


def read_chat(row: Sequence[Any]) -> Chat:
    return Chat(*fields(row, _CHAT))


def read_message(row: Sequence[Any]) -> Message:
    return Message(*fields(row, _MESSAGE))


def attachments_json(attachments: Sequence[Attachment]) -> str:
    given = [replace(one, name=clean(one.name), text=clean(one.text)) for one in attachments]
    return clean(json.dumps([asdict(one) for one in given], ensure_ascii=False))


def as_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def label(text: str) -> str:
    return clean(text[:MOST_LABEL])


def clean(text: str) -> str:
    """A text as SQLite can hold it: halves of surrogate pairs, which come from broken pastes, are replaced."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        size = len(text.encode())
    if size > MOST_TEXT:
        raise UsageError(
            f"A text of {file_size(size)} is too long for a chat",
            hint=f"Give at most {file_size(MOST_TEXT)} at once",
        )
    return text


def size_of(message: Message) -> int:
    return len(message.text) + len(message.thinking) + sum(len(one.text) for one in message.attachments)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
