"""Chats as files: Markdown for people, JSON with the whole tree for another phi4local. What is read is distrusted."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

from phi4local.chats import MOST_LABEL, MOST_TEXT, Attachment, Chat, Message, Speaker, State, attachments_json, now
from phi4local.errors import FormatError, UsageError
from phi4local.history import History
from phi4local.units import file_size

MOST_BYTES = 256_000_000
_VERSION = 1
_MOST_MESSAGES = 100_000
_MOST_ATTACHMENTS = 1_000
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_MOST_NAME = 120  # bytes of a file's name without its ending
_DEVICE = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9¹²³]", re.IGNORECASE)
_ENDINGS = {"partial": "cut off", "stopped": "stopped", "failed": "failed"}


def to_markdown(chat: Chat, messages: Sequence[Message]) -> str:
    """A branch to read: every text as it is, thinking folded."""
    about = " · ".join(part for part in (chat.model, chat.created) if part)
    parts = [f"# {_line(chat.title) or 'Chat'}", about]
    if chat.system:
        parts += ["## System", chat.system]
    for message in messages:
        parts += _turn(message)
    return "\n\n".join(parts) + "\n"


def _turn(message: Message) -> list[str]:
    parts = ["## You" if message.role == "user" else "## Answer"]
    parts += [f"*Attached: {_line(one.name)} ({file_size(one.bytes)})*" for one in message.attachments]
    if message.thinking:
        took = f" for {message.thinking_seconds:.0f} s" if message.thinking_seconds >= 1 else ""
        parts.append(f"<details><summary>Thought{took}</summary>\n\n{message.thinking}\n\n</details>")
    parts.append(message.text)
    if ending := _ENDINGS.get(message.state):
        parts.append(f"*({ending})*")
    return parts


def _line(text: str) -> str:
    return " ".join(text.split())


def file_name(title: str, ending: str) -> str:
    """A name that every file system and shell takes: no part of a path, no option, no device of Windows."""
    letters = unicodedata.normalize("NFC", title[:MOST_LABEL])
    safe = "".join(c if c in "-_" or unicodedata.category(c)[0] in "LMN" else " " for c in letters)
    name = " ".join(safe.encode(errors="ignore")[:_MOST_NAME].decode(errors="ignore").split()).lstrip("- ")
    return (f"chat {name}".rstrip() if not name or _DEVICE.fullmatch(name) else name) + ending


def to_json(history: History, chat_id: int) -> str:
    """The whole tree; `from_json` makes the same chat of it."""
    chat, messages = history.tree(chat_id)
    about = {key: value for key, value in asdict(chat).items() if key not in ("id", "pinned")}
    tree = [{key: value for key, value in asdict(one).items() if key != "chat"} for one in messages]
    return json.dumps({"phi4local_chat": _VERSION, **about, "messages": tree}, indent=1) + "\n"


def from_json(history: History, data: str | bytes) -> Chat:
    """A new chat from what `to_json` wrote (FormatError that names the place); it is listed as changed now."""
    if len(data) > MOST_BYTES:
        raise FormatError(f"The chat is larger than {file_size(MOST_BYTES)}", hint="Export it again")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise FormatError("The file is not JSON", hint="Export the chat again as JSON") from None
    top = _Place("the chat", value).object()
    if (version := top.value.get("phi4local_chat")) != _VERSION or isinstance(version, bool):
        raise _wrong("phi4local_chat", f"is {str(version)[:20]}, not {_VERSION}; the file is no chat or a newer one")
    messages = _messages(top["messages"])
    chat = Chat(
        id=0,
        title=top["title"].label(),
        created=top["created"].time(),
        changed=now(),
        pinned=False,
        folder=top["folder"].label(),
        model=top["model"].label(),
        system=top["system"].text(),
        sampling=top["sampling"].options(),
        leaf=top["leaf"].known({message.id for message in messages}),
    )
    return history.put(chat, messages)


def _messages(place: _Place) -> list[Message]:
    """Each below one that came before it, so that there are no cycles."""
    found: list[Message] = []
    ids: set[int] = set()
    for one in place.items(_MOST_MESSAGES):
        entry = one.object()
        number = entry["id"].count()
        if number in ids:
            raise _wrong(entry["id"].name, f"is {number}, as an earlier message's")
        found.append(_message(entry, number, entry["parent"].known(ids)))
        ids.add(number)
    return found


def _message(entry: _Place, number: int, parent: int | None) -> Message:
    stats = entry["stats"]
    return Message(
        id=number,
        chat=0,
        parent=parent,
        role=cast(Speaker, entry["role"].one_of(get_args(Speaker))),
        text=entry["text"].text(),
        thinking=entry["thinking"].text(),
        thinking_seconds=entry["thinking_seconds"].seconds(),
        state=cast(State, entry["state"].one_of(get_args(State))),
        stats=None if stats.value is None else stats.options(),
        attachments=_attachments(entry["attachments"]),
        created=entry["created"].time(),
    )


def _attachments(place: _Place) -> tuple[Attachment, ...]:
    entries = [one.object() for one in place.items(_MOST_ATTACHMENTS)]
    given = [(one["name"].text(), one["bytes"].count(), one["tokens"].count(), one["text"].text()) for one in entries]
    attachments = tuple(Attachment(*one) for one in given)
    try:
        attachments_json(attachments)
    except UsageError as error:
        raise _wrong(place.name, f"is too much: {error.message}") from None
    return attachments


@dataclass(frozen=True, slots=True)
class _Place:
    """A value and where it stands, for the error's sake."""

    name: str
    value: Any

    def __getitem__(self, key: str) -> _Place:
        name = key if self.name == "the chat" else f"{self.name}.{key}"
        if key not in self.value:
            raise _wrong(name, "is missing")
        return _Place(name, self.value[key])

    def object(self) -> _Place:
        if not isinstance(self.value, dict):
            raise _wrong(self.name, "is not an object")
        return self

    def items(self, most: int) -> list[_Place]:
        if not isinstance(self.value, list) or len(self.value) > most:
            raise _wrong(self.name, f"is not a list of at most {most:,}")
        return [_Place(f"{self.name}[{index}]", value) for index, value in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str) or len(self.value.encode(errors="replace")) > MOST_TEXT:
            raise _wrong(self.name, f"is not a text of at most {file_size(MOST_TEXT)}")
        return self.value

    def label(self) -> str:
        return self.text()[:MOST_LABEL]

    def one_of(self, values: Sequence[str]) -> str:
        if not isinstance(self.value, str) or self.value not in values:
            raise _wrong(self.name, f"is not one of {', '.join(values)}")
        return self.value

    def time(self) -> str:
        if not isinstance(self.value, str) or not _TIME.fullmatch(self.value):
            raise _wrong(self.name, "is not a time like 2026-01-31T12:00:00Z")
        return self.value

    def count(self) -> int:
        if type(self.value) is not int or not 0 <= self.value < 1 << 62:
            raise _wrong(self.name, "is not a count")
        return self.value

    def seconds(self) -> float:
        if type(self.value) not in (int, float) or not 0 <= self.value < math.inf:
            raise _wrong(self.name, "is not a number of seconds")
        return float(self.value)

    def options(self) -> Mapping[str, Any]:
        if not isinstance(self.value, dict):
            raise _wrong(self.name, "is not an object")
        try:
            size = len(json.dumps(self.value, allow_nan=False))
        except (ValueError, RecursionError):
            raise _wrong(self.name, "has numbers that are none") from None
        if size > MOST_TEXT:
            raise _wrong(self.name, "is too long")
        return self.value

    def known(self, ids: set[int]) -> int | None:
        if self.value is None:
            return None
        if type(self.value) is not int or self.value not in ids:
            raise _wrong(self.name, "names no message that comes before it")
        return self.value


def _wrong(place: str, fact: str) -> FormatError:
    return FormatError(f"The chat cannot be read: `{place}` {fact}", hint="Export it again from where it came")
