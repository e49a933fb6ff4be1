"""Formulas in the Markdown of an answer: found, and turned into Unicode text that a terminal shows."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from phi4local.printing import printable_lines
from ui.notation import ENVIRONMENTS

if TYPE_CHECKING:
    from ui.layout2d import Box

Kind = Literal["text", "inline", "display"]
LONGEST, DEEPEST = 4_000, 50  # a formula beyond either is shown as its source
_LEAST_WIDTH = 10
_LONGEST_MARGIN = 200


@dataclass(frozen=True)
class Part:
    """A piece of a Markdown text. `margin` is what a line in its place begins with, inside lists and quotations."""

    kind: Kind
    source: str
    opening: str = ""
    closing: str = ""
    margin: str = ""

    @property
    def latex(self) -> str:
        """The formula without its delimiters, and without the quotation marks of the lines it is on."""
        inner = self.source if self.opening.startswith("\\b") else self.source[len(self.opening) : -len(self.closing)]
        return re.sub(r"(\r\n|\r|\n)[ \t]*(?:>[ \t]?)+", r"\1", inner) if ">" in self.margin else inner


# ---- finding formulas ----

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_FENCE = re.compile(r"(`{3,})[^`]*$|(~{3,})")
_CONTAINER = re.compile(r"[ \t]*(?:(?:>|(?:[-*+]|\d{1,9}[.)])(?=[ \t]))[ \t]*)*")
_NAMES = "|".join(sorted(map(re.escape, ENVIRONMENTS), key=len, reverse=True))
_TOKEN = re.compile(rf"`+|\\begin\{{({_NAMES})\}}|\\end\{{({_NAMES})\}}|\\boxed[ ]?(?=\{{)|\\.|[${{}}]", re.DOTALL)


def split(markdown: str) -> list[Part]:
    """Texts and formulas in their order; their sources together are the Markdown."""
    parts: list[Part] = []
    texts: list[str] = []  # text that no formula has ended yet
    for paragraph, is_code in _paragraphs(markdown):
        for part in [Part("text", paragraph)] if is_code else _Paragraph(paragraph).parts():
            if part.kind == "text":
                texts.append(part.source)
                continue
            if texts:
                parts.append(Part("text", "".join(texts)))
            texts = []
            parts.append(part)
    if texts:
        parts.append(Part("text", "".join(texts)))
    return parts


def _paragraphs(markdown: str) -> Iterator[tuple[str, bool]]:
    """Runs of lines without a blank one between them, and whether they are code (or blank)."""
    run: list[str] = []
    lines = _Lines()
    for line in _LINE.findall(markdown):
        if not lines.is_code(line):
            run.append(line)
            continue
        if run:
            yield "".join(run), False
        run = []
        yield line, True
    if run:
        yield "".join(run), False


class _Lines:
    """Tells lines of code, fenced and indented, from others; a blank line counts as code, it holds no formula."""

    def __init__(self) -> None:
        self.fence = ""
        self.margins = [0]  # where the contents of the lists around a line begin
        self.blank = True  # code may begin: the line before was blank, or code itself

    def is_code(self, line: str) -> bool:
        self.blank = self._is_code(line)
        return self.blank

    def _is_code(self, line: str) -> bool:
        container = _CONTAINER.match(line)
        start = container.end() if container else 0
        rest = line[start:].rstrip()
        if self.fence:
            if rest.startswith(self.fence) and not rest.strip(self.fence[0]):
                self.fence = ""
            return True
        if opened := _FENCE.match(rest):
            self.fence = opened[1] or opened[2]
            return True
        return not rest or self._is_indented(line, start, quoted=">" in line[:start])

    def _is_indented(self, line: str, start: int, *, quoted: bool) -> bool:
        """Four spaces further in than the list around it, after a blank line."""
        indent = len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4))
        while self.blank and indent < self.margins[-1]:
            self.margins.pop()
        if self.blank and indent >= self.margins[-1] + 4:
            return True
        if start > indent and not quoted:  # an item of a list: what it says begins at `start`
            while indent < self.margins[-1]:
                self.margins.pop()
            self.margins.append(start)
        return False


class _Paragraph:
    """The formulas of one paragraph, in one pass: each delimiter's partner is known before the pass."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_TOKEN.finditer(text))
        self.code = self._code_spans()
        self.dollars: list[int] = []
        self.closers: dict[str, list[int]] = {}
        self.braces: dict[int, int] = {}
        self._index()

    def _code_spans(self) -> list[tuple[int, int]]:
        """Where code is: a run of backticks ends at the next run that is as long."""
        if "`" not in self.text:
            return []
        runs: dict[int, list[int]] = {}
        for run in re.finditer("`+", self.text):
            runs.setdefault(len(run[0]), []).append(run.start())
        spans: list[tuple[int, int]] = []
        end = 0
        for token in self.tokens:
            if token[0][0] != "`" or token.start() < end:
                continue
            same = runs.get(len(token[0]), [])
            at = bisect_right(same, token.start())
            if at < len(same):
                end = same[at] + len(token[0])
                spans.append((token.start(), end))
        return spans

    def _in_code(self, at: int) -> int:
        """The end of the code around a place; 0: there is none."""
        number = bisect_right(self.code, (at, len(self.text) + 1)) - 1
        return self.code[number][1] if number >= 0 and at < self.code[number][1] else 0

    def _index(self) -> None:
        open_braces: list[int] = []
        for token in self.tokens:
            at, text = token.start(), token[0]
            if self.code and self._in_code(at):
                continue
            if text == "$":
                self.dollars.append(at)
            elif text == "{":
                open_braces.append(at)
            elif text == "}" and open_braces:
                self.braces[open_braces.pop()] = at
            elif text in ("\\)", "\\]") or token[2]:
                self.closers.setdefault(text, []).append(at)
        pairs = zip(self.dollars, self.dollars[1:], strict=False)
        self.closers["$$"] = [at for at, following in pairs if following == at + 1]

    def parts(self) -> Iterator[Part]:
        """The paragraph in pieces."""
        done = 0
        for token in self.tokens:
            at = token.start()
            if at < done or token[0] in ("{", "}") or token[0][0] == "`" or (self.code and self._in_code(at)):
                continue
            part = self._formula(token)
            if part is None:
                continue
            if at > done:
                yield Part("text", self.text[done:at])
            yield part
            done = at + len(part.source)
        if done < len(self.text):
            yield Part("text", self.text[done:])

    def _formula(self, token: re.Match[str]) -> Part | None:
        """The formula that a token begins."""
        at, text = token.start(), token[0]
        if text == "$" and self.text.startswith("$$", at):
            return self._until("display", at, "$$", "$$")
        if text == "$":
            return self._dollar(at)
        if text in ("\\(", "\\["):
            return self._until("inline" if text == "\\(" else "display", at, text, {"\\(": "\\)", "\\[": "\\]"}[text])
        if token[1]:
            return self._until("display", at, text, f"\\end{{{token[1]}}}")
        if text.startswith("\\boxed") and (end := self.braces.get(token.end())):
            return Part("inline", self.text[at : end + 1], "\\boxed{", "}")
        return None

    def _until(self, kind: Kind, at: int, opening: str, closing: str) -> Part | None:
        places = self.closers.get(closing, [])
        number = bisect_left(places, at + len(opening))
        if number == len(places) or not self.text[at + len(opening) : places[number]].strip():
            return None
        return self._part(kind, at, places[number] + len(closing), opening, closing)

    def _dollar(self, at: int) -> Part | None:
        """Pandoc's rule, which leaves prices alone: no space inside the dollars, no digit behind them."""
        number = bisect_right(self.dollars, at)
        if number == len(self.dollars):
            return None
        end = self.dollars[number]
        inner, behind = self.text[at + 1 : end], self.text[end + 1 : end + 2]
        if not inner or inner[0].isspace() or inner[-1].isspace() or behind.isdigit():
            return None
        return self._part("inline", at, end + 1, "$", "$")

    def _part(self, kind: Kind, at: int, end: int, opening: str, closing: str) -> Part:
        line = max(self.text.rfind("\n", 0, at), self.text.rfind("\r", 0, at)) + 1
        container = _CONTAINER.match(self.text, line, at)
        margin = re.sub(r"[^>\t]", " ", container[0]) if container and kind == "display" else ""
        # In a row of a table or a heading there is no place for a block; a margin stands before each of its lines.
        before = self.text[line + len(margin) : at].lstrip()
        if kind == "display" and (before.startswith(("|", "#")) or len(margin) > _LONGEST_MARGIN):
            kind, margin = "inline", ""
        return Part(kind, self.text[at:end], opening, closing, margin)


# ---- showing them ----


def inline(latex: str) -> str:
    """A formula on one line; what cannot be read is its source."""
    box = _box(latex, tall=False)
    return _one_line(box.text if box else latex)


def display(latex: str, width: int) -> list[str]:
    """A formula on as many lines as it needs; too wide for that, on one; too wide for one, wrapped."""
    return _lines(latex, width) or _source(latex.strip(), width)


def _lines(latex: str, width: int) -> list[str] | None:
    """None: it cannot be read."""
    box = _box(latex, tall=True)
    if box and box.width <= width:
        return [_safe(line).rstrip() for line in box.lines]
    flat = _box(latex, tall=False)
    return _wrapped(_one_line(flat.text), width) if flat else None


def _source(text: str, width: int) -> list[str]:
    return [piece for line in text.splitlines() for piece in _wrapped(_one_line(line), width) or [""]]


def to_text(markdown: str, width: int) -> str:
    """The Markdown with its formulas as text: inline ones escaped, display ones as blocks of code."""
    parts = split(markdown)
    out: list[str] = []
    at_margin = ""  # what the present line has so far
    for number, part in enumerate(parts):
        if part.kind == "text":
            text = part.source
        elif part.kind == "inline":
            text = escaped(_inline_of(part), at_start=not at_margin.strip(" \t>"))
        else:
            behind = parts[number + 1].source if number + 1 < len(parts) else ""
            text = _block(part, at_margin, behind, width)
        out.append(text)
        *ended, last = re.split(r"[\r\n]", text)
        # Only a short line can be a margin and nothing else; a long one is not copied for each formula in it.
        at_margin = last if ended else at_margin + last if len(at_margin) < _LONGEST_MARGIN else at_margin
    return "".join(out)


def _inline_of(part: Part) -> str:
    latex = part.source if part.opening == "\\boxed{" else part.latex
    box = _box(latex, tall=False)
    return _one_line(box.text if box else part.source)


def _block(part: Part, before: str, behind: str, width: int) -> str:
    """A fenced block in the place of a formula, with line breaks where the formula has none around it."""
    width = max(_LEAST_WIDTH, width - len(part.margin))
    lines = _lines(part.latex, width) or _source(part.source, width)
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    block = f"\n{part.margin}".join([fence + "text", *lines, fence])
    container = _CONTAINER.fullmatch(before)
    start = "" if container and len(before) == len(part.margin) else "\n" + part.margin
    ends_line = not behind or re.match(r"[ \t]*(?:[\r\n]|\Z)", behind)
    return start + block + ("" if ends_line else "\n" + part.margin)


def escaped(text: str, *, at_start: bool = False) -> str:
    """Text in which nothing acts as Markdown; `at_start`: it may begin a line, where more signs act."""
    text = re.sub(r"([\\`*_\[\]<>~|&#!$:@])", r"\\\1", text)
    if at_start:
        text = re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", text)
    return text


def _wrapped(text: str, width: int) -> list[str]:
    """Lines no wider than `width`, broken before relations and operators where that is possible."""
    from rich.cells import cell_len, chop_cells

    from ui.notation import kind

    width = max(width, _LEAST_WIDTH)
    lines: list[str] = []
    line = ""
    for word in re.split(r" +(?=\S)", text):
        # `= b` stays together: an operator begins a line rather than ending one
        if line and cell_len(line) + 1 + cell_len(word) > width:
            head, _, last = line.rpartition(" ")
            moved = head.strip() and kind(last) in ("rel", "bin") and len(last) == 1
            lines.append(head if moved else line)
            line = "  " + (f"{last} {word}" if moved else word)
        else:
            line = f"{line} {word}" if line else word
        if cell_len(line) > width:
            *full, line = chop_cells(line, width)
            lines += full
    return [*lines, line] if line.strip() else lines


@lru_cache(maxsize=512)
def _box(latex: str, *, tall: bool) -> Box | None:
    """A formula's box; None where it is too long, too deep, or nothing that can be set."""
    if len(latex) > LONGEST or _depth(latex) > DEEPEST:
        return None
    from ui.latex import Unreadable
    from ui.layout2d import TooLarge
    from ui.typeset import typeset

    try:
        box = typeset(latex.strip(), tall=tall)
    except (Unreadable, TooLarge, RecursionError):
        return None
    return box if box.width else None


def _depth(latex: str) -> int:
    """How deep anything is nested; brackets count, because some hold optional arguments."""
    depth = deepest = 0
    for token in re.finditer(r"\\(begin|left|end|right)\b|\\.|[{}\[\]]|\\", latex, re.DOTALL):
        opens, closes = (
            token[1] in ("begin", "left") or token[0] in "{[",
            token[1] in ("end", "right") or token[0] in "}]",
        )
        depth = max(0, depth + opens - closes)
        deepest = max(deepest, depth)
    return deepest


def _safe(text: str) -> str:
    """Nothing that acts on a terminal."""
    return printable_lines(text).replace("\t", " ").replace("\n", " ")


def _one_line(text: str) -> str:
    return _safe(re.sub(r"[\s]+", " ", text.strip()) if "\n" in text or "\r" in text else text.strip())
