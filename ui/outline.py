"""Markdown in sections, found line by line: what a line begins depends on the lines before it alone.

So a section that another one follows never changes, which is what lets an answer be shown while it is written. A
section is a leaf (a paragraph, a listing, a table) with the quotations and list items around it; it holds no other.
Where CommonMark looks ahead (loose lists, link definitions) this does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ui.formulas import LONGEST, Part, split

Kind = Literal["paragraph", "heading", "rule", "fence", "indented", "table", "html", "source", "rest"]

DEEPEST = 30  # quotations and items around a section
WHOLE, SHOWN = 100_000, 400_000  # characters of a message that are read as Markdown, and that are shown at all
PARAGRAPH, ROWS = 2_000, 50  # what is longer goes on as another section, so that little is made again for each word
_PAGE = 100  # lines of a section that is shown as its source
_COLUMNS = 40
_TITLE = 100  # a longer line with dashes under it is a paragraph before a rule

_FENCE = re.compile(r"( {0,3})(`{3,}(?=[^`]*$)|~{3,})(.*)")
_HEADING = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)(.*)")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
_BLOCKS = (
    "address|article|aside|blockquote|body|center|dd|details|dialog|div|dl|dt|fieldset|figure|footer|form|h[1-6]|head|"
    "header|hr|html|iframe|li|link|main|menu|nav|ol|p|pre|script|section|style|summary|table|tbody|td|textarea|tfoot|"
    "th|thead|title|tr|ul"
)
_HTML = re.compile(rf" {{0,3}}<(?:!--|\?|![A-Za-z]|/?(?:{_BLOCKS})(?:[\s/>]|$))", re.IGNORECASE)
_QUOTE = re.compile(r" {0,3}>[ \t]?")
_ITEM = re.compile(r"( {0,3})([-+*]|\d{1,9}[.)])([ \t]+|$)")
_TASK = re.compile(r"\[([ xX])\][ \t]+(?=\S)")
_FORMULA = re.compile(r"(`+)[^`]*\1|\$\$|\\\[|\\\]|\\begin\{\w+\*?\}|\\end\{\w+\*?\}|\\.")


@dataclass(frozen=True)
class Container:
    """A quotation (`mark` is >) or an item of a list (`mark` is its bullet, or the sign behind its number)."""

    mark: str
    indent: int = 0  # columns that its contents are further in
    number: int = 0
    task: str = ""  # "x": done, " ": not yet

    @property
    def is_ordered(self) -> bool:
        return self.mark in (".", ")")


@dataclass
class Section:
    """`shared`: how many of the containers began before; `gap`: a blank line stands before it."""

    kind: Kind
    containers: tuple[Container, ...]
    shared: int
    gap: bool
    lines: list[str]
    level: int = 0  # of a heading; of the rest, its characters
    fence: str = ""  # what began a listing
    info: str = ""  # what stands behind that
    number: int = -1  # which listing of the message it is
    closed: bool = False


def cells(row: str) -> list[str]:
    """The cells of a table's row; a bar in a formula does not end one."""
    row = row.strip()
    found = [""]
    for part in split(row) if "$" in row or "\\" in row else [Part("text", row)]:
        if part.kind != "text":
            found[-1] += part.source
            continue
        first, *others = re.split(r"(?<!\\)\|", part.source)
        found[-1] += first.replace("\\|", "|")
        found += [other.replace("\\|", "|") for other in others]
    found = found[row.startswith("|") :]
    return [cell.strip() for cell in (found[:-1] if len(found) > 1 and not found[-1].strip() else found)]


def _dedented(line: str, columns: int) -> str | None:
    """The line without its first columns; None where they are not blank."""
    if line.startswith(" " * columns):
        return line[columns:]
    lead = line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4)
    return lead[columns:] + line.lstrip(" \t") if len(lead) >= columns else None


def _indent(line: str) -> int:
    return len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4))


def _awaited(line: str, closing: str) -> str:
    """What closes the display formula that is open at the end of a line; empty: none is."""
    for match in _FORMULA.finditer(line):
        token = match[0]
        if closing:
            closing = "" if token == closing else closing
        elif token == "$$":
            closing = "$$"
        elif token == "\\[":
            closing = "\\]"
        elif token.startswith("\\begin"):
            closing = token.replace("begin", "end")
    return closing


def _is_delimiter(line: str, header: str) -> bool:
    if "|" not in line or set(line) - set("|-: \t") or "-" not in line:
        return False
    columns = cells(line)
    return len(columns) == len(cells(header)) <= _COLUMNS and all(re.fullmatch(":?-+:?", column) for column in columns)


class Outline:
    """The sections of the lines read so far; the last one is open."""

    def __init__(self) -> None:
        self.sections: list[Section] = []
        self.stack: tuple[Container, ...] = ()
        self.blanks = 0  # blank lines before the present one
        self.fence: tuple[int, str] | None = None  # indentation and sign of the listing that is open
        self.formula = ""  # what ends the display formula that is open
        self.total = self.size = self.listings = 0
        self.is_trial = False

    def ending(self, line: str) -> list[Section]:
        """The open section and those behind it, if the text ended with this unfinished line."""
        trial = copy(self)
        trial.is_trial = True
        trial.sections = [replace(section, lines=section.lines[:]) for section in self.sections[-1:]]
        trial.read(line)
        return trial.sections

    def read(self, line: str) -> None:
        """The next line."""
        self.total += len(line) + 1
        rest, depth = self._enter(line)
        if self.fence and self._in_listing(rest, depth):
            return
        if not rest.strip(" \t"):
            self._rest(depth)
            return
        if self.total > WHOLE:
            self._source(line)
        else:
            self._block(rest, depth)
        self.blanks = 0

    # ---- what is around a line ----

    def _enter(self, line: str) -> tuple[str, int]:
        """The line without the marks of the containers that it is still in, and how many those are."""
        for depth, container in enumerate(self.stack):
            if container.mark == ">":
                quote = _QUOTE.match(line)
                inner = line[quote.end() :] if quote else None
            elif line.strip(" \t"):
                inner = _dedented(line, container.indent)
                # Models indent by two or three columns, however wide the number is.
                if inner is None and container.is_ordered and _indent(line) >= 2 and re.match(r"\s+[-*+] ", line):
                    inner = line.lstrip(" \t")
            else:
                inner = line
            if inner is None:
                return line, depth
            line = inner
        return line, len(self.stack)

    def _rest(self, depth: int) -> None:
        """A blank line: it ends paragraphs, and the quotations that it is not marked as part of."""
        self.blanks += 1
        self.formula = ""
        self.stack = self.stack[:depth]

    def _opened(self, rest: str, depth: int, *, interrupts: bool) -> tuple[list[Container], str]:
        """The containers that a line begins, and what stands behind their marks."""
        opened: list[Container] = []
        while depth + len(opened) < DEEPEST and _indent(rest) < 4:
            if quote := _QUOTE.match(rest):
                opened.append(Container(">"))
                rest = rest[quote.end() :]
                continue
            item = _ITEM.match(rest)
            if not item or _RULE.match(rest):
                break
            behind = rest[item.end() :]
            if interrupts and not opened and (not behind.strip() or item[2][:-1] not in ("", "1")):
                break
            opened.append(self._item(item, behind, depth if not opened else len(self.stack)))
            rest = behind if len(item[3].expandtabs(4)) <= 4 else item[3][1:] + behind
            if task := _TASK.match(rest):
                opened[-1] = replace(opened[-1], task=task[1].lower())
                rest = rest[task.end() :]
        return opened, rest

    def _item(self, item: re.Match[str], behind: str, depth: int) -> Container:
        padding = len(item[3].expandtabs(4))
        padding = padding if behind.strip() and padding <= 4 else 1
        mark = item[2][-1]
        number = int(item[2][:-1] or 0)
        if number and self._has_sibling(depth, mark):
            number = self.stack[depth].number + 1
        return Container(mark, len(item[1]) + len(item[2]) + padding, number)

    def _has_sibling(self, depth: int, mark: str) -> bool:
        return depth < len(self.stack) and self.stack[depth].mark == mark

    # ---- what a line is ----

    @property
    def _is_in_paragraph(self) -> bool:
        return not self.blanks and bool(self.sections) and self.sections[-1].kind == "paragraph"

    def _block(self, rest: str, depth: int) -> None:
        within = self._is_in_paragraph
        if within and self.formula:
            self._continue(rest)
            return
        opened, rest = self._opened(rest, depth, interrupts=within and depth == len(self.stack))
        is_same = not opened and depth == len(self.stack)
        if within and not opened and not is_same and not self._begun(rest):
            self._continue(rest)  # a lazy line: the marks around its paragraph are left out
            return
        gap = bool(self.sections) and (
            self.blanks > 0 or (depth == 0 and not (opened and self._has_sibling(0, opened[0].mark)))
        )
        self.stack = (*self.stack[:depth], *opened)
        if not (is_same and self._goes_on(rest)):
            kind, rest = self._begun(rest) or ("paragraph", rest)
            self._begin(kind, depth, gap, rest)

    def _begun(self, rest: str) -> tuple[Kind, str] | None:
        """The kind of section that a line begins, if that is more than a paragraph."""
        if _indent(rest) >= 4:
            return None if self._is_in_paragraph else ("indented", _dedented(rest, 4) or "")
        for kind, pattern in _BEGINNINGS:
            if pattern.match(rest):
                return kind, rest
        return None

    def _begin(self, kind: Kind, depth: int, gap: bool, rest: str) -> None:
        section = Section(kind, self.stack, depth, gap, [rest])
        self.sections.append(section)
        self.formula, self.size = "", len(rest)
        if kind == "paragraph":
            self.formula = _awaited(rest, "")
        elif kind == "heading" and (heading := _HEADING.match(rest)):
            section.level = len(heading[1])
            section.lines = [_title(heading[2])]
        elif kind == "fence" and (fence := _FENCE.match(rest)):
            section.lines, section.fence, section.info = [], rest.strip(), fence[3].strip()
            section.number = self.listings
            self.fence = len(fence[1]), fence[2]
            self.listings += 1

    def _goes_on(self, rest: str) -> bool:
        """Whether a line in the same containers belongs to the open section, which takes it then."""
        section = self.sections[-1] if self.sections else None
        if section and section.kind == "indented" and _indent(rest) >= 4:
            section.lines += [""] * self.blanks + [_dedented(rest, 4) or ""]
            return True
        goes_on = self._following.get(section.kind) if section and not self.blanks else None
        return goes_on(self, section, rest) if section and goes_on else False

    def _text(self, section: Section, rest: str) -> bool:
        if self._underlines(section, rest) or self._heads(section, rest):
            return True
        if self._begun(rest):
            return False
        self._continue(rest)
        return True

    def _markup(self, section: Section, rest: str) -> bool:
        section.lines.append(rest)
        return True

    def _continue(self, rest: str) -> None:
        """One more line of a paragraph; a long one goes on as another section."""
        self.size += len(rest)
        if self.size > (LONGEST if self.formula else PARAGRAPH):
            self._begin("paragraph", len(self.stack), False, rest)
            return
        self.sections[-1].lines.append(rest)
        self.formula = _awaited(rest, self.formula)

    def _underlines(self, section: Section, rest: str) -> bool:
        signs = rest.strip()
        if not signs or set(signs) not in ({"="}, {"-"}) or _indent(rest) >= 4:
            return False
        if self.is_trial and len(signs) < 3:  # it may be the beginning of an item
            self._continue("\\" + signs)
            return True
        if signs[0] == "-" and (len(section.lines) > 1 or len(section.lines[0]) > _TITLE):
            return False
        section.kind, section.level = "heading", 1 if signs[0] == "=" else 2
        return True

    def _heads(self, section: Section, rest: str) -> bool:
        """Whether a line is the one under the head of a table, which was read as the end of a paragraph."""
        if _indent(rest) >= 4 or not _is_delimiter(rest, section.lines[-1]):
            return False
        if len(section.lines) == 1:
            section.kind = "table"
            section.lines.append(rest)
        else:
            self._begin("table", len(self.stack), not self.stack, section.lines.pop())
            self.sections[-1].lines.append(rest)
        return True

    def _row(self, section: Section, rest: str) -> bool:
        if self._begun(rest):
            return False
        if len(section.lines) > ROWS + 1:
            self._begin("table", len(self.stack), False, section.lines[0])
            self.sections[-1].lines.append(section.lines[1])
        self.sections[-1].lines.append(rest)
        return True

    _following: ClassVar[dict[Kind, Callable[[Outline, Section, str], bool]]] = {
        "paragraph": _text,
        "table": _row,
        "html": _markup,
    }

    def _in_listing(self, rest: str, depth: int) -> bool:
        """Whether a line belongs to the listing that is open; one outside of its containers ends it."""
        indent, fence = self.fence or (0, "")
        section = self.sections[-1]
        signs = rest.strip()
        if depth < len(self.stack):
            self.fence, section.closed = None, True
            return False
        if len(signs) >= len(fence) and not signs.strip(fence[0]) and _indent(rest) < 4:
            self.fence, section.closed = None, True
            return True
        lead = len(rest) - len(rest.lstrip(" "))
        section.lines.append(rest[min(indent, lead) :])
        return True

    def _source(self, line: str) -> None:
        """A line of a message that is too long."""
        self.stack = ()
        kind: Kind = "source" if self.total <= SHOWN else "rest"
        section = self.sections[-1] if self.sections else None
        if not section or section.kind != kind or len(section.lines) >= _PAGE:
            section = Section(kind, (), 0, bool(self.sections) and self.blanks > 0, [])
            self.sections.append(section)
        elif kind == "source":
            section.lines += [""] * min(self.blanks, _PAGE)
        if kind == "source":
            section.lines.append(line)
        section.level += len(line)


_BEGINNINGS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("fence", _FENCE),
    ("heading", _HEADING),
    ("rule", _RULE),
    ("html", _HTML),
)


def _title(text: str) -> str:
    """A heading without the signs that may close it."""
    text = text.strip()
    bare = text.rstrip("#")
    return text if bare and bare[-1] not in " \t" else bare.rstrip()
