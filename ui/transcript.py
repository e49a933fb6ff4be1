"""The messages of a chat on the screen, and what a user can do with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual import events, on
from textual.binding import Binding, BindingType
from textual.message import Message as Fact

from ui.blocks import Code
from ui.column import Column, Spot
from ui.turn import Turn
from ui.turn_view import TurnView

Wish = Literal["edit", "regenerate", "delete", "quote", "earlier", "later", "back", "fork"]


class Transcript(TurnView):
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

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._clicked = 0  # the line of the current turn
        self._code_next = 0

    # ---- what there is ----

    def show(self, turns: Sequence[Turn], at: int | None = None) -> None:
        """Another branch; `at`: the id of the message to look at, None: the end."""
        self._column = Column(turns)
        self._drawn.clear()
        found = [index for index, turn in enumerate(turns) if turn.message.id == at]
        self.current, self._code_next = found[0] if found else len(turns) - 1, 0
        self._fit(Spot(found[0], 0) if found else None)

    def add(self, turn: Turn) -> None:
        """A message at the end, which is looked at."""
        self._column.add(turn)
        self.current, self._code_next = len(self.turns) - 1, 0
        self._fit(None)

    def turn_of(self, message: int) -> Turn | None:
        """The turn of a message that is on this branch."""
        return next((turn for turn in reversed(self.turns) if turn.message.id == message), None)

    # ---- what the user does ----

    @property
    def current_turn(self) -> Turn | None:
        return self.turns[self.current] if 0 <= self.current < len(self.turns) else None

    @on(events.MouseDown)
    def _choose(self, event: events.MouseDown) -> None:
        line = event.y + self.scroll_offset.y
        if self.turns and line < self._column.height:
            index, self._clicked = self._column.spot(line)
            self._go_to(index)

    def _go_to(self, index: int) -> None:
        if index != self.current:
            self._code_next = 0
        super()._go_to(index)

    def action_step(self, step: int) -> None:
        """To the next message; within one that is taller than the view, half a view on."""
        if not self.turns:
            return
        height, column = self.size.height, self._column
        start, end = (line - self.scroll_offset.y for line in column.starts[self.current : self.current + 2])
        hidden = end - height if step > 0 else -start
        if hidden > 0:
            self.scroll_relative(y=step * min(hidden, max(1, height // 2)), animate=False)
            return
        if not 0 <= self.current + step < len(self.turns):
            return
        self._go_to(self.current + step)
        start, end = (line - self.scroll_offset.y for line in column.starts[self.current : self.current + 2])
        if start < 0 or end > height:
            at_top = end - start <= height if step < 0 else end - start > height
            self.scroll_relative(y=start if at_top else end - height, animate=False)

    def action_scroll_home(self) -> None:
        self.scroll_home(animate=False)

    def action_scroll_end(self) -> None:
        self.scroll_to(y=self.max_scroll_y, animate=False)

    def action_page_up(self) -> None:
        self.scroll_page_up(animate=False)

    def action_page_down(self) -> None:
        self.scroll_page_down(animate=False)

    def action_wish(self, wish: Wish) -> None:
        turn = self.current_turn
        self.post_message(self.Wanted(wish, turn.message.id if turn else None))

    def action_toggle_thinking(self) -> None:
        if (turn := self.current_turn) and turn.toggle_thinking():
            self._turn_over(turn)

    def action_toggle_source(self) -> None:
        if turn := self.current_turn:
            turn.toggle_source()
            self._turn_over(turn)

    def _turn_over(self, turn: Turn) -> None:
        """The current turn shows something else: its head, or where that is not seen, its text stays in its place."""
        if self._known is None or (turn.answering and self._follows):
            self._fit(self._top)
            return
        top, start, before = self.scroll_offset.y, self._column.starts[self.current], turn.body_at
        lines = len(turn.lines(*self._known))
        within = top - start
        if within > 0:
            within = min(max(0, within + turn.body_at - before), lines - 1)
        self._fit(Spot(self.current, within))

    def action_copy(self) -> None:
        if turn := self.current_turn:
            self._copy(turn.message.text, "the message")

    def action_copy_next_code(self) -> None:
        codes = self.current_turn.codes if self.current_turn else ()
        if not codes:
            self.notify("There is no code in this message", severity="warning", markup=False)
            return
        self._copy_one(codes, self._code_next % len(codes))

    def action_copy_code(self, number: int) -> None:
        """Copy the block of code that was clicked on, a block of the current message."""
        if self.current_turn:
            self._copy_one(self.current_turn.codes_at(self._clicked), number)

    def _copy_one(self, codes: Sequence[Code], number: int) -> None:
        if number < len(codes):
            self._code_next = number + 1
            of = f" {number + 1} of {len(codes)}" if len(codes) > 1 else ""
            self._copy(codes[number].text, f"code{of}")

    def _copy(self, text: str, what: str) -> None:
        self.app.copy_to_clipboard(text)
        self.notify(f"Copied {what}, {len(text.splitlines()):,} lines", markup=False)
