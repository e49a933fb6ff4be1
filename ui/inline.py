"""What stands in a paragraph: pieces of text with their roles (bold, link, formula). Knows no colours and no width."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from ui.formulas import Part, inline, split

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

LONGEST = 8_000  # a longer paragraph is shown as its source
_BRACKETS = 500  # as is one with more of these, each of which is looked for the end of
_ACTIVE = re.compile(r"[\\`*_\[<&~$\n]")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)

# A formula is out of Markdown's reach while that is parsed: its number between two signs that no text may hold.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_PLACE = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_NONE = {ord(_OPEN): "\ufffd", ord(_CLOSE): "\ufffd"}

_OPENS = {"strong_open": "bold", "em_open": "italic", "s_open": "strike", "link_open": "link"}
_CLOSES = {"strong_close": "bold", "em_close": "italic", "s_close": "strike", "link_close": "link"}


class Piece(NamedTuple):
    """Text with the roles it plays. The one role `display` means: the LaTeX of a formula with lines of its own."""

    text: str
    roles: tuple[str, ...] = ()


@lru_cache(maxsize=1024)
def pieces(markdown: str) -> tuple[Piece, ...]:
    """A paragraph (or a heading, or a cell) in pieces; what is too long or too involved is its source."""
    if not _ACTIVE.search(markdown):
        return (Piece(markdown.strip()),)
    if len(markdown) > LONGEST or markdown.count("[") > _BRACKETS:
        return (Piece(markdown),)
    marked, formulas = _marked(markdown)
    tokens = _parser().parseInline(marked)[0].children or []
    return tuple(_joined(_Walk(formulas).pieces(tokens)))


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable("strikethrough")
    # An address is only shown, so any will do, as it was written.
    parser.validateLink = lambda url: True  # type: ignore[method-assign]  # noqa: ARG005
    parser.normalizeLink = lambda url: url  # type: ignore[method-assign]
    parser.normalizeLinkText = lambda link: link  # type: ignore[method-assign]
    return parser


def _marked(markdown: str) -> tuple[str, list[Part]]:
    """The text with its formulas' numbers in their place."""
    markdown = markdown.translate(_NONE)
    if "$" not in markdown and "\\" not in markdown:
        return markdown, []
    formulas: list[Part] = []
    texts: list[str] = []
    for part in split(markdown):
        if part.kind == "text":
            texts.append(part.source)
            continue
        texts.append(f"{_OPEN}{len(formulas)}{_CLOSE}")
        formulas.append(part)
    return "".join(texts), formulas


def _joined(parts: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbours with the same roles are one."""
    last: Piece | None = None
    for piece in parts:
        if last and last.roles == piece.roles and piece.roles != ("display",):
            last = Piece(last.text + piece.text, last.roles)
            continue
        if last and last.text:
            yield last
        last = piece
    if last and last.text:
        yield last


class _Walk:
    """One pass over the tokens of a paragraph."""

    def __init__(self, formulas: list[Part]) -> None:
        self.formulas = formulas
        self.roles: tuple[str, ...] = ()
        self.links: list[tuple[str, list[str]]] = []  # where the links around a place go, and what they say

    def pieces(self, tokens: list[Token]) -> Iterator[Piece]:
        """The tokens as pieces, in their order."""
        for token in tokens:
            for piece in self._pieces(token):
                for _, texts in self.links:
                    texts.append(piece.text)
                yield piece

    def _pieces(self, token: Token) -> Iterator[Piece]:
        kind = token.type
        if kind == "text":
            yield from self._text(token.content)
        elif kind in _OPENS:
            self.roles += (_OPENS[kind],)
            if kind == "link_open":
                self.links.append((self._source(str(token.attrs.get("href", ""))), []))
        elif kind in _CLOSES:
            yield from self._closed(_CLOSES[kind])
        elif kind == "code_inline":
            yield Piece(self._source(token.content), (*self.roles, "code"))
        elif kind in ("softbreak", "hardbreak"):
            yield Piece(" " if kind == "softbreak" else "\n", self.roles)
        elif kind == "image":
            yield from self._image(token)
        elif _BREAK.fullmatch(token.content):
            yield Piece("\n", self.roles)
        else:
            yield Piece(self._source(token.content), self.roles)

    def _closed(self, role: str) -> Iterator[Piece]:
        at = len(self.roles) - 1 - self.roles[::-1].index(role)
        self.roles = self.roles[:at] + self.roles[at + 1 :]
        if role == "link":
            url, texts = self.links.pop()
            said = "".join(texts)
            if url not in ("", said, f"mailto:{said}"):
                yield Piece(f" ({url})" if said.strip() else url, (*self.roles, "dim"))

    def _image(self, token: Token) -> Iterator[Piece]:
        url = self._source(str(token.attrs.get("src", "")))
        yield Piece(self._source(token.content) or "image", (*self.roles, "italic"))
        yield Piece(f" ({url})" if url else "", (*self.roles, "dim"))

    def _text(self, text: str) -> Iterator[Piece]:
        done = 0
        for place in _PLACE.finditer(text):
            yield Piece(text[done : place.start()], self.roles)
            part = self.formulas[int(place[1])]
            latex = part.source if part.opening == "\\boxed{" else part.latex
            if part.kind == "display":
                yield Piece(latex, ("display",))
            else:
                yield Piece(inline(latex), (*self.roles, "formula"))
            done = place.end()
        yield Piece(text[done:], self.roles)

    def _source(self, text: str) -> str:
        """Text that is not Markdown (code, an address), with the formulas in it as they were written."""
        return _PLACE.sub(lambda place: self.formulas[int(place[1])].source, text) if _OPEN in text else text
