"""The messages of a chat on the screen: one widget that makes the lines of what is seen, when it is seen.

A chat of hundreds of messages opens at once, because the heights of messages far away are guesses. When they come near
they are made, and what is on the screen stays where it is.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Literal

from rich.segment import Segment
from rich.style import Style
from textual import events, on
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message as Fact
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from ui.blocks import Look
from ui.turn import Looks, Turn

_GUTTER = 2
_WIDEST = 110  # cells: longer lines are hard to read
_IDLE_SECONDS, _IDLE_SHARE = 0.05, 0.008  # how often messages far away are made, and for how long each time
_IDLE_MOST = 1_000  # messages; in longer chats those far away stay guesses
Wish = Literal["edit", "regenerate", "delete", "quote", "earlier", "later", "back", "fork"]


class Transcript(ScrollView, can_focus=True):
    """The branch that is open. Told by its owner what there is; tells what the user wants of a message."""

    @dataclass
    class Wanted(Fact):
        """The user wants something of a message; None: there is none."""

        wish: Wish
        message: int | None

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "step(-1)", "Message above", id="transcript.up", show=False, tooltip="Go to the message above"),
        Binding(
            "down,j", "step(1)", "Message below", id="transcript.down", show=False, tooltip="Go to the message below"
        ),
        Binding("left,h", "wish('earlier')", "◂ version", id="transcript.earlier", tooltip="The version before this"),
        Binding("right,l", "wish('later')", "version ▸", id="transcript.later", tooltip="The version after this"),
        Binding("e", "wish('edit')", "Edit", id="transcript.edit", tooltip="Ask it otherwise; both versions stay"),
        Binding(
            "r", "wish('regenerate')", "Again", id="transcript.again", tooltip="Another answer; both versions stay"
        ),
        Binding("y", "copy", "Copy", id="transcript.copy", tooltip="Copy the message's Markdown"),
        Binding(
            "c", "copy_next_code", "Code", id="transcript.code", tooltip="Copy a block of code; again: the next one"
        ),
        Binding("q", "wish('quote')", "Quote", id="transcript.quote", tooltip="Take the message into the question"),
        Binding(
            "s", "toggle_source", "Source", id="transcript.source", tooltip="Markdown and LaTeX as they were written"
        ),
        Binding(
            "t", "toggle_thinking", "Thinking", id="transcript.thinking", tooltip="Unfold or fold what was thought"
        ),
        Binding("b", "wish('fork')", "Own chat", id="transcript.fork", show=False, tooltip="This branch as a new chat"),
        Binding("d,delete", "wish('delete')", "Delete", id="transcript.delete", tooltip="Delete it and what follows"),
        Binding("enter,i", "wish('back')", "Write", id="transcript.back", tooltip="Back to the question"),
        Binding("pageup", "page_up", "Page up", id="transcript.page_up", show=False, tooltip="A screen up"),
        Binding(
            "pagedown,space", "page_down", "Page down", id="transcript.page_down", show=False, tooltip="A screen down"
        ),
        Binding("home,g", "scroll_home", "Beginning", id="transcript.home", show=False, tooltip="The first message"),
        Binding("end,G", "scroll_end", "End", id="transcript.end", show=False, tooltip="The last message"),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"transcript--{role}" for role in ("user", "model", "told", "warning", "current", "bar")),
        *(f"transcript--{role}" for role in ("dim", "heading", "code", "block", "quote", "rule", "link", "formula")),
        "transcript--button",
    }

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.turns: list[Turn] = []
        self.current = -1
        self._starts = [0]  # the first line of each turn, and behind the last
        self._known: tuple[int, Looks] | None = None
        self._looks_made: Looks | None = None
        self._fitting = False
        self._follows = True  # what is added at the end is looked at
        self._code_next = 0

    def on_mount(self) -> None:
        self.set_interval(_IDLE_SECONDS, self._make_some)

    # ---- what there is ----

    def show(self, turns: Sequence[Turn], at: int | None = None) -> None:
        """Another branch; `at`: the id of the message to look at, None: the end."""
        self.turns = list(turns)
        found = [index for index, turn in enumerate(self.turns) if turn.message.id == at]
        self.current = found[0] if found else len(self.turns) - 1
        self._code_next = 0
        self._fit(self.current if found else None)

    def add(self, turn: Turn) -> None:
        """A message at the end, which is looked at."""
        self.turns.append(turn)
        self.current, self._code_next = len(self.turns) - 1, 0
        self._fit(None)

    def turn_of(self, message: int) -> Turn | None:
        """The turn of a message that is on this branch."""
        return next((turn for turn in reversed(self.turns) if turn.message.id == message), None)

    def changed(self, turn: Turn) -> None:
        """A turn has other lines now; the end stays in view where it was."""
        if self._known is None or turn not in self.turns:
            return
        if turn is not self.turns[-1]:
            self._refit()
            return
        width, looks = self._known
        start, before = self._starts[-2], self._starts[-1]
        lines = turn.lines(width, looks)
        self._starts[-1] = start + len(lines)
        if self._starts[-1] != before:
            self.virtual_size = Size(self.size.width, self._starts[-1])
        if self._follows and self.scroll_offset.y != self.max_scroll_y:
            self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True)
        self.refresh()

    # ---- where things are ----

    @property
    def _text_width(self) -> int:
        return max(10, min(_WIDEST, self.scrollable_content_region.width - _GUTTER - 1))

    def _refit(self) -> None:
        """Make the lines of what is near the view anew, without moving it."""
        self._fit(None if self._follows else self._turn_at(self.scroll_offset.y), self.scroll_offset.y)

    def _fit(self, anchor: int | None, top: int | None = None) -> None:
        """Heights, and the scroll position with which the turn `anchor` stays; None: the end.

        `top`: the scroll position until now; None: the anchor comes to the top.
        """
        if not self.size.width or self._fitting:
            return
        self._fitting = True
        try:
            self._known = width, looks = self._text_width, self._looks()
            within = top - self._starts[anchor] if anchor is not None and top is not None else 0
            self._make_near(len(self.turns) - 1 if anchor is None else anchor, width, looks)
            heights = [
                len(turn.lines(width, looks)) if turn.is_made(width, looks) else turn.guess(width)
                for turn in self.turns
            ]
            self._starts = [0, *accumulate(heights)]
            self.virtual_size = Size(self.size.width, self._starts[-1])
            goal = self.max_scroll_y if anchor is None else self._starts[anchor] + within
            self._follows = anchor is None
            if goal != self.scroll_offset.y:
                self.scroll_to(y=goal, animate=False, immediate=True)
            self.refresh()
        finally:
            self._fitting = False

    def _make_near(self, anchor: int, width: int, looks: Looks) -> None:
        """Make the lines of two screens on both sides of a turn."""
        for step, turns in ((1, self.turns[anchor:]), (-1, self.turns[: max(0, anchor)][::-1])):
            made = 0
            for turn in turns:
                made += len(turn.lines(width, looks))
                if made > self.size.height * (2 if step > 0 else 3):
                    break

    def _make_some(self) -> None:
        """While nothing happens, turn guesses into lines, for a few milliseconds at a time."""
        if self._known is None or len(self.turns) > _IDLE_MOST or (self.turns and self.turns[-1].answering):
            return
        width, looks = self._known
        until = time.perf_counter() + _IDLE_SHARE
        made = False
        for turn in reversed(self.turns):
            if not turn.is_made(width, looks):
                turn.lines(width, looks)
                made = True
                if time.perf_counter() > until:
                    break
        if made:
            self._refit()

    def _turn_at(self, line: int) -> int:
        return max(0, min(bisect_right(self._starts, line) - 1, len(self.turns) - 1))

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._known is None or self._fitting or not self.turns:
            return
        self._follows = new_value >= self.max_scroll_y - 1
        width, looks = self._known
        first, last = (self._turn_at(round(new_value) + line) for line in (-self.size.height, 2 * self.size.height))
        if not all(turn.is_made(width, looks) for turn in self.turns[first : last + 1]):
            self._refit()

    def on_resize(self) -> None:
        self._fit(None if self._follows else self._turn_at(self.scroll_offset.y), self.scroll_offset.y)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._looks_made = None
        if self._known is not None and self.is_mounted:
            self.call_after_refresh(self._refit)

    # ---- lines ----

    def _looks(self) -> Looks:
        if self._looks_made is None:
            look = {name.removeprefix("transcript--"): self.get_component_rich_style(name) for name in self._names()}
            body = Look(
                text=self.rich_style,
                dim=look["dim"],
                heading=look["heading"],
                code=look["code"],
                code_block=look["block"],
                quote=look["quote"],
                rule=look["rule"],
                link=look["link"],
                formula=look["formula"],
                button=look["button"],
                pygments_style="github-dark" if self.app.current_theme.dark else "default",
            )
            self._looks_made = Looks(body, look["user"], look["model"], look["told"], look["warning"])
            self._bar, self._mark = look["bar"], look["current"]
        return self._looks_made

    def _names(self) -> set[str]:
        return self.COMPONENT_CLASSES

    def render_line(self, y: int) -> Strip:
        """The line at `y` of the view."""
        width, base = self.size.width, self.rich_style
        line = y + self.scroll_offset.y
        if self._known is None or not 0 <= line < self._starts[-1]:
            return Strip.blank(width, base)
        index = self._turn_at(line)
        turn = self.turns[index]
        lines = turn.lines(*self._known)
        at = line - self._starts[index]
        strip = lines[at] if at < len(lines) else Strip.blank(0)
        strip = self._selected(strip.apply_offsets(0, line), line)
        return Strip.join([self._gutter(index, turn), strip]).adjust_cell_length(width, base).apply_style(base)

    def _gutter(self, index: int, turn: Turn) -> Strip:
        if index == self.current and self.has_focus:
            return Strip([Segment("▌ ", self._mark)])
        return Strip([Segment("▎ " if turn.message.role == "user" else "  ", self._bar)])

    # ---- selecting with the mouse ----

    def _selected(self, strip: Strip, line: int) -> Strip:
        span = self.text_selection.get_span(line) if self.text_selection else None
        if span is None:
            return strip
        style = self.screen.get_component_rich_style("screen--selection")
        length = strip.cell_length
        start, end = min(span[0], length), length if span[1] == -1 else min(span[1], length)
        if start >= end:
            return strip
        before, inside, after = (strip.crop(*cut) for cut in ((0, start), (start, end), (end, length)))
        return Strip.join([before, inside.apply_style(Style(bgcolor=style.bgcolor)), after])

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The text between two places; only the lines between them are made."""
        if self._known is None:
            return None
        first = selection.start.y if selection.start else 0
        last = selection.end.y if selection.end else self._starts[-1] - 1
        texts = []
        for line in range(first, min(last, self._starts[-1] - 1) + 1):
            index = self._turn_at(line)
            lines = self.turns[index].lines(*self._known)
            at = line - self._starts[index]
            text = lines[at].text if at < len(lines) else ""
            start, end = selection.get_span(line) or (0, 0)
            texts.append((text[start:] if end == -1 else text[start:end]).rstrip())
        return "\n".join(texts), "\n"

    def selection_updated(self, selection: Selection | None) -> None:  # noqa: ARG002
        self.refresh()

    # ---- what the user does ----

    @property
    def current_turn(self) -> Turn | None:
        return self.turns[self.current] if 0 <= self.current < len(self.turns) else None

    @on(events.MouseDown)
    def _choose(self, event: events.MouseDown) -> None:
        if self.turns and event.y + self.scroll_offset.y < self._starts[-1]:
            self._go_to(self._turn_at(event.y + self.scroll_offset.y))

    def _go_to(self, index: int) -> None:
        if index != self.current:
            self.current, self._code_next = index, 0
        self.refresh()

    def action_step(self, step: int) -> None:
        """To the next message, whose head comes into view; within one that is taller than the view, a few lines."""
        if not self.turns:
            return
        index = max(0, min(self.current + step, len(self.turns) - 1))
        self._go_to(index)
        start, end, top, height = self._starts[index], self._starts[index + 1], self.scroll_offset.y, self.size.height
        if start < top or end > top + height:
            self.scroll_to(y=start if end - start >= height or start < top else end - height, animate=False)

    def action_wish(self, wish: Wish) -> None:
        turn = self.current_turn
        self.post_message(self.Wanted(wish, turn.message.id if turn else None))

    def action_toggle_thinking(self) -> None:
        if (turn := self.current_turn) and turn.toggle_thinking():
            self._refit()

    def action_toggle_source(self) -> None:
        if turn := self.current_turn:
            turn.toggle_source()
            self._refit()

    def action_copy(self) -> None:
        if turn := self.current_turn:
            self._copy(turn.message.text, "the message")

    def action_copy_next_code(self) -> None:
        codes = self.current_turn.codes if self.current_turn else ()
        if not codes:
            self.notify("There is no code in this message", severity="warning", markup=False)
            return
        self.action_copy_code(self._code_next % len(codes))

    def action_copy_code(self, number: int) -> None:
        """Copy a block of code of the current message."""
        codes = self.current_turn.codes if self.current_turn else ()
        if number < len(codes):
            self._code_next = number + 1
            of = f" {number + 1} of {len(codes)}" if len(codes) > 1 else ""
            self._copy(codes[number].text, f"code{of}")

    def _copy(self, text: str, what: str) -> None:
        self.app.copy_to_clipboard(text)
        self.notify(f"Copied {what}, {len(text.splitlines()):,} lines", markup=False)
