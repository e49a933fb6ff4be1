"""The Markdown of one message as lines of a terminal, made section by section, so that it can be shown as it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from ui.code import Frame, Listing, header
from ui.formulas import display, inline
from ui.inline import LONGEST, Piece, pieces
from ui.look import Look
from ui.outline import Container, Outline, Section, cells
from ui.tables import Cell, Table
from ui.wrapping import Line, Run, Strips, measured, safe, wrapped

__all__ = ["Body", "Code", "Look", "source_lines"]

_BULLETS = "•◦▪"
_BAR = "▎ "
_LEAST = 8  # cells that a section has, whatever is around it
_FORMULA_INDENT = 2


@dataclass(frozen=True)
class Code:
    """A listing that can be copied; `line` is where its header is in the lines that were made last."""

    language: str
    text: str
    line: int


class Body:
    """A message and its lines. Only what changed since the last time is made again."""

    def __init__(self, markdown: str = "") -> None:
        self._texts = [markdown]
        self._unread = [markdown]
        self._last = ""  # the line that is not ended yet
        self._outline = Outline()
        self._listings: dict[int, Listing] = {}
        self._painter: _Painter | None = None
        self._painted = Strips()
        self._is_stale = True  # there is text that the lines do not show
        self._settled = self._height = 0  # sections that never change again, and their lines
        self._headers: list[int] = []

    @property
    def markdown(self) -> str:
        """The whole text."""
        self._texts = ["".join(self._texts)]
        return self._texts[0]

    def append(self, text: str) -> None:
        """More of the message."""
        self._texts.append(text)
        self._unread.append(text)
        self._is_stale = True

    def lines(self, width: int, look: Look) -> Sequence[Strip]:
        """The message's lines. The sequence is the same for each call and shows what the last one made."""
        painter = self._painter
        if painter is None or (painter.width, painter.look) != (width, look):
            painter = self._painter = _Painter(width, look, self._listings)
            self._settled = self._height = 0
        elif not self._is_stale:
            return self._painted
        self._read()
        self._paint(self._painted.lines, painter)
        self._is_stale = False
        return self._painted

    def codes(self) -> Sequence[Code]:
        """The listings, in their order."""
        self._read()
        listings = [section for section in self._sections() if section.number >= 0]
        headers = self._headers + [0] * (len(listings) - len(self._headers))
        return [
            Code(_language(section), "\n".join(section.lines), line)
            for section, line in zip(listings, headers, strict=False)
        ]

    def _sections(self) -> list[Section]:
        return [*self._outline.sections[:-1], *self._open()]

    def _open(self) -> list[Section]:
        """The sections that more text may change."""
        last = self._last.rstrip("\r")
        return self._outline.ending(last) if last else self._outline.sections[-1:]

    def _read(self) -> None:
        text = self._last + "".join(self._unread)
        self._unread = []
        held = "\r" if text.endswith("\r") else ""  # half of a line's end, perhaps
        text = text.removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n")
        *lines, last = text.split("\n")
        for line in lines:
            self._outline.read(line)
        self._last = last + held

    def _paint(self, painted: list[Line | Strip], painter: _Painter) -> None:
        """Take away the lines of what was open; add those of what is new."""
        del painted[self._height :]
        finished = self._outline.sections[self._settled : -1]
        self._headers = [line for line in self._headers if line < self._height]
        for section in finished:
            self._add(painted, painter, section)
        self._settled += len(finished)
        self._height = len(painted)
        for section in self._open():
            self._add(painted, painter, section)

    def _add(self, painted: list[Line | Strip], painter: _Painter, section: Section) -> None:
        if section.number >= 0:
            self._headers.append(len(painted) + section.gap)
        painted += painter.lines(section)


def source_lines(text: str, width: int, look: Look) -> Sequence[Strip]:
    """A text as it was written, wrapped."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return Strips(_plain(lines, width, look.text))


def _plain(lines: Sequence[str], width: int, style: Style) -> list[Line]:
    return [line for text in lines for line in wrapped([(safe(text), style)], width)]


def _language(section: Section) -> str:
    """The first word behind a fence, without the brackets that some put around it."""
    return safe((section.info.split() or [""])[0].strip("{}."))


class _Painter:
    """Makes the lines of sections, for one width and one look."""

    def __init__(self, width: int, look: Look, listings: dict[int, Listing]) -> None:
        self.width = width
        self.look = look
        self.listings = listings  # by their numbers
        self.styles: dict[tuple[Style, tuple[str, ...]], Style] = {}
        self.painters: dict[str, Callable[[Section, int], list[Line]]] = {
            "paragraph": self._paragraph,
            "heading": self._heading,
            "rule": self._rule,
            "table": self._table,
            "html": self._source,
            "source": self._source,
            "rest": self._rest,
        }

    def lines(self, section: Section) -> list[Line]:
        """A section's lines, with what stands around them."""
        first, others, room = self._margins(section)
        gap = [self._gap(section)] if section.gap else []
        try:
            if section.kind in ("fence", "indented"):
                return gap + self._listing(section, first, Frame(self.look, room, others))
            lines = self.painters[section.kind](section, room)
        except Exception:  # noqa: BLE001  (an answer is shown, whatever a parser of others makes of it)
            lines = self._source(section, room)
        return gap + [[*others, *line] if number else [*first, *line] for number, line in enumerate(lines)]

    # ---- around a section ----

    def _margins(self, section: Section) -> tuple[Line, Line, int]:
        """What its first line begins with, what the others do, and the room behind."""
        first: Line = []
        others: Line = []
        room = max(self.width, _LEAST)
        bullets = sum(not each.is_ordered and each.mark != ">" for each in section.containers)
        # The innermost say most: on a narrow terminal the outer ones are left out.
        for depth, container in reversed(list(enumerate(section.containers))):
            begins = depth >= section.shared
            mark, following = self._mark(container, bullets)
            bullets -= not container.is_ordered and container.mark != ">"
            size = measured([mark])
            if room - size < max(_LEAST, self.width // 3):
                break
            room -= size
            first.insert(0, mark if begins else following)
            others.insert(0, following)
        return first, others, room

    def _mark(self, container: Container, level: int) -> tuple[Segment, Segment]:
        """What stands before a container's first line, and before the others."""
        style = self.look.text + self.look.dim
        if container.mark == ">":
            bar = Segment(_BAR, self.look.text + self.look.quote)
            return bar, bar
        text = f"{container.number}{container.mark} " if container.is_ordered else f"{_bullet(level)} "
        if container.task:
            box = "☑ " if container.task == "x" else "☐ "
            text = text + box if container.is_ordered else box
        return Segment(text, style), Segment(" " * measured([Segment(text)]))

    def _gap(self, section: Section) -> Line:
        """The blank line before a section, in the quotations that go on."""
        around = section.containers[: section.shared]
        _, others, _ = self._margins(Section("paragraph", around, section.shared, False, []))
        while others and not others[-1].text.strip():
            others.pop()
        return others

    # ---- text ----

    def _style(self, base: Style, roles: tuple[str, ...]) -> Style:
        if not roles:
            return base
        style = self.styles.get((base, roles))
        if style is None:
            style = self.styles[base, roles] = self.look.style(base, roles)
        return style

    def _runs(self, parts: Sequence[Piece], base: Style) -> list[Run]:
        return [(safe(text), self._style(base, roles)) for text, roles in parts]

    def _paragraph(self, section: Section, room: int) -> list[Line]:
        text = "\n".join(section.lines)
        if len(text) > LONGEST:
            return self._source(section, room)
        lines: list[Line] = []
        runs: list[Run] = []
        for piece in pieces(text):
            if piece.roles != ("display",):
                runs += self._runs([piece], self.look.text)
                continue
            lines += _trimmed(runs, room)
            runs = []
            lines += self._formula(piece.text, room)
        return lines + _trimmed(runs, room) or [[]]

    def _formula(self, latex: str, room: int) -> list[Line]:
        indent = _FORMULA_INDENT if room > 2 * _LEAST else 0
        style = self.look.text + self.look.formula
        lines = display(latex, room - indent)
        return [[Segment(" " * indent), *line] for line in _plain(lines, room - indent, style)]

    def _line_of(self, markdown: str, base: Style) -> list[Run]:
        """Text in a place without room for a block: a formula is on one line."""
        parts = [
            Piece(inline(text), ("formula",)) if roles == ("display",) else Piece(text, roles)
            for text, roles in pieces(markdown)
        ]
        return self._runs(parts, base)

    def _heading(self, section: Section, room: int) -> list[Line]:
        base = self.look.text + self.look.heading
        if section.level > 3:
            base = self.look.text + Style(bold=True, italic=True)
        lines = wrapped(self._line_of("\n".join(section.lines), base), room)
        if section.level == 1:
            lines.append([Segment("━" * max(map(measured, lines)), self.look.text + self.look.rule)])
        return lines

    def _rule(self, _: Section, room: int) -> list[Line]:
        return [[Segment("─" * room, self.look.text + self.look.rule)]]

    def _source(self, section: Section, room: int) -> list[Line]:
        return _plain(section.lines, room, self.look.text)

    def _rest(self, section: Section, room: int) -> list[Line]:
        text = f"… {section.level:,} more characters, which are too many to show"
        return wrapped([(text, self.look.text + self.look.dim)], room)

    # ---- listings and tables ----

    def _listing(self, section: Section, first: Line, frame: Frame) -> list[Line]:
        if section.kind == "indented":
            top, *lines = Listing().lines(section.lines, "", closed=True, frame=frame)
            return [[*first, *top[len(first) :]], *lines]
        listing = self.listings.setdefault(section.number, Listing())
        language = _language(section)
        lines = listing.lines(section.lines, language, closed=section.closed, frame=frame)
        return [[*first, *header(language, section.number, frame.width, self.look)], *lines]

    def _table(self, section: Section, room: int) -> list[Line]:
        head, delimiters, *rows = section.lines
        alignments = [_alignment(each) for each in cells(delimiters)]
        table = [self._row(head, len(alignments), self.look.text + Style(bold=True))]
        table += [self._row(row, len(alignments), self.look.text) for row in rows]
        return Table(table, alignments).lines(room, self.look.text + self.look.rule)

    def _row(self, row: str, columns: int, base: Style) -> list[Cell]:
        texts = cells(row)
        texts[columns - 1 :] = [" | ".join(texts[columns - 1 :])]  # more than there are columns for
        texts += [""] * (columns - len(texts))
        return [self._line_of(text, base) for text in texts]


def _trimmed(runs: list[Run], room: int) -> list[Line]:
    """Wrapped, without the space that stood around a formula with lines of its own."""
    while runs and not runs[0][0].strip():
        runs = runs[1:]
    while runs and not runs[-1][0].strip():
        runs = runs[:-1]
    if not runs:
        return []
    runs = [(runs[0][0].lstrip(), runs[0][1]), *runs[1:]]
    return wrapped([*runs[:-1], (runs[-1][0].rstrip(), runs[-1][1])], room)


def _bullet(level: int) -> str:
    return _BULLETS[min(level, len(_BULLETS)) - 1]


def _alignment(delimiter: str) -> str:
    ends = delimiter.startswith(":"), delimiter.endswith(":")
    return {(True, True): "center", (False, True): "right"}.get(ends, "left")
