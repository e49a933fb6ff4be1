"""The table of builds: one row under a cursor, moved by keys and mouse. Knows not where builds come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from phi4local.printing import printable
from ui.builds import COLUMNS, RIGHT, SPARE, SPARE_LAST, Entry

_GAP, _WIDE_GAP = 2, 4
_NAME = 20  # cells of a name that are worth more than what the engine says
_HEAD = Entry("", COLUMNS, frozenset({"-head"}))
_MARKS = {"-best": "★ ", "-used": "● "}  # the first that a row has
_CLASSES = ("-head", "-here", "-used", "-best", "-nowhere", "-asking", "-nano", "-file")


class BuildRow(Widget):
    """One build in a line; foreign text in it is shown as text."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"row--mark", "row--name", "row--state"}

    class Clicked(Message):
        """By the mouse; twice in a row for a double click."""

        def __init__(self, row: BuildRow, is_double: bool) -> None:
            super().__init__()
            self.row = row
            self.is_double = is_double

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self.entry = entry
        self._widths: Sequence[int] = ()
        self._gap = 0

    def show(self, entry: Entry, widths: Sequence[int], gap: int) -> None:
        """Another build, or the same in other columns; a column without width is left out."""
        self.entry, self._widths, self._gap = entry, widths, gap
        for name in _CLASSES:
            self.set_class(name in entry.marks, name)
        self.refresh()

    def render(self) -> Content:
        gap = " " * self._gap
        mark = next((sign for name, sign in _MARKS.items() if name in self.entry.marks), "  ")
        parts = [Content(mark).stylize(self.get_visual_style("row--mark"))]
        for column, cell, width in zip(COLUMNS, self.entry.cells, self._widths, strict=False):
            if width:
                text = _fitted(printable(cell), width, right=column in RIGHT) + gap
                part = Content(text)
                kind = {"name": "row--name", "": "row--state"}.get(column)
                parts.append(part.stylize(self.get_visual_style(kind)) if kind else part)
        return Content("").join(parts)

    def on_click(self, event: events.Click) -> None:
        event.stop()
        if "-head" not in self.entry.marks:
            self.post_message(self.Clicked(self, event.chain == 2))


def _fitted(text: str, width: int, *, right: bool) -> str:
    cells = cell_len(text)
    if cells > width:
        return set_cell_size(text, width - 1) + "…"
    return " " * (width - cells) + text if right else text + " " * (width - cells)


class BuildList(VerticalScroll, can_focus=True, inherit_bindings=False):
    """Rows under one cursor. What to do with the row under it is the owner's affair."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", id="builds.up", tooltip="The row above", show=False),
        Binding("down,j", "move(1)", "Down", id="builds.down", tooltip="The row below", show=False),
        Binding("pageup", "move(-10)", "Page up", id="builds.page-up", tooltip="Ten rows up", show=False),
        Binding("pagedown", "move(10)", "Page down", id="builds.page-down", tooltip="Ten rows down", show=False),
        Binding("home", "move(-1000)", "First", id="builds.first", tooltip="The first row", show=False),
        Binding("end", "move(1000)", "Last", id="builds.last", tooltip="The last row", show=False),
    ]

    cursor: reactive[int] = reactive(0, init=False)

    class Pointed(Message):
        """The cursor stands on this entry now."""

        def __init__(self, entry: Entry) -> None:
            super().__init__()
            self.entry = entry

    class Taken(Message):
        """This entry was clicked twice."""

        def __init__(self, entry: Entry) -> None:
            super().__init__()
            self.entry = entry

    def __init__(self) -> None:
        super().__init__()
        self._entries: list[Entry] = []
        self._rows: list[BuildRow] = []
        self._head = BuildRow(_HEAD)
        self.is_moved = False  # by the user; the owner says when that no longer counts

    def compose(self) -> ComposeResult:
        yield self._head

    @property
    def entry(self) -> Entry | None:
        """The one under the cursor."""
        return self._entries[self.cursor] if self.cursor < len(self._entries) else None

    def show(self, entries: Sequence[Entry], label: str | None = None) -> None:
        """Other rows; the cursor goes to `label`, else stays with the build that it is on."""
        wanted = label or (self.entry.label if self.entry else "")
        self._entries = list(entries)
        missing = [BuildRow(entry) for entry in self._entries[len(self._rows) :]]
        if missing:
            self._rows += missing
            self.mount(*missing)
        for index, row in enumerate(self._rows):
            row.display = index < len(self._entries)
        self._lay_out()
        labels = [entry.label for entry in self._entries]
        near = min(self.cursor, max(0, len(labels) - 1)) if self.is_moved else 0
        self.cursor = labels.index(wanted) if wanted in labels else near
        self._mark()

    def _lay_out(self) -> None:
        width = self.scrollable_content_region.width
        widths, gap = column_widths([_HEAD, *self._entries], width)
        self._head.show(_HEAD, widths, gap)
        for row, entry in zip(self._rows, self._entries, strict=False):
            row.show(entry, widths, gap)

    def on_resize(self) -> None:
        self._lay_out()

    def validate_cursor(self, cursor: int) -> int:
        return max(0, min(cursor, len(self._entries) - 1))

    def watch_cursor(self) -> None:
        self._mark()

    def _mark(self) -> None:
        for index, row in enumerate(self._rows):
            row.set_class(index == self.cursor, "-cursor")
        if self.entry:
            self.call_after_refresh(self._rows[self.cursor].scroll_visible, animate=False)
            self.post_message(self.Pointed(self.entry))

    def action_move(self, rows: int) -> None:
        self.is_moved = True
        self.cursor += rows

    @on(BuildRow.Clicked)
    def _clicked(self, event: BuildRow.Clicked) -> None:
        event.stop()
        self.focus()
        self.is_moved = True
        self.cursor = self._rows.index(event.row)
        if event.is_double:
            self.post_message(self.Taken(event.row.entry))


def column_widths(entries: Sequence[Entry], width: int) -> tuple[list[int], int]:
    """What each column needs, and the gap between two.

    0 for a column that is left out; the name gets what is left where even that is too much.
    """
    needed = {
        column: max(cell_len(printable(entry.cells[index])) for entry in entries)
        for index, column in enumerate(COLUMNS)
    }
    spare = [column for column in SPARE if needed[column]]

    def total(gap: int) -> int:
        return 2 + sum(cells + gap for cells in needed.values() if cells) - gap

    while spare and total(_GAP) > width:
        needed[spare.pop(0)] = 0
    last = [column for column in SPARE_LAST if needed[column]]
    while last and total(_GAP) - max(0, needed["name"] - _NAME) > width:
        needed[last.pop(0)] = 0
    if (over := total(_GAP) - width) > 0:
        needed["name"] = max(8, needed["name"] - over)
    gap = next((gap for gap in range(_WIDE_GAP, _GAP, -1) if total(gap) <= width), _GAP)
    return [needed[column] for column in COLUMNS], gap
