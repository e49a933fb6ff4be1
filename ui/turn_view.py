"""Turns on the screen: one widget that makes the lines of what is seen, when it is seen. Knows no key.

The lines of turns far away are made when they come near, and what is on the screen stays where it is. While an answer
grows, only those lines are drawn again that have changed: over ssh a whole screen for each word is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.timer import Timer
from textual.widget import Widget

from ui.blocks import Look
from ui.column import Column, Spot
from ui.turn import Looks, Turn

_WIDEST = 110  # cells: longer lines are hard to read
_NARROW = 20  # cells: with fewer, less is left free at the sides
_LINES = 32  # bits of a line's number in its turn: see `_name`
_DRAWN = 2_000  # lines that are kept as they were drawn
_IDLE_SECONDS, _IDLE_SHARE = 0.05, 0.008  # how often turns far away are made, and for how long each time
_IDLE_ROUNDS = 10  # after so many of them the scrollbar is told
_IDLE_MOST = 1_000  # turns; in longer chats those far away stay guesses


class TurnView(ScrollView, can_focus=True):
    """Turns one below the other, one of which is the current one."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"transcript--{role}" for role in ("user", "model", "told", "warning", "current", "bar")),
        *(f"transcript--{role}" for role in ("dim", "heading", "code", "block", "quote", "rule", "link", "formula")),
        "transcript--button",
    }

    DEFAULT_CSS = """
    TurnView {
        overflow-x: hidden;
        scrollbar-gutter: stable;
    }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.current = -1
        self._column = Column()
        self._known: tuple[int, Looks] | None = None  # the width and the styles of the lines
        self._looks_made: Looks | None = None
        self._gutters: dict[tuple[bool, bool], Strip] = {}
        self._drawn: dict[int, tuple[Strip, Strip, int, Strip]] = {}
        self._fitting = False
        self._follows = True  # what is added at the end is looked at
        self._wanted: Spot | None = None  # what is to be seen once there is a size
        self._idle: Timer | None = None
        self._rounds = 0

    def on_mount(self) -> None:
        self._idle = self.set_interval(_IDLE_SECONDS, self._make_some, pause=True)

    @property
    def turns(self) -> Sequence[Turn]:
        """The messages, in their order."""
        return self._column.turns

    def changed(self, turn: Turn) -> None:
        """A turn has other lines now; the end stays in view where it was."""
        if self._known is None or turn not in self.turns:
            return
        if turn is not self.turns[-1]:
            self._fit(self._top)
            return
        before, starts = turn.shown, self._column.starts
        starts[-1] = starts[-2] + len(turn.lines(*self._known))
        self._set_height()
        was = self.scroll_offset.y
        goal = self.max_scroll_y if self._follows else min(was, self.max_scroll_y)
        if goal != was:
            self.scroll_to(y=goal, animate=False, force=True)
        else:
            self._redraw(starts[-2] - was, before, turn.shown)

    def _redraw(self, y: int, before: Sequence[Strip], after: Sequence[Strip]) -> None:
        """Draw those lines that are others now, the first of which is at `y` of the view."""
        seen = range(max(0, -y), min(max(len(before), len(after)), self.size.height - y))
        other = [
            line
            for line in seen
            if not (
                line < min(len(before), len(after)) and (before[line] is after[line] or before[line] == after[line])
            )
        ]
        if other:
            self.refresh(Region(0, y + other[0], self.size.width, other[-1] - other[0] + 1))

    def _go_to(self, index: int) -> None:
        """Another turn is the current one."""
        if index != self.current:
            self.current = index
            self.refresh()

    # ---- where things are ----

    @property
    def _gutter_width(self) -> int:
        return 2 if self.size.width >= _NARROW else 1

    @property
    def _text_width(self) -> int:
        margin = 1 if self.size.width >= _NARROW else 0
        return max(1, min(_WIDEST, self.scrollable_content_region.width - self._gutter_width - margin))

    @property
    def _top(self) -> Spot | None:
        """What is at the top of the view; None: the end is looked at."""
        return None if self._follows or not self.turns else self._column.spot(self.scroll_offset.y)

    def _fit(self, spot: Spot | None) -> None:
        """Make what is near a place and bring that to the top; None: the end to the bottom."""
        if not self.size.width:
            self._wanted, self._follows = spot, spot is None
            return
        if self._fitting:
            return
        self._fitting = True
        try:
            width = self._known[0] if self._known else 0
            self._known = manner = self._text_width, self._looks()
            before = self._column.height_of(spot.turn) if spot else 0
            if self.turns:
                end = Spot(len(self.turns) - 1, len(self.turns[-1].lines(*manner)))
                self._column.make_around(spot or end, 2 * self.size.height, 2 * self.size.height, manner)
            self._column.measure(manner[0])
            if spot and before and width != manner[0] and spot.within > 0:
                # about the same words of a message that has more or fewer lines now
                spot = Spot(spot.turn, spot.within * self._column.height_of(spot.turn) // before)
            self._set_height()
            goal = self._column.line(spot) if spot else self.max_scroll_y
            self.scroll_to(y=goal, animate=False, force=True)  # the scrollbar may not be there yet
            self._follows = self.scroll_offset.y >= self.max_scroll_y
            self.refresh()
        finally:
            self._fitting = False
        if self._idle:
            self._idle.resume()

    def _set_height(self) -> None:
        """Tell the scrollbar; a layout of the whole screen is needed only where the bar comes or goes."""
        size, height = Size(self.size.width, self._column.height), self.size.height
        if min(size.height, self.virtual_size.height) > height and size.width == self.virtual_size.width:
            self.set_reactive(Widget.virtual_size, size)
            self.vertical_scrollbar.window_virtual_size = size.height
        else:
            self.virtual_size = size

    def _make_some(self) -> None:
        """While nothing happens, turn guesses into lines, for a few milliseconds at a time."""
        is_busy = not self.turns or self.turns[-1].answering or self.is_vertical_scrollbar_grabbed
        if self._known is None or is_busy or not self.is_on_screen:
            return
        if len(self.turns) <= _IDLE_MOST and self._column.make_some(self._known, _IDLE_SHARE):
            self._rounds += 1
            if self._rounds % _IDLE_ROUNDS:
                return
        elif self._idle:
            self._idle.pause()
        if not self.app.animator.is_being_animated(self, "scroll_y"):
            self._settle()

    def _settle(self) -> None:
        """Take what was made far away into account. What is on the screen stays, so only the scrollbar is drawn."""
        assert self._known is not None
        spot = self._column.spot(self.scroll_offset.y)
        self._column.measure(self._known[0])
        self._set_height()
        top = float(self._column.line(spot))
        self.set_reactive(Widget.scroll_y, top)
        self.set_reactive(Widget.scroll_target_y, top)
        self.vertical_scrollbar.position = top

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._known is None or self._fitting or not self.turns:
            return
        self._follows = round(new_value) >= self.max_scroll_y
        top, height, column = round(new_value), self.size.height, self._column
        if not column.is_made(top - height, top + 2 * height, self._known):
            self._fit(self._top)
            top = self.scroll_offset.y
        # What the keys act on is in view.
        self._go_to(max(column.index_at(top), min(self.current, column.index_at(top + height - 1))))

    def on_resize(self) -> None:
        if self._known is None:
            self._fit(self._wanted)
        else:
            self._fit(self._top)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._looks_made = None
        if self._known is not None and self.is_mounted:
            self.call_after_refresh(self._restyle)

    def _restyle(self) -> None:
        if self._known is not None and self._looks() is not self._known[1]:
            self._fit(self._top)

    # ---- lines ----

    def _looks(self) -> Looks:
        if self._looks_made is None:
            names = {name: name.removeprefix("transcript--") for name in self.COMPONENT_CLASSES}
            look = {short: self.get_component_rich_style(name) for name, short in names.items()}
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
            made = Looks(body, look["user"], look["model"], look["told"], look["warning"])
            self._looks_made = self._known[1] if self._known and self._known[1] == made else made
            self._gutters = self._make_gutters(look["bar"], look["current"], body.text)
            self._drawn.clear()
        return self._looks_made

    def render_line(self, y: int) -> Strip:
        """The line at `y` of the view."""
        width, line, column = self.size.width, y + self.scroll_offset.y, self._column
        if self._known is None or not self.turns:
            return Strip.blank(width, self.rich_style)
        base = self._known[1].body.text
        if line >= column.height:
            return _named(Strip.blank(width, base), _name(len(self.turns) - 1, 1 << (_LINES - 1)))
        index, at = column.spot(line)
        lines = self.turns[index].lines(*self._known)
        strip = lines[at] if at < len(lines) else Strip.blank(0)
        name, gutter = _name(index, at), self._gutter(index)
        strip = self._selected(strip, name)
        drawn = self._drawn.get(name)
        if drawn and drawn[0] is strip and drawn[1] is gutter and drawn[2] == width:
            return drawn[3]
        # The gutter belongs to the first character, so that a selection can begin in it.
        parts = [_named(Strip([sign]), name) for sign in gutter] + [_named(strip, name)]
        whole = Strip.join(parts).adjust_cell_length(width, base).apply_style(base)
        if len(self._drawn) > _DRAWN:
            self._drawn.clear()
        self._drawn[name] = strip, gutter, width, whole
        return whole

    def _make_gutters(self, bar: Style, mark: Style, plain: Style) -> dict[tuple[bool, bool], Strip]:
        """What is before a line: of the current message or not, of the user or not."""
        signs = {(True, True): ("▌", mark), (True, False): ("▌", mark), (False, True): ("▎", bar)}
        both = ((marked, asked) for marked in (True, False) for asked in (True, False))
        space = [Segment(" ", plain)] * (self._gutter_width - 1)
        return {key: Strip([Segment(*signs.get(key, (" ", plain))), *space]) for key in both}

    def _gutter(self, index: int) -> Strip:
        marked = index == self.current and self.has_focus
        return self._gutters[marked, self.turns[index].message.role == "user"]

    # ---- selecting with the mouse ----

    def _selected(self, strip: Strip, name: int) -> Strip:
        span = self._span(name, strip.text)
        if span is None:
            return strip
        start, end = (cell_len(strip.text[:at]) for at in span)
        if start >= end:
            return strip
        style = self.screen.get_component_rich_style("screen--selection")
        before, inside, after = (strip.crop(*cut) for cut in ((0, start), (start, end), (end, strip.cell_length)))
        ground = Segment.apply_style(inside, post_style=Style(bgcolor=style.bgcolor))
        return Strip.join([before, Strip(ground, inside.cell_length), after])

    def _span(self, name: int, text: str, selection: Selection | None = None) -> tuple[int, int] | None:
        """From which character of a line to which one it is selected."""
        selection = selection or self.text_selection
        span = selection.get_span(name) if selection else None
        if span is None:
            return None
        start, end = span
        return min(start, len(text)), len(text) if end == -1 else min(end, len(text))

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The text between two places; only the lines between them are made."""
        if self._known is None or not self.turns:
            return None
        first = selection.start.y >> _LINES if selection.start else 0
        last = selection.end.y >> _LINES if selection.end else len(self.turns) - 1
        texts = []
        for index in range(max(0, first), min(last, len(self.turns) - 1) + 1):
            for at, strip in enumerate(self.turns[index].lines(*self._known)):
                if span := self._span(_name(index, at), strip.text, selection):
                    texts.append(strip.text[slice(*span)].rstrip())
        return "\n".join(texts), "\n"

    def selection_updated(self, selection: Selection | None) -> None:  # noqa: ARG002
        self.refresh()


def _name(index: int, line: int) -> int:
    """What a selection calls a line: a number in the order of the lines that heights further up do not change."""
    return index << _LINES | line


def _named(strip: Strip, name: int) -> Strip:
    return strip.apply_offsets(0, name)
