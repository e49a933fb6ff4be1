"""Chats and found messages as rows: what each line says, in how much room. Knows no widget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from phi4local.chats import Chat, Hit, Summary
from phi4local.printing import printable
from ui.rows import Piece, RowLine

_MOST_NAME = 28  # characters of a folder's and of a model's name in a row
_SPEAKERS = {"user": "You", "assistant": "Answer"}
_SPEAKER_CELLS = 8


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A chat in two lines: title and time; how it starts, folder, size and model."""

    summary: Summary
    is_current: bool
    now: datetime
    height: int = 2
    is_heading: bool = False

    @property
    def chat(self) -> int:
        return self.summary.chat.id

    @property
    def message(self) -> int | None:
        return None

    def line(self, index: int, width: int) -> RowLine:  # noqa: ARG002
        chat = self.summary.chat
        if index == 0:
            pin = [Piece("★ ", "mark")] if chat.pinned else []
            return RowLine([*pin, Piece(title(chat.title), "title")], [Piece(when(chat.changed, self.now), "muted")])
        here = [Piece("open", "mark"), Piece(" · ", "muted")] if self.is_current else []
        facts = (_name(chat.folder), counted(self.summary.messages, "message"), _name(chat.model))
        about = Piece(" · ".join(fact for fact in facts if fact), "muted")
        return RowLine([Piece(one_line(self.summary.start), "muted")], [*here, about])


@dataclass(frozen=True, slots=True)
class Heading:
    """The chat that the found messages below are of."""

    text: str
    found: int
    is_first: bool
    is_heading: bool = True

    @property
    def height(self) -> int:
        return 1 if self.is_first else 2

    def line(self, index: int, width: int) -> RowLine:  # noqa: ARG002
        if index < self.height - 1:
            return RowLine([])
        several = [Piece(f"{self.found} messages", "muted")] if self.found > 1 else []
        return RowLine([Piece(title(self.text), "title")], several)


@dataclass(frozen=True, slots=True)
class HitRow:
    """A found message: who said it, the words around the match, when."""

    hit: Hit
    now: datetime
    height: int = 1
    is_heading: bool = False

    @property
    def chat(self) -> int:
        return self.hit.chat

    @property
    def message(self) -> int | None:
        return self.hit.message

    def line(self, index: int, width: int) -> RowLine:  # noqa: ARG002
        speaker = Piece(_SPEAKERS[self.hit.role].ljust(_SPEAKER_CELLS), "muted")
        # A third of the room at most is before the first match, so that it is seen in a narrow terminal, too.
        return RowLine([speaker, *_marked(self.hit, width // 3)], [Piece(when(self.hit.created, self.now), "muted")])


@dataclass(frozen=True, slots=True)
class Note:
    """What stands in a list that is empty."""

    text: str
    height: int = 1
    is_heading: bool = True

    def line(self, index: int, width: int) -> RowLine:  # noqa: ARG002
        return RowLine([Piece(self.text, "muted")])


def chat_rows(summaries: Iterable[Summary], current: int | None, now: datetime) -> list[ChatRow]:
    return [ChatRow(one, one.chat.id == current, now) for one in summaries]


def hit_rows(hits: Sequence[Hit], now: datetime, *, are_first: bool = True) -> list[Heading | HitRow]:
    """Grouped by chat: the chat of the newest hit first, within a chat the newest hit first."""
    groups: dict[int, list[Hit]] = {}
    for hit in hits:
        groups.setdefault(hit.chat, []).append(hit)
    rows: list[Heading | HitRow] = []
    for group in groups.values():
        rows.append(Heading(group[0].title, len(group), are_first and not rows))
        rows += [HitRow(hit, now) for hit in group]
    return rows


def with_title(summaries: Iterable[Summary], text: str) -> list[Summary]:
    """The chats whose titles have every word of `text`, in capitals or not."""
    words = text.casefold().split()
    return [one for one in summaries if words and all(word in one.chat.title.casefold() for word in words)]


def title(text: str) -> str:
    return one_line(text) or "Untitled"


def named(chat: Chat) -> str:
    """A chat's title within a sentence."""
    whole = title(chat.title)
    return f"“{whole[:57]}…”" if len(whole) > 58 else f"“{whole}”"


def one_line(text: str) -> str:
    """Foreign text on one line: line breaks and spaces become one space, controls are shown."""
    return printable(" ".join(text.split()))


def counted(number: int, what: str) -> str:
    """`counted(1, "chat") == "1 chat"`, `counted(5000, "chat") == "5,000 chats"`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def when(time: str, now: datetime) -> str:
    """A time as kept, as people say it: `today 14:02`, `yesterday`, `12 Nov`, `12 Nov 2024`."""
    try:
        then = datetime.fromisoformat(time).astimezone(now.tzinfo)
    except (ValueError, OverflowError, OSError):  # damage, or a year that no calendar here has
        return printable(time, limit=10)
    if then.date() == now.date():
        return f"today {then:%H:%M}"
    if then.date() == (now - timedelta(days=1)).date():
        return "yesterday"
    day = f"{then.day} {_MONTHS[then.month - 1]}"
    return day if then.year == now.year else f"{day} {then.year}"


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _name(text: str) -> str:
    whole = one_line(text)
    return whole if len(whole) <= _MOST_NAME else whole[: _MOST_NAME - 1] + "…"


def _marked(hit: Hit, most_before: int) -> list[Piece]:
    """The snippet with its matches apart; a long beginning loses its start."""
    pieces: list[Piece] = []
    at = 0
    for start, end in hit.matches:
        pieces += [Piece(_flat(hit.snippet[at:start])), Piece(_flat(hit.snippet[start:end]), "match")]
        at = end
    pieces.append(Piece(_flat(hit.snippet[at:])))
    before = pieces[0].text
    if hit.matches and len(before) > most_before:
        pieces[0] = Piece("…" + before[len(before) - most_before + 1 :])
    return pieces


def _flat(text: str) -> str:
    """Foreign text without line breaks; spaces at its ends stay, because words stand there."""
    ends = " " if text[-1:].isspace() else "", " " if text[:1].isspace() else ""
    middle = one_line(text)
    return ends[1] + middle + ends[0] if middle else ends[0]
