"""A list of thousands of rows of which only the visible ones are drawn. Knows nothing of what the rows say."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import ClassVar, NamedTuple, Protocol

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

_GUTTER, _GAP = 2, 2  # cells: the cursor's mark, and what stays free before the right part


class Piece(NamedTuple):
    """Some characters and how they look: `title`, `muted`, `match`, `mark`, or as the row does."""

    text: str
    look: str = ""


class RowLine(NamedTuple):
    """A line of a row; what is too long is cut, the left part first."""

    left: Sequence[Piece]
    right: Sequence[Piece] = ()


class Row(Protocol):
    """What can be listed; the cursor passes over headings."""

    @property
    def height(self) -> int: ...

    @property
    def is_heading(self) -> bool: ...

    def line(self, index: int, width: int) -> RowLine: ...


class Rows(ScrollView, can_focus=True):
    """The rows and a cursor on one of them."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "rows--cursor",
        "rows--mark",
        "rows--match",
        "rows--muted",
        "rows--title",
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "step(-1)", "Up", show=False, id="rows.up", tooltip="The row above"),
        Binding("down,j", "step(1)", "Down", show=False, id="rows.down", tooltip="The row below"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="rows.page_up", tooltip="A page up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="rows.page_down", tooltip="A page down"),
        Binding("home,g", "edge(1)", "First", show=False, id="rows.first", tooltip="The first row"),
        Binding("end,G", "edge(-1)", "Last", show=False, id="rows.last", tooltip="The last row"),
    ]

    cursor: reactive[int | None] = reactive(None)

    class Chosen(Message):
        """A row was clicked twice."""

    class Moved(Message):
        """The cursor is on another row, or on none."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: Sequence[Row] = ()
        self._tops = [0]  # the line at which each row starts, and where the last one ends

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return None if self.cursor is None else self._rows[self.cursor]

    def show(self, rows: Sequence[Row], cursor: int = 0) -> None:
        """List these; the cursor goes to the first row from `cursor` on that is no heading."""
        self.set_reactive(Rows.cursor, None)
        self._rows = rows
        self._tops = [0, *accumulate(row.height for row in rows)]
        self.virtual_size = Size(self.scrollable_content_region.width, self._tops[-1])
        self.refresh()
        self.cursor = self._beyond(min(cursor, len(rows) - 1), 1)
        self._follow()
        self.post_message(self.Moved())

    def watch_cursor(self) -> None:
        self.refresh()
        self._follow()
        self.post_message(self.Moved())

    def _follow(self) -> None:
        """Bring the row under the cursor into view, and the heading that it is below."""
        if self.cursor is None:
            return
        first = self.cursor
        while first > 0 and self._rows[first - 1].is_heading:
            first -= 1
        region = Region(0, self._tops[first], 1, self._tops[self.cursor + 1] - self._tops[first])
        self.call_after_refresh(self.scroll_to_region, region, animate=False, force=True, x_axis=False)

    def _beyond(self, index: int, step: int) -> int | None:
        """The first row from `index` on in that direction that is no heading, else where the cursor is."""
        while 0 <= index < len(self._rows):
            if not self._rows[index].is_heading:
                return index
            index += step
        return self.cursor

    def action_step(self, step: int) -> None:
        if self.cursor is not None:
            self.cursor = self._beyond(self.cursor + step, step)

    def action_page(self, step: int) -> None:
        if self.cursor is not None:
            line = self._tops[self.cursor] + step * max(1, self.size.height - 1)
            self.cursor = self._beyond(self._at(line), -step)

    def action_edge(self, step: int) -> None:
        if self._rows:
            self.cursor = self._beyond(0 if step > 0 else len(self._rows) - 1, step)

    def _at(self, line: int) -> int:
        """The row that this line is of; the first or last beyond the ends."""
        return min(max(bisect_right(self._tops, line) - 1, 0), len(self._rows) - 1)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        line = self._tops[-1] if offset is None else offset.y + self.scroll_offset.y
        if line >= self._tops[-1] or self._rows[self._at(line)].is_heading:
            return
        self.cursor = self._at(line)
        if event.chain == 2:
            self.post_message(self.Chosen())

    def on_resize(self) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, self._tops[-1])
        self._follow()

    def render_line(self, y: int) -> Strip:
        line, width = y + self.scroll_offset.y, self.scrollable_content_region.width
        if line >= self._tops[-1]:
            return Strip.blank(width, self.rich_style)
        index = self._at(line)
        is_here = index == self.cursor
        base = self.get_component_rich_style("rows--cursor") if is_here else self.rich_style
        mark = self._strip([Piece("▌" if is_here else " ", "mark")], base)
        drawn = self._rows[index].line(line - self._tops[index], width - _GUTTER)
        middle = self._sides(self._strip(drawn.left, base), self._strip(drawn.right, base), width - _GUTTER - 1, base)
        blank = Strip([Segment(" ", base)])
        return Strip.join([mark, blank, *middle]).adjust_cell_length(width, base)

    def _sides(self, left: Strip, right: Strip, width: int, base: Style) -> list[Strip]:
        """Both parts in so many cells; the right one may have what the left one leaves, and nearly half anyhow."""
        right = _cut(right, max(width - left.cell_length - _GAP, width * 45 // 100))
        left = _cut(left, width - right.cell_length - _GAP if right.cell_length else width)
        gap = width - left.cell_length - right.cell_length
        return [left, Strip([Segment(" " * gap, base)]), right]

    def _strip(self, pieces: Sequence[Piece], base: Style) -> Strip:
        return Strip([Segment(text, base + self._look(look)) for text, look in pieces if text])

    def _look(self, look: str) -> Style:
        """What a look changes; its colour is that of the whole style, because a part alone is never translucent."""
        if not look:
            return Style.null()
        part = self.get_component_rich_style(f"rows--{look}", partial=True)
        whole = self.get_component_rich_style(f"rows--{look}")
        return part + Style(color=whole.color) if part.color is not None else part


def _cut(strip: Strip, width: int) -> Strip:
    """At most so many cells, with a mark where something is missing."""
    if strip.cell_length <= width:
        return strip
    kept = strip.crop(0, max(0, width - 1))
    last = list(strip)[-1].style
    return Strip.join([kept, Strip([Segment("…", last)])]) if width > 0 else Strip([])
