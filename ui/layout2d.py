"""Boxes of text: what stands beside, above and below what, and the tall signs around it. Knows no LaTeX."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len

# A sign for one line, then its parts for several: top, in between, bottom (and the middle of a brace).
_TALL = {
    "(": "⎛⎜⎝",
    ")": "⎞⎟⎠",
    "[": "⎡⎢⎣",
    "]": "⎤⎥⎦",
    "{": "⎧⎪⎩⎨",
    "}": "⎫⎪⎭⎬",
    "|": "│││",
    "‖": "║║║",
    "⌊": "⎢⎢⎣",
    "⌋": "⎥⎥⎦",
    "⌈": "⎡⎢⎢",
    "⌉": "⎤⎥⎥",
}
_BRACE_OF_TWO = {"{": "⎰⎱", "}": "⎱⎰"}
MOST_CELLS = 200_000  # no formula of 4,000 characters that anyone reads comes near it


class TooLarge(Exception):  # a signal to fall back, not a fault
    """A box would become larger than any screen."""


@dataclass(frozen=True)
class Box:
    """Lines of one width (in terminal cells); `base` is the line that text beside it continues."""

    lines: tuple[str, ...]
    base: int = 0

    @cached_property
    def width(self) -> int:
        return max(map(cell_len, self.lines))

    @property
    def height(self) -> int:
        return len(self.lines)

    @property
    def text(self) -> str:
        """The text of a box of one line."""
        return self.lines[0]


def text_box(text: str) -> Box:
    return Box((text,))


def fill(text: str, width: int, align: str) -> str:
    """Text brought to a width: l, r or c."""
    missing = max(0, width - cell_len(text))
    left = {"l": 0, "r": missing, "c": missing // 2}[align]
    return " " * left + text + " " * (missing - left)


def widen(box: Box, width: int, align: str) -> Box:
    """The same lines, all of a width."""
    if width * box.height > MOST_CELLS:
        raise TooLarge
    # Aligned as a block: lines of one box keep their places relative to one another.
    own = box.width
    return Box(tuple(fill(fill(line, own, "l"), width, align) for line in box.lines), box.base)


def beside(boxes: list[Box]) -> Box:
    """Boxes from left to right, their base lines on one line."""
    if not boxes:
        return text_box("")
    above = max(box.base for box in boxes)
    below = max(box.height - box.base for box in boxes)
    if (above + below) * sum(box.width for box in boxes) > MOST_CELLS:
        raise TooLarge
    rows: list[list[str]] = [[] for _ in range(above + below)]
    for box in boxes:
        first = above - box.base
        blank = " " * box.width
        for number, row in enumerate(rows):
            inside = 0 <= number - first < box.height
            row.append(fill(box.lines[number - first], box.width, "l") if inside else blank)
    return Box(tuple("".join(row) for row in rows), above)


def above(boxes: list[Box], base: int, align: str = "c") -> Box:
    """Boxes from top to bottom; the base line is that of box number `base`."""
    width = max(box.width for box in boxes)
    lines = [line for box in boxes for line in widen(box, width, align).lines]
    return Box(tuple(lines), sum(box.height for box in boxes[:base]) + boxes[base].base)


def fraction(numerator: Box, denominator: Box) -> Box:
    """One over the other; the bar of an outer fraction is longer than those within."""
    longer = 2 if numerator.height > 1 or denominator.height > 1 else 0
    bar = "─" * (max(numerator.width, denominator.width) + longer)
    return above([numerator, text_box(bar), denominator], 1)


def root(radicand: Box, index: str) -> Box:
    """A root drawn around what is higher than one line."""
    lines = [" ┌" + "─" * (radicand.width + 1), *(f" │ {fill(line, radicand.width, 'l')}" for line in radicand.lines)]
    lines[-1] = "╲" + lines[-1][1:]
    sign = Box(tuple(lines), radicand.base + 1)
    return Box(
        tuple(fill(index if n == len(lines) - 2 else "", cell_len(index), "r") + s for n, s in enumerate(lines)),
        sign.base,
    )


def frame(box: Box) -> Box:
    """A box drawn around a result."""
    bar = "─" * (box.width + 2)
    middle = (f"│ {fill(line, box.width, 'l')} │" for line in box.lines)
    return Box((f"┌{bar}┐", *middle, f"└{bar}┘"), box.base + 1)


def fence(sign: str, height: int, base: int) -> Box:
    """A bracket as high as what it encloses; one that cannot grow stands on the base line."""
    if height == 1 or sign not in _TALL:
        lines = [" " * cell_len(sign)] * height
        lines[base] = sign
        return Box(tuple(lines), base)
    if height == 2 and sign in _BRACE_OF_TWO:
        return Box(tuple(_BRACE_OF_TWO[sign]), base)
    top, between, bottom, *middle = list(_TALL[sign])
    lines = [top, *[between] * (height - 2), bottom]
    if middle:
        lines[min(max(base, 1), height - 2)] = middle[0]
    return Box(tuple(lines), base)


def enclosed(opening: str, box: Box, closing: str) -> Box:
    """A box between two brackets, either of which may be nothing."""
    parts = [fence(sign, box.height, box.base) if sign else None for sign in (opening, closing)]
    return beside([part for part in (parts[0], box, parts[1]) if part])


def cornered(box: Box, upper: str, lower: str) -> Box:
    """A tall box with a superscript and a subscript at its right corners."""
    width = max(cell_len(upper), cell_len(lower))
    lines = [fill("", width, "l")] * box.height
    lines[0], lines[-1] = fill(upper, width, "l"), fill(lower, width, "l")
    return beside([box, Box(tuple(lines), box.base)])


def grid(rows: list[list[Box]], aligns: str, gaps: list[str], *, odd: bool) -> Box:
    """A table: `aligns` one letter a column, `gaps` what stands before each; `odd`: even numbers of rows are spread."""
    columns = max(map(len, rows))
    widths = [max(row[n].width for row in rows if n < len(row)) for n in range(columns)]
    lines: list[str] = []
    apart = odd and len(rows) % 2 == 0
    middle: list[int] = []  # the base line of each row
    if sum(widths) * sum(max(cell.height for cell in row) for row in rows) > MOST_CELLS:
        raise TooLarge
    previous = 1
    for row in rows:
        cells = [row[n] if n < len(row) else text_box("") for n in range(columns)]
        line = beside([
            part
            for n, cell in enumerate(cells)
            for part in (text_box(gaps[n]), widen(cell, widths[n], aligns[n]))
        ])  # fmt: skip
        # Tall entries need a line between rows, or a denominator would stand on the next numerator.
        if lines and (apart or max(previous, line.height) > 1):
            lines.append("")
        middle.append(len(lines) + line.base)
        lines += line.lines
        previous = line.height
    width = max(map(cell_len, lines))
    base = middle[len(rows) // 2] if len(rows) % 2 else (len(lines) - 1) // 2
    for n, gap in enumerate(gaps):
        if "│" in gap and gap.strip():  # a rule runs through the lines between rows too
            column = sum(widths[:n]) + sum(map(cell_len, gaps[:n])) + gap.index("│")
            lines = [line if line else " " * column + "│" for line in lines]
    return Box(tuple(fill(line, width, "l") for line in lines), base)
