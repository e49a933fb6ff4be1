"""One message of a chat as lines of a terminal: its head, thinking, text and end. Knows no widget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from phi4local.chats import Attachment, Message
from phi4local.printing import printable
from phi4local.units import duration, file_size
from ui.blocks import Body, Look, source_lines

if TYPE_CHECKING:
    from ui.blocks import Code

_BLANK = Strip.blank(0)
_TAIL = 4  # lines of the thinking that are shown while it goes on
_ENDS = {
    "partial": "cut off before its end",
    "stopped": "stopped",
    "failed": "the engine failed here",
}


@dataclass(frozen=True)
class Looks:
    """The styles of a transcript, made from the theme by the widget."""

    body: Look
    user: Style
    model: Style
    told: Style  # a line above which the model is told nothing
    warning: Style


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message stands among its versions, the oldest first; `number` counts from one."""

    number: int = 1
    of: int = 1


class Turn:
    """A message and how it is shown; `lines` are made anew only where something has changed."""

    def __init__(self, message: Message, place: Place, speaker: str) -> None:
        self.message = message
        self.place = place
        self.speaker = speaker  # the name at the head of an answer
        self.note = ""  # what happens before the first word, or why the answer ended
        self.rule = ""  # what the line above this message says
        self.summary = ""  # what the model is told instead of the messages above that line
        self.answering = False
        self._thinking_open = False
        self._source = False
        self._body = Body(message.text)
        self._thinking = Body(message.thinking)
        self._made: tuple[int, Looks] | None = None
        self._measured: int | None = None  # the width for which the number of lines is known
        self._height = 0
        self.shown: Sequence[Strip] = ()  # the lines as they were made last
        self.body_at = 0  # the one that what was said begins with
        self._words = (0, 0)  # the length of the thinking, and how many words that is

    # ---- changes ----

    def begin(self, note: str) -> None:
        """The answer is being given."""
        self.answering, self.note = True, note
        self._forget()

    def grow(self, text: str, thinking: str, thinking_seconds: float) -> None:
        """The answer has gone on by these pieces."""
        self._body.append(text)
        self._thinking.append(thinking)
        message = self.message
        self.message = replace(
            message,
            text=message.text + text,
            thinking=message.thinking + thinking,
            thinking_seconds=thinking_seconds or message.thinking_seconds,
        )
        self._forget()

    def end(self, message: Message, note: str) -> None:
        """The answer as it stays; `note` says what kept it from its end."""
        self.answering, self.note, self.message = False, note, message
        if self._body.markdown != message.text:
            self._body = Body(message.text)
        if self._thinking.markdown != message.thinking:
            self._thinking = Body(message.thinking)
        self._forget()

    def toggle_thinking(self) -> bool:
        """Unfold or fold the thinking; whether there is any."""
        self._thinking_open = not self._thinking_open
        self._forget()
        return bool(self.message.thinking)

    def toggle_source(self) -> bool:
        """The Markdown itself instead of what it means, or back; which of them now."""
        self._source = not self._source
        self._forget()
        return self._source

    def _forget(self) -> None:
        """The lines have to be made again."""
        self._made = self._measured = None

    def release(self) -> None:
        """Keep no lines, only how many they are: tens of thousands would take memory, and time to leave."""
        if self._made and not self.answering:
            self._made, self.shown = None, ()
            self._body, self._thinking = Body(self.message.text), Body(self.message.thinking)

    # ---- lines ----

    @property
    def codes(self) -> Sequence[Code]:
        """The blocks of code in the order of the text."""
        return () if self.message.role == "user" else self._body.codes()

    def codes_at(self, line: int) -> Sequence[Code]:
        """The blocks of code among which the one at a line is: the answer's, or those of the thinking above it."""
        return self._thinking.codes() if line < self.body_at else self.codes

    def is_made(self, width: int, looks: Looks) -> bool:
        return self._made == (width, looks)

    def is_measured(self, width: int) -> bool:
        return self._measured == width

    def lines(self, width: int, looks: Looks) -> Sequence[Strip]:
        """All lines, each at most `width` cells."""
        if not self.is_made(width, looks):
            above = [
                *self._rule_lines(width, looks),
                _line(self._head(), looks.user if self.message.role == "user" else looks.model, width),
                *self._attached(width, looks),
                *self._thought(width, looks),
            ]
            self.body_at = len(above)
            self.shown = [*above, *self._said(width, looks), *self._foot(width, looks), _BLANK]
            self._made, self._measured, self._height = (width, looks), width, len(self.shown)
        return self.shown

    def height(self, width: int) -> int:
        """How many lines there are; about, while they have not been made for that width."""
        if self.is_measured(width):
            return self._height
        text = self.message.text
        return 3 + text.count("\n") + len(text) // max(10, width)

    def _rule_lines(self, width: int, looks: Looks) -> list[Strip]:
        if not self.rule:
            return []
        summary = source_lines(self.summary, width, _dimmed(looks)) if self.summary else ()
        return [_line(f"── {self.rule} ──", looks.told, width), *summary, _BLANK]

    def _head(self) -> str:
        name = "You" if self.message.role == "user" else printable(self.speaker, limit=60)
        return f"{name}  ‹ {self.place.number} of {self.place.of} ›" if self.place.of > 1 else name

    def _attached(self, width: int, looks: Looks) -> list[Strip]:
        return [_line(_attachment(one), looks.body.dim, width) for one in self.message.attachments]

    def _thought(self, width: int, looks: Looks) -> list[Strip]:
        thinking = self.message.thinking
        if not thinking.strip():
            return []
        goes_on = self.answering and not self.message.text
        if self._words[0] != len(thinking):
            self._words = len(thinking), len(thinking.split())
        words = f"{self._words[1]:,} words"
        took = duration(self.message.thinking_seconds)
        head = f"Thinking, {took}, {words}" if goes_on else f"Thought for {took}, {words}"
        fold = looks.body.button + Style(meta={"@click": "toggle_thinking"})
        lines = [_line(f"{'▾' if self._thinking_open else '▸'} {head}", fold, width)]
        if self._thinking_open or goes_on:
            inner = self._thinking.lines(max(1, width - 2), replace(looks.body, text=looks.body.dim))
            shown = inner if self._thinking_open else inner[-_TAIL:]
            lines += [Strip.join([Strip([Segment("│ ", looks.body.dim)]), strip]) for strip in shown]
        return [*lines, _BLANK]

    def _said(self, width: int, looks: Looks) -> Sequence[Strip]:
        text = self.message.text
        if self.message.role == "user" or self._source:
            return source_lines(text, width, looks.body) if text else []
        return self._body.lines(width, looks.body) if text.strip() else []

    def _foot(self, width: int, looks: Looks) -> list[Strip]:
        if self.answering:
            waiting = not self.message.text and not self.message.thinking
            return [_line(self.note, looks.body.dim, width)] if waiting and self.note else []
        said = self.note or (_ENDS.get(self.message.state, "") if self.message.role == "assistant" else "")
        return [strip for line in said.splitlines() for strip in source_lines(f"■ {line}", width, _warned(looks))]


def _attachment(one: Attachment) -> str:
    cost = f", {one.tokens:,} tokens" if one.tokens else ""
    return f"+ {printable(one.name)}, {file_size(one.bytes)}{cost}"


def _dimmed(looks: Looks) -> Look:
    return replace(looks.body, text=looks.body.dim)


def _warned(looks: Looks) -> Look:
    return replace(looks.body, text=looks.warning)


def _line(text: str, style: Style, width: int) -> Strip:
    """One line; what is too long ends with an ellipsis."""
    strip = Strip([Segment(text, style)])
    return strip if strip.cell_length <= width else Strip.join([strip.crop(0, width - 1), Strip([Segment("…", style)])])
