"""Listings: the highlighted lines of a block of code, kept while it grows. Loads pygments when the first one comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style

from ui.look import Look
from ui.wrapping import Line, Run, chopped, measured, safe

if TYPE_CHECKING:
    from pygments.lexer import Lexer  # type: ignore[import-untyped]
    from pygments.token import _TokenType  # type: ignore[import-untyped]

LONGEST, WIDEST = 2_000, 1_000  # lines that are highlighted, and the characters of one
SHOWN = 10_000  # lines
_PATIENCE = 0.5  # seconds that the lexer of a listing may take: some are quadratic in what they cannot read
_TOGETHER, _STEP = 200, 25  # lines
Tokens = list[tuple["_TokenType | None", str]]


class Listing:
    """A block of code. What is new costs something, not the whole: see `_settled`."""

    def __init__(self) -> None:
        self.language = ""
        self.closed = False
        self.is_slow = False
        self.tokens: list[Tokens] = []  # of the lines that are settled
        self.painted: list[Line] = []  # those lines, in one manner
        self.count = 0  # how many of them that is
        self.manner: tuple[Look, int] | None = None

    def lines(self, code: Sequence[str], language: str, *, closed: bool, frame: Frame) -> list[Line]:
        """The code's lines; the code may only have grown since the last time."""
        shown = code[:SHOWN]
        self._settle(shown, language, closed or len(code) > SHOWN)
        if self.manner != (frame.look, frame.width):
            self.manner, self.painted, self.count = (frame.look, frame.width), [], 0
        for tokens in self.tokens[self.count :]:
            self.painted += frame.lines(tokens)
        self.count = len(self.tokens)
        fresh = self._read(shown, len(self.tokens), len(shown))
        left = f"… {len(code) - SHOWN:,} more lines, which a copy has, too"
        rest = frame.lines([(None, left)]) if len(code) > SHOWN else []
        return [*self.painted, *(line for tokens in fresh for line in frame.lines(tokens)), *rest]

    def _settle(self, code: Sequence[str], language: str, closed: bool) -> None:
        together, count = (len(code), len(code)) if closed else _settled(len(code) - 1)
        if len(self.tokens) < together or closed != self.closed or language != self.language:
            self.language, self.closed = language, closed
            self.tokens = self._read(code, 0, together)
            self.painted, self.count = [], 0
        while len(self.tokens) < count:
            self.tokens += self._read(code, len(self.tokens), len(self.tokens) + _STEP)

    def _read(self, code: Sequence[str], start: int, end: int) -> list[Tokens]:
        """The tokens of each line; beyond what is highlighted, the line itself."""
        lines = [safe(line) for line in code[start:end]]
        lexer = None if self.is_slow or not self.language else _lexer(self.language)
        count = max(0, LONGEST - start)
        if not lexer or not lines[:count] or max(map(len, lines[:count])) > WIDEST:
            return [[(None, line)] for line in lines]
        begun = time.thread_time()
        tokens = _lexed(lexer, lines[:count], begun + _PATIENCE)
        self.is_slow = time.thread_time() - begun > _PATIENCE
        return tokens + [[(None, line)] for line in lines[count:]]


@dataclass(frozen=True)
class Frame:
    """What a listing is shown in: on its ground, behind the margin of the quotations and items around it."""

    look: Look
    width: int
    margin: Line

    def lines(self, tokens: Tokens) -> list[Line]:
        """A line of code, on as many lines as it needs."""
        ground = self.look.text + self.look.code_block
        name = self.look.pygments_style
        runs: list[Run] = [(text, ground + _style(name, kind) if kind else ground) for kind, text in tokens]
        return [self._line(line, ground) for line in chopped(runs, self.width - 2)]

    def _line(self, line: Line, ground: Style) -> Line:
        space = self.width - 1 - measured(line)
        return [*self.margin, Segment(" ", ground), *line, Segment(" " * space, ground)]


def _settled(count: int) -> tuple[int, int]:
    """How many lines of an open block of so many are highlighted together, and how many are settled.

    The first ones are highlighted together, anew at each step, and the steps get longer with the block. Behind them
    each step is highlighted on its own, which can be wrong inside a long string until the block is closed. What is not
    settled is highlighted anew for each word.
    """
    together = 0
    while together < _TOGETHER and (following := together + max(4, together // 8)) <= count:
        together = following
    return together, together + (max(0, count - together) // _STEP * _STEP if together >= _TOGETHER else 0)


def header(language: str, number: int, width: int, look: Look) -> Line:
    """The line above a listing: its language, and where a click copies it."""
    title = safe(language)[: max(0, width - 8)]
    ground, behind = look.text + look.code_block, Style(bgcolor=look.code_block.bgcolor)
    click = Style(meta={"@click": f"copy_code({number})"})
    button = Segment("copy", ground + look.button + behind + click)
    line = [Segment(" "), *(chopped([(title, Style.null())], max(1, width - 7)) or [[]])[0]]
    space = " " * (width - measured(line) - 5)
    return [Segment(text, ground + look.dim + behind) for text, _, _ in [*line, Segment(space)]] + [
        button,
        Segment(" ", ground),
    ]


def _lexed(lexer: Lexer, lines: list[str], until: float) -> list[Tokens]:
    plain: list[Tokens] = [[(None, line)] for line in lines]
    result: list[Tokens] = [[]]
    try:
        for kind, text in lexer.get_tokens("\n".join(lines)):
            if time.thread_time() > until:
                return plain
            first, *following = text.split("\n")
            result[-1].append((kind, first))
            result += [[(kind, part)] for part in following]
    except Exception:  # noqa: BLE001  (five hundred lexers of others: what one cannot read is shown without colours)
        return plain
    result = result[: len(lines)]
    return result if ["".join(text for _, text in line) for line in result] == lines else plain


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    from pygments.lexers import get_all_lexers  # type: ignore[import-untyped]

    return frozenset(alias for _, aliases, _, _ in get_all_lexers(plugins=False) for alias in aliases)


@lru_cache(maxsize=64)
def _lexer(language: str) -> Lexer | None:
    """The lexer of a language by its name; it is never guessed."""
    from pygments.lexers import get_lexer_by_name

    if language.lower() not in _names():
        return None
    lexer: Lexer = get_lexer_by_name(language.lower(), stripnl=False, ensurenl=False)
    return lexer


@lru_cache(maxsize=1024)
def _style(name: str, kind: _TokenType) -> Style:
    """A token's style, without the background of its scheme."""
    from pygments.styles import get_style_by_name  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]

    try:
        style = get_style_by_name(name).style_for_token(kind)
    except ClassNotFound:
        return Style.null()
    colour = f"#{style['color']}" if style["color"] else None
    return Style(color=colour, bold=style["bold"] or None, italic=style["italic"] or None)
