"""Tables as lines: columns as wide as the terminal allows, cells wrapped; lists of cells where it is too narrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from ui.wrapping import Line, Run, measured, wrapped

Cell = Sequence[Run]
_LEAST = 4  # cells that a column has, or the rows are shown as lists
_WORD = 20  # a longer word may be broken


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first row is the head."""

    rows: Sequence[Sequence[Cell]]
    alignments: Sequence[str]  # left, right or center

    def lines(self, width: int, rule: Style) -> list[Line]:
        """The table on a terminal so wide."""
        widths = self._widths(width - 3 * len(self.alignments) - 1)
        if widths is None:
            return self._as_list(width, rule)
        rows = [self._row(row, widths, rule) for row in self.rows]
        # Where a cell takes several lines, only rules tell where the next row begins.
        is_ruled = any(len(row) > 1 for row in rows[1:])
        lines = [_ruler("┌┬┐", widths, rule), *rows[0]]
        for number, row in enumerate(rows[1:]):
            if number == 0 or is_ruled:
                lines.append(_ruler("├┼┤", widths, rule))
            lines += row
        return [*lines, _ruler("└┴┘", widths, rule)]

    def _widths(self, room: int) -> list[int] | None:
        """The columns' widths, or None: whole lines where they fit, whole words where those do."""
        columns = [[row[column] for row in self.rows] for column in range(len(self.alignments))]
        wanted = [max(1, *map(_extent, column)) for column in columns]
        if sum(wanted) <= room:
            return wanted
        words = [max(1, *map(_longest_word, column)) for column in columns]
        if sum(words) <= room:
            more = _shared([max(0, want - word) for want, word in zip(wanted, words, strict=True)], room - sum(words))
            return [word + width for word, width in zip(words, more, strict=True)]
        widths = _shared(wanted, room)
        return widths if all(width >= min(_LEAST, want) for width, want in zip(widths, wanted, strict=True)) else None

    def _row(self, row: Sequence[Cell], widths: Sequence[int], rule: Style) -> list[Line]:
        columns = [wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        lines: list[Line] = []
        for number in range(max(map(len, columns))):
            line = [Segment("│", rule)]
            for column, width, alignment in zip(columns, widths, self.alignments, strict=True):
                cell = column[number] if number < len(column) else []
                space = width - measured(cell)
                before = {"right": space, "center": space // 2}.get(alignment, 0)
                line += [Segment(" " * (before + 1)), *cell, Segment(" " * (space - before + 1)), Segment("│", rule)]
            lines.append(line)
        return lines

    def _as_list(self, width: int, rule: Style) -> list[Line]:
        """Each row as the lines `head: cell`."""
        head = self.rows[0]
        lines: list[Line] = []
        for row in self.rows[1:]:
            for title, cell in zip(head, row, strict=True):
                lines += wrapped([*title, (": ", rule), *cell], width)
            lines.append([Segment("─" * width, rule)])
        return lines or [line for cell in head for line in wrapped(cell, width)]


def _extent(cell: Cell) -> int:
    """The width of a cell on as many lines as it says."""
    return max(map(measured, wrapped(cell, 2 * sum(len(text) for text, _ in cell) + 2)), default=0)


def _longest_word(cell: Cell) -> int:
    return min(_WORD, max(map(cell_len, "".join(text for text, _ in cell).split()), default=0))


def _shared(wanted: Sequence[int], room: int) -> list[int]:
    """What each wants, if it is less than its share of what there is."""
    shares = [0] * len(wanted)
    for left, number in zip(range(len(wanted), 0, -1), sorted(range(len(wanted)), key=wanted.__getitem__), strict=True):
        shares[number] = min(wanted[number], room // left)
        room -= shares[number]
    return shares


def _ruler(signs: str, widths: Sequence[int], rule: Style) -> Line:
    return [Segment(signs[0] + signs[1].join("─" * (width + 2) for width in widths) + signs[2], rule)]
