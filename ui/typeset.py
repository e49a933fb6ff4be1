"""A formula set as boxes of Unicode text, on one line or stacked."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from ui import notation
from ui.latex import Environment, Group, Item, Macro, Unreadable, cells, contents, lettered, name_of, parse, symbol
from ui.layout2d import Box, above, beside, enclosed, fraction, frame, grid, root, text_box
from ui.spacing import FLAT, TALL, TIGHT, Atom, Style, attach, joined


def typeset(latex: str, *, tall: bool) -> Box:
    """A whole formula. Unreadable: the parser or the tables do not know it; TooLarge: no screen holds it."""
    return _table(Environment("aligned", parse(latex)), TALL if tall else FLAT)


def row(items: list[Item], style: Style) -> Box:
    """Items from left to right, spaced as TeX spaces them."""
    return _Row(items, style).set()


def flat(items: list[Item], style: Style = TIGHT) -> str:
    return row(items, style).text


# ---- lines and cells ----


def _table(environment: Environment, style: Style) -> Box:
    """An environment, or a formula that has \\\\ and & at its top."""
    table = cells(environment.items)
    fenced = environment.name in notation.FENCES
    if len(table) == 1 and len(table[0]) == 1 and not fenced:
        return row(table[0][0], style)
    if not style.tall:
        return text_box(_table_line(table, environment.name))
    if not fenced:
        return _equations(table, style, centred=environment.name in notation.GATHERED)
    boxes = [[row(cell, style) for cell in line] for line in table]
    count = max(map(len, boxes))
    left = environment.name in notation.LEFT
    aligns = (re.sub("[^lcr]", "", environment.columns) + ("l" if left else "c") * count)[:count]
    before = [*re.split("[lcr]", environment.columns), *[""] * count]  # {cc|c} has a rule before its third column
    gaps = ["", *(" │ " if "|" in before[n] else "  " for n in range(1, count))]
    box = grid(boxes, aligns, gaps, odd=left)
    opening, closing = notation.FENCES[environment.name]
    padded = [text_box(" "), box] if left and opening else [box, text_box(" ")] if left else [box]
    return enclosed(opening, beside(padded), closing)


def _equations(table: list[list[list[Item]]], style: Style, *, centred: bool) -> Box:
    """Equations under one another: right-hand and left-hand sides meet at &."""
    # In TeX an empty atom stands before a right-hand side, so that its `=` is spaced as a relation.
    lines = [[row([Group([]), *cell] if n % 2 else cell, style) for n, cell in enumerate(line)] for line in table]
    count = max(map(len, lines))
    aligns = "c" * count if centred else "l" if count == 1 else "rl" * count
    gaps = ["", *("" if n % 2 else "   " for n in range(1, count))]
    return grid(lines, aligns, gaps, odd=False)


def _table_line(table: list[list[list[Item]]], name: str) -> str:
    """A table without height: (1, 2; 3, 4) and {x, if x > 0; 0, otherwise}."""
    if name not in notation.FENCES:
        lines = [flat([item for cell in line for item in cell], FLAT) for line in table]
        return "; ".join([*(line.rstrip(";,") for line in lines[:-1]), lines[-1]])
    opening, closing = notation.FENCES[name]
    style = FLAT if name in notation.LEFT else TIGHT
    rows = "; ".join(", ".join(flat(cell, style).strip().rstrip(",") for cell in line) for line in table)
    return (opening or "{" * (closing == "}")) + rows + (closing or "}" * (opening == "{"))


# ---- a line ----


class _Row:
    """One pass over a sequence of items: atoms are read, take their scripts, and are put beside one another."""

    def __init__(self, items: list[Item], style: Style) -> None:
        self.items = items
        self.style = style
        self.at = 0
        self.spaced = False  # a space stood before the item that was read last
        self.atoms: list[Atom] = []

    def set(self) -> Box:
        while (item := self._next()) is not None:
            spaced = self.spaced
            for atom in self._read(item):
                atom.spaced, spaced = spaced, False
                self.atoms.append(atom)
            if self.atoms:
                self._scripts(self.atoms[-1])
        return joined(self.atoms, self.style)

    def _peek(self) -> Item | None:
        return self.items[self.at] if self.at < len(self.items) else None

    def _next(self) -> Item | None:
        """The next item that is not a space."""
        start = self.at
        while isinstance(item := self._peek(), str) and item.isspace():
            self.at += 1
        self.spaced = self.at > start
        self.at += item is not None
        return item

    def _needed(self) -> Item:
        item = self._next()
        if item is None:
            raise Unreadable
        return item

    def _read(self, item: Item) -> list[Atom]:
        """The atoms of one item."""
        if isinstance(item, str):
            return self._character(item)
        if isinstance(item, Group):
            return [Atom(row(item.items, self.style))]
        if isinstance(item, Environment):
            return [Atom(_table(item, self.style), "inner")]
        if item.name in notation.FORBIDDEN or not item.name:
            raise Unreadable
        if item.name in _BUILDERS:
            return _BUILDERS[item.name](item, self.style)
        return self._named(item.name)

    def _character(self, character: str) -> list[Atom]:
        if character in "_^'":
            self.at -= 1  # a script without a base: its base is nothing
            return [Atom(text_box(""))]
        if character == "~":
            return [Atom(text_box(" "), "space")]
        if character == "|" and self.spaced and self._peek() == " ":
            # spaces on both sides and something before it: "such that", not the beginning of |x|
            follows = self.atoms and self.atoms[-1].kind not in ("open", "bin", "rel")
            return [Atom(text_box("|"), "rel" if follows else "ord")]
        return [Atom(text_box(character), notation.kind(character))]

    def _named(self, name: str) -> list[Atom]:
        """The atoms of a macro without arguments."""
        if name == "left":
            return self._between()
        if name in notation.SIZED:
            sign = self._sign()
            return [Atom(text_box(sign), notation.SIZED[name] or notation.kind(sign))] if sign else []
        if name == "not":
            negated = flat(contents(self._needed())) + "\u0338"
            return [Atom(text_box(unicodedata.normalize("NFC", negated)), "rel")]
        if name in notation.SPACES:
            return [Atom(text_box(notation.SPACES[name]), "space")]
        return [] if name in notation.IGNORED else self._word(name)

    def _word(self, name: str) -> list[Atom]:
        if name in notation.LIMITS:
            return [Atom(text_box(notation.LIMITS[name]), "big", stacks=True)]
        if name in notation.FUNCTIONS:
            return [Atom(text_box(name), "op")]
        sign = symbol(name)
        if sign is None:
            return self._unknown(name)
        kind = notation.KINDS.get(name) or notation.kind(sign)
        return [Atom(text_box(sign), kind, stacks=kind == "big")]

    def _unknown(self, name: str) -> list[Atom]:
        """A macro nobody knows is shown as it was written; what it is applied to is set."""
        text = "\\" + name
        while isinstance(item := self._peek(), Group):
            text += "{" + flat(item.items, FLAT) + "}"
            self.at += 1
        return [Atom(text_box(text))]

    def _sign(self) -> str:
        """The bracket after \\left, \\big and the like."""
        item = self._needed()
        sign = item if isinstance(item, str) else symbol(name_of(item) or "")
        if not sign:
            raise Unreadable
        return {".": "", "<": "⟨", ">": "⟩"}.get(sign, sign)

    def _between(self) -> list[Atom]:
        """\\left( ... \\right): brackets as high as what is between them."""
        opening = self._sign()
        start, depth = self.at, 1
        while depth:
            depth += {"left": 1, "right": -1}.get(name_of(self._needed()) or "", 0)
        box = row(self.items[start : self.at - 1], self.style if self.style.tall else FLAT)
        closing = self._sign()
        return [Atom(enclosed(opening, box, closing), "inner" if box.height > 1 else "group")]

    def _scripts(self, atom: Atom) -> None:
        """Give an atom the sub- and superscripts and primes that follow it."""
        lower, upper, primes = "", "", 0
        while True:
            start = self.at
            item = self._next()
            if item == "'":
                primes += 1
            elif isinstance(item, str) and item in "_^":
                text = flat(contents(self._needed()))
                lower, upper = (lower + text, upper) if item == "_" else (lower, upper + text)
            elif name_of(item) not in ("limits", "nolimits"):
                self.at = start
                break
        if lower or upper or primes:
            attach(atom, lower, upper, primes, self.style)


def _plain(items: list[Item]) -> str:
    """What \\text holds: spaces count, and a formula may be inside."""
    parts: list[str] = []
    for item in items:
        if isinstance(item, str):
            parts.append(" " if item.isspace() or item == "~" else item)
        elif isinstance(item, Group):
            parts.append(_plain(item.items))
        elif isinstance(item, Macro) and item.name in notation.SPACES:
            parts.append(" ")
        else:
            parts.append(row([item], FLAT).text)
    return re.sub(" +", " ", "".join(parts))


# ---- macros with arguments: each makes its atoms ----

Builder = Callable[[Macro, Style], list[Atom]]


def _fraction(item: Macro, style: Style) -> list[Atom]:
    if style.tall and item.name != "tfrac":
        return [Atom(fraction(row(item.argument(0), style), row(item.argument(1), style)), "frac")]
    return [Atom(text_box(notation.fraction(flat(item.argument(0)), flat(item.argument(1)))), "frac")]


def _binomial(item: Macro, style: Style) -> list[Atom]:
    if style.tall:
        parts = [row(item.argument(0), style), text_box(""), row(item.argument(1), style)]
        return [Atom(enclosed("(", above(parts, 1), ")"), "inner")]
    return [Atom(text_box(f"C({flat(item.argument(0))}, {flat(item.argument(1))})"), "group")]


def _root(item: Macro, style: Style) -> list[Atom]:
    index, inner = flat(item.argument(0)), item.argument(1)
    radicand = row(inner, style) if style.tall else None
    if radicand and radicand.height > 1:
        return [Atom(root(radicand, notation.superscript(index).lstrip("^")), "inner")]
    return [Atom(text_box(notation.root(index, flat(inner))))]


def _accent(item: Macro, style: Style) -> list[Atom]:
    box = row(item.argument(0), style)
    if box.height > 1:
        return [Atom(above([text_box("─" * box.width), box], 1), "inner")]
    return [Atom(text_box(notation.accented(item.name, box.text)))]


def _lettered(item: Macro, style: Style) -> list[Atom]:
    text = flat(item.argument(0), style if not style.tall else FLAT)
    return [Atom(text_box(lettered(text, notation.ALPHABETS[item.name])))]


def _upright(item: Macro, style: Style) -> list[Atom]:
    del style
    text = re.sub(r"\s+", " ", flat(item.argument(0), TIGHT))
    return [Atom(text_box(text))]


def _operator(item: Macro, style: Style) -> list[Atom]:
    del style
    text = flat(item.argument(1))
    starred = item.arguments[0] is not None
    return [Atom(text_box(text), "big" if starred else "op", stacks=starred)]


def _text(item: Macro, style: Style) -> list[Atom]:
    del style
    return [Atom(text_box(_plain(item.argument(0))))]


def _boxed(item: Macro, style: Style) -> list[Atom]:
    box = row(item.argument(0), style if style.tall else FLAT)
    return [Atom(frame(box) if style.tall else text_box(f"[ {box.text} ]"), "inner" if style.tall else "group")]


def _over(item: Macro, style: Style) -> list[Atom]:
    """\\overset{a}{b}, \\stackrel: the second with the first on top; \\underset: below."""
    mark, base = flat(item.argument(0)), row(item.argument(1), style)
    under = item.name == "underset"
    kind = notation.kind(base.text) if base.height == 1 else "inner"
    if style.tall:
        parts = [base, text_box(mark)] if under else [text_box(mark), base]
        return [Atom(above(parts, 0 if under else 1), kind)]
    return [Atom(text_box(base.text + (notation.subscript(mark) if under else notation.superscript(mark))), kind)]


def _brace(item: Macro, style: Style) -> list[Atom]:
    box = row(item.argument(0), style)
    if not style.tall:
        return [Atom(text_box(f"({box.text})" if len(box.text) > 1 else box.text), "group")]
    under = item.name == "underbrace"
    ends = "╰╯" if under else "╭╮"
    line = text_box(ends[0] + "─" * (box.width - 2) + ends[1] if box.width > 1 else "│")
    return [Atom(above([box, line] if under else [line, box], 0 if under else 1), "inner", stacks=True)]


def _arrow(item: Macro, style: Style) -> list[Atom]:
    label = flat(item.argument(1))
    shaft = "─" * (max(1, len(label)) if style.tall else 1)
    arrow = f"{shaft}→" if item.name == "xrightarrow" else f"←{shaft}"
    if style.tall and label:
        return [Atom(above([text_box(label), text_box(arrow)], 1), "rel")]
    return [Atom(text_box(f"─{label}→" if item.name == "xrightarrow" else f"←{label}─"), "rel")]


def _modulus(item: Macro, style: Style) -> list[Atom]:
    inner = flat(item.argument(0), FLAT)
    text = {"pmod": f"(mod {inner})", "pod": f"({inner})", "mod": f"mod {inner}"}[item.name]
    return [Atom(text_box("" if style.tight else " "), "space"), Atom(text_box(text), "group")]


def _substack(item: Macro, style: Style) -> list[Atom]:
    del style
    return [Atom(text_box(", ".join(flat(cell) for line in cells(item.argument(0)) for cell in line)))]


def _tag(item: Macro, style: Style) -> list[Atom]:
    del style
    return [Atom(text_box("  "), "space"), Atom(text_box(f"({_plain(item.argument(1))})"), "group")]


def _last_argument(item: Macro, style: Style) -> list[Atom]:
    return [Atom(row(item.argument(len(item.arguments) - 1), style))]


def _nothing(item: Macro, style: Style) -> list[Atom]:
    del item, style
    return []


_BUILDERS: dict[str, Builder] = {
    **dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac", "nicefrac"), _fraction),
    **dict.fromkeys(("binom", "dbinom", "tbinom"), _binomial),
    **dict.fromkeys(notation.ACCENTS, _accent),
    **dict.fromkeys(notation.ALPHABETS, _lettered),
    **dict.fromkeys(("mathrm", "mathit", "mathnormal", "rm"), _upright),
    **dict.fromkeys(notation.TEXTS, _text),
    **dict.fromkeys(("overset", "underset", "stackrel"), _over),
    **dict.fromkeys(("overbrace", "underbrace"), _brace),
    **dict.fromkeys(("xrightarrow", "xleftarrow"), _arrow),
    **dict.fromkeys(("pmod", "pod", "mod"), _modulus),
    **dict.fromkeys(("color", "label", "hspace", "vspace", "phantom", "hphantom", "vphantom"), _nothing),
    **dict.fromkeys(
        ("textcolor", "mathop", "mathbin", "mathrel", "mathord", "ensuremath", "cancel", "smash"), _last_argument
    ),
    "sqrt": _root,
    "operatorname": _operator,
    "boxed": _boxed,
    "fbox": _boxed,
    "substack": _substack,
    "tag": _tag,
}
