# ruff: noqa: RUF001  (signs that look like letters are what this is about)
"""Pieces of a formula beside one another: which class each has, and where TeX would leave a space."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ui import notation
from ui.layout2d import Box, above, beside, cornered, text_box


@dataclass(frozen=True)
class Style:
    """`tall`: fractions are stacked; `tight`: no space around operators, as in a script."""

    tall: bool = False
    tight: bool = False


FLAT, TIGHT, TALL = Style(), Style(tight=True), Style(tall=True)


@dataclass
class Atom:
    """A piece of a formula and what it is to its neighbours (TeX's classes, with `frac` and `space` besides)."""

    box: Box
    kind: str = "ord"
    stacks: bool = False  # limits go above and below
    spaced: bool = False  # the source has a space before it


def attach(atom: Atom, lower: str, upper: str, primes: int, style: Style) -> None:
    if style.tall and atom.stacks and not primes:
        parts = [text_box(upper)] if upper else []
        parts += [atom.box, *([text_box(lower)] if lower else [])]
        atom.box = above(parts, 1 if upper else 0)
        return
    if upper and not upper.strip("′"):
        primes, upper = primes + len(upper), ""
    high = notation.primes(primes) + notation.superscript(upper)
    if atom.box.height > 1:
        atom.box = cornered(atom.box, high, notation.subscript(lower))
        return
    base = atom.box.text
    if atom.kind == "frac":
        base, atom.kind = f"({base})", "ord"
    marks = notation.primes(primes) + notation.subscript(lower) + notation.superscript(upper)
    atom.box = text_box(base + marks)


def joined(atoms: list[Atom], style: Style) -> Box:
    """Atoms beside one another, with the spaces between them."""
    _settle(atoms)
    boxes: list[Box] = []
    ends_blank = False
    for number, atom in enumerate(atoms):
        box = atom.box
        before = atoms[number - 1] if number else None
        if atom.kind == "frac" and box.height == 1:
            box = _guarded(box, atoms, number)
        if before and not ends_blank and atom.kind != "space" and _apart(before, atom, style):
            boxes.append(text_box(" "))
        if box.width or box.height > 1:
            boxes.append(box)
            ends_blank = all(line[-1:] in (" ", "") for line in box.lines) and box.height == 1
    if len(boxes) == 1 or (boxes and all(box.height == 1 for box in boxes)):
        return boxes[0] if len(boxes) == 1 else text_box("".join(box.text for box in boxes))
    return beside(boxes)


_OPERANDS = ("ord", "close", "group", "inner", "frac")


def _settle(atoms: list[Atom]) -> None:
    """An operator without a left or right operand is a sign, as in -x or R₊."""
    previous = "open"
    solid = [atom for atom in atoms if atom.kind != "space"]
    for number, atom in enumerate(solid):
        last = number == len(solid) - 1 or solid[number + 1].kind in ("close", "rel", "punct")
        if atom.kind == "bin" and (previous in ("open", "bin", "rel", "punct", "op", "big") or last):
            atom.kind = "ord" if atom.box.text in ("+", "-", "±", "∓", "∗", "*", "∘") or last else "bin"
        previous = atom.kind if atom.kind != "ord" or atom.box.text not in ("+", "-") else "sign"


def _guarded(box: Box, atoms: list[Atom], number: int) -> Box:
    """A fraction on one line in parentheses, where its neighbour would seem to belong to it."""
    before = atoms[number - 1] if number else None
    after = atoms[number + 1] if number + 1 < len(atoms) else None
    if before and before.kind in ("ord",) and before.box.text.isdigit() and re.fullmatch(r"\d+/\d+", box.text):
        return text_box(" " + box.text)  # a mixed number
    left = before and (before.kind in (*_OPERANDS, "op")) and before.box.text not in ("+", "-", "±", "|", "∓")
    right = after and after.kind in (*_OPERANDS, "open", "op", "big") and after.box.text not in ("|", "!", "%")
    return text_box(f"({box.text})") if left or right else box


def _apart(left: Atom, right: Atom, style: Style) -> bool:
    """Whether a space stands between two atoms."""
    kinds = {left.kind, right.kind}
    operand = left.kind in _OPERANDS and left.box.text not in ("+", "-", "±", "|", "")
    if left.kind == "space":
        return False
    # ... between a stacked fraction and a factor too, or its bar would be taken for a minus
    if (style.tall and "frac" in kinds and kinds <= set(_OPERANDS)) or (operand and right.kind in ("op", "big")):
        return True
    if left.box.text[:1] in notation.ROOT_SIGNS and left.box.text[-1:] != ")" and right.box.text[:1].isalnum():
        return True  # √2 x, where the x is not under the root
    if left.kind == "big":
        return right.kind not in ("close", "punct") and not (style.tight and right.kind in ("rel", "bin"))
    if left.kind == "op":
        return right.kind in ("ord", "op", "big", "inner") or (not style.tight and right.kind in ("rel", "bin"))
    return not style.tight and _apart_in_full(left, right, kinds)


def _apart_in_full(left: Atom, right: Atom, kinds: set[str]) -> bool:
    """The spaces that scripts do without."""
    if kinds & {"rel", "bin"}:
        return left.box.text != ":" or right.box.text != "="
    if left.kind == "punct":
        return right.spaced or not right.box.text[:1].isdigit()
    # x² dx: a differential that the source sets apart stays apart
    return right.spaced and right.box.text == "d" and left.kind in _OPERANDS
