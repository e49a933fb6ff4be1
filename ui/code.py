"""Listings: the highlighted lines of a block of code, kept while it grows. Loads pygments when the first one comes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style

from ui.look import Look
from ui.wrapping import Line, Run, chopped, measured, safe

if TYPE_CHECKING:
    from pygments.lexer import Lexer
    from pygments.token import _TokenType

LONGEST, WIDEST = 2_000, 2_000  # lines that are highlighted, and the characters of one
Tokens = list[tuple["_TokenType | None", str]]


class Listing:
    """A block of code. `highlight` costs what is new, not the whole: see `_settled`."""

    def __init__(self) -> None:
        self.language = ""
        self.tokens: list[Tokens] = []  # of the lines that are settled
        self.closed = False
        self.painted: list[list[Line]] = []  # those lines, for one look and one width
        self.manner: tuple[Look, int] | None = None

    def lines(self, code: Sequence[str], language: str, *, closed: bool, look: Look, width: int) -> list[Line]:
        """The code's lines on a terminal so wide."""
        self._settle(code, language, closed)
        if self.manner != (look, width):
            self.manner, self.painted = (look, width), []
        for tokens in self.tokens[len(self.painted) :]:
            self.painted.append(_painted(tokens, look, width))
        fresh = _tokens(code[len(self.tokens) :], language, len(self.tokens))
        return [line for lines in (*self.painted, *(_painted(each, look, width) for each in fresh)) for line in lines]

    def _settle(self, code: Sequence[str], language: str, closed: bool) -> None:
        count = len(code) if closed else _settled(len(code) - 1)
        if count == len(self.tokens) and closed == self.closed and language == self.language:
            return
        self.language, self.closed = language, closed
        self.tokens = _tokens(code[:count], language, 0)
        self.painted = []


def _settled(count: int) -> int:
    """How many lines of an open block of so many are highlighted together, from its beginning.

    The lines behind are highlighted on their own, which can be wrong inside a long string, and anew for each word. The
    steps get longer with the block, so that all of it is highlighted a bounded number of times.
    """
    settled = 0
    while (following := settled + max(4, settled // 8)) <= count:
        settled = following
    return settled


def header(language: str, number: int, width: int, look: Look) -> Line:
    """The line above a listing: its language, and where a click copies it."""
    title = safe(language)[: max(0, width - 8)]
    ground = look.text + look.code_block
    button = Segment("copy", ground + look.button + Style(meta={"@click": f"copy_code({number})"}))
    line = [Segment(" "), *(chopped([(title, Style.null())], max(1, width - 7)) or [[]])[0]]
    space = " " * (width - measured(line) - 5)
    return [Segment(text, ground + look.dim) for text, _, _ in [*line, Segment(space)]] + [button, Segment(" ", ground)]


def _painted(tokens: Tokens, look: Look, width: int) -> list[Line]:
    """A line of code on its ground, on as many lines as it needs."""
    ground = look.text + look.code_block
    runs: list[Run] = [(text, ground + _style(look.pygments_style, kind) if kind else ground) for kind, text in tokens]
    lines: list[Line] = []
    for line in chopped(runs, width - 2):
        space = width - 1 - measured(line)
        lines.append([Segment(" ", ground), *line, Segment(" " * space, ground)])
    return lines


def _tokens(code: Sequence[str], language: str, before: int) -> list[Tokens]:
    """The tokens of each line; beyond what is highlighted, the line itself."""
    lines = [safe(line) for line in code]
    lexer = _lexer(language) if language and lines else None
    count = max(0, LONGEST - before)
    if lexer is None or not count or max(map(len, lines[:count])) > WIDEST:
        return [[(None, line)] for line in lines]
    return [*_lexed(lexer, lines[:count]), *([(None, line)] for line in lines[count:])]


def _lexed(lexer: Lexer, lines: list[str]) -> list[Tokens]:
    plain: list[Tokens] = [[(None, line)] for line in lines]
    result: list[Tokens] = [[]]
    try:
        for kind, text in lexer.get_tokens("\n".join(lines)):
            first, *following = text.split("\n")
            result[-1].append((kind, first))
            result += [[(kind, part)] for part in following]
    except Exception:  # noqa: BLE001  (five hundred lexers of others: what one cannot read is shown without colours)
        return plain
    result = result[: len(lines)]
    return result if ["".join(text for _, text in line) for line in result] == lines else plain


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    from pygments.lexers import get_all_lexers

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
    from pygments.styles import get_style_by_name
    from pygments.util import ClassNotFound

    try:
        style = get_style_by_name(name).style_for_token(kind)
    except ClassNotFound:
        return Style.null()
    colour = f"#{style['color']}" if style["color"] else None
    return Style(color=colour, bold=style["bold"] or None, italic=style["italic"] or None)
