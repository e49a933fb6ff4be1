"""What stands on the terminal as a picture of `docs/`: SVG that names no font of anybody else's and no time.

Every sign has its own place, so that formulas and frames hold together in whatever monospace font the reader has.
`PHI4LOCAL_PICTURES=1` in the environment writes the files of `docs/` instead of comparing them.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.cells import cell_len
from rich.color import blend_rgb
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import SVG_EXPORT_THEME
from textual.app import App
from textual.strip import Strip

DOCS = Path(__file__).parents[1] / "docs"
WRITES = bool(os.environ.get("PHI4LOCAL_PICTURES"))
_AGAIN = "PHI4LOCAL_PICTURES=1 .venv/bin/python -m pytest tests/test_screenshots.py"
_MOST_BYTES = 150_000
_WIDTH, _HEIGHT, _BASE, _MARGIN = 12, 23, 17, 12  # of a cell, of the line that letters stand on, around the screen
_FONTS = "ui-monospace,Menlo,'DejaVu Sans Mono',Consolas,monospace"
# Signs that fill a part of their cell: from left, top to right, bottom, in eighths.
_BLOCKS = {"█": (0, 0, 8, 8), "▌": (0, 0, 4, 8), "▐": (4, 0, 8, 8), "▎": (0, 0, 2, 8), "▊": (0, 0, 6, 8)}
_BLOCKS |= {sign: (0, 7 - index, 8, 8) for index, sign in enumerate("▁▂▃▄▅▆▇")} | {"▀": (0, 0, 8, 4)}
Rgb = tuple[int, int, int]


class Cell(NamedTuple):
    """Signs that belong together at a place of a line, and how they look."""

    x: int
    text: str
    cells: int
    colour: str
    ground: str
    manner: str  # of the letters, as CSS


def keep(name: str, text: str) -> None:
    """Compare with the file of `docs/`, or write it."""
    path = DOCS / name
    if WRITES:
        path.write_text(text, encoding="utf-8")
        return
    there = path.read_text(encoding="utf-8") if path.exists() else ""
    if there != text:
        other = difflib.unified_diff(there.splitlines(), text.splitlines(), "kept", "now", n=0, lineterm="")
        some = "\n".join(line[:200] for line, _ in zip(other, range(12), strict=False))
        pytest.fail(f"docs/{name} is not what is shown now. Write it with\n{_AGAIN}\nand look at it.\n{some}")


def picture(app: App[Any], title: str) -> str:
    """The screen as SVG."""
    lines = [list(cells(line)) for line in screen_lines(app)]
    ground = Counter(cell.ground for line in lines for cell in line).most_common(1)[0][0]
    drawing = _Drawing()
    for y, line in enumerate(lines):
        drawing.line(y, line, ground)
    width, height = app.size.width * _WIDTH + 2 * _MARGIN, len(lines) * _HEIGHT + 2 * _MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    looks = "".join(f".{name}{{{css}}}" for css, name in drawing.looks.items())
    style = f"text{{font:20px {_FONTS};text-anchor:middle}}.w{{text-anchor:start}}{looks}"
    parts = [head, f"<title>{escape(title)}</title>", f"<style>{style}</style>"]
    parts += [f'<rect width="{width}" height="{height}" rx="10" fill="{ground}"/>']
    parts += [f'<g transform="translate({_MARGIN} {_MARGIN})">']
    parts += ['<g shape-rendering="crispEdges">', *drawing.grounds, "</g>", *drawing.texts, "</g>", "</svg>\n"]
    svg = "\n".join(parts)
    assert len(svg.encode()) < _MOST_BYTES
    return svg


def screen_lines(app: App[Any]) -> list[list[Segment]]:
    """What is drawn, the screens below a dialog included."""
    width, height = app.size
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    update = app.screen._compositor.render_update(full=True, screen_stack=app._background_screens, simplify=True)
    segments = Segment.filter_control(console.render(update or ""))
    return list(Segment.split_and_crop_lines(segments, width, include_new_lines=False))[:height]


def cells(line: list[Segment]) -> Iterator[Cell]:
    """Its signs one by one, with those that are put over them."""
    x = 0
    for text, style, _ in line:
        colour, ground = colours(style or Style())
        for sign in re.findall(r".[\u0300-\u036f\u20d0-\u20ff\ufe0f]*", text):
            yield Cell(x, sign, cell_len(sign), _hex(colour), _hex(ground), _manner(style or Style()))
            x += cell_len(sign)


def colours(style: Style) -> tuple[Rgb, Rgb]:
    """Of the signs, and behind them."""
    theme = SVG_EXPORT_THEME
    colour = style.color.get_truecolor(theme) if style.color else theme.foreground_color
    ground = style.bgcolor.get_truecolor(theme, foreground=False) if style.bgcolor else theme.background_color
    if style.reverse:
        colour, ground = ground, colour
    if style.dim:
        colour = blend_rgb(colour, ground, 0.4)
    return (colour.red, colour.green, colour.blue), (ground.red, ground.green, ground.blue)


def _hex(colour: Rgb) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def _manner(style: Style) -> str:
    said = [("font-weight:bold", style.bold), ("font-style:italic", style.italic)]
    said += [("text-decoration:underline", style.underline), ("text-decoration:line-through", style.strike)]
    return ";".join(css for css, is_so in said if is_so)


class _Drawing:
    """Backgrounds and texts, and the classes of their looks in the order of their coming."""

    def __init__(self) -> None:
        self.looks: dict[str, str] = {}
        self.grounds: list[str] = []
        self.texts: list[str] = []

    def line(self, y: int, line: list[Cell], ground: str) -> None:
        for colour, group in groupby(line, lambda cell: cell.ground):
            same = list(group)
            if colour != ground:
                self._rectangle(same[0].x * _WIDTH, y * _HEIGHT, _wide(same), _HEIGHT, colour)
        for (colour, manner, *_), group in groupby(line, _kind):
            same = list(group)
            if same[0].text in _BLOCKS:
                self._block(y, same, colour)
            else:
                self._text(y, same, f"fill:{colour}{';' * bool(manner)}{manner}")

    def _text(self, y: int, same: list[Cell], css: str) -> None:
        """Words from their left end; other signs in the middle of their cells, lines of them as long as their cells."""
        text, start = "".join(cell.text for cell in same), same[0].x * _WIDTH
        look, base = self.looks.setdefault(css, f"c{len(self.looks)}"), y * _HEIGHT + _BASE
        if not text.isascii():
            wide = _wide(same)
            stretch = f' textLength="{wide}" lengthAdjust="spacingAndGlyphs"' if len(same) > 1 else ""
            self.texts.append(f'<text x="{start + wide // 2}" y="{base}"{stretch} class="{look}">{text}</text>')
            return
        for words in re.finditer(r"\S+(?: \S+)*", text):
            at, wide = start + words.start() * _WIDTH, len(words[0]) * _WIDTH
            said = f'textLength="{wide}" class="{look} w">{escape(words[0], quote=False)}'
            self.texts.append(f'<text x="{at}" y="{base}" {said}</text>')

    def _block(self, y: int, same: list[Cell], colour: str) -> None:
        left, top, right, bottom = _BLOCKS[same[0].text]
        start, width = same[0].x * _WIDTH + left * _WIDTH // 8, (right - left) * _WIDTH // 8
        whole = _wide(same) if width == _WIDTH else width
        upper, lower = (round(edge * _HEIGHT / 8) for edge in (top, bottom))
        self._rectangle(start, y * _HEIGHT + upper, whole, lower - upper, colour)

    def _rectangle(self, x: int, y: int, width: int, height: int, colour: str) -> None:
        self.grounds.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{colour}"/>')


def _wide(same: list[Cell]) -> int:
    return sum(cell.cells for cell in same) * _WIDTH


def _kind(cell: Cell) -> tuple[str, str, object, object]:
    """What can be drawn as one: words, and lines of one sign. Letters of other scripts stand alone."""
    is_alone = cell.cells != 1 or (cell.text in _BLOCKS and _BLOCKS[cell.text][:3:2] != (0, 8))
    is_alone = is_alone or not (cell.text.isascii() or "─" <= cell.text <= "▟")
    return cell.colour, cell.manner, cell.text.isascii() or cell.text, cell.x if is_alone else None


def weak_texts(app: App[Any], least: float = 4.5) -> list[tuple[float, str]]:
    """Letters and digits that are hard to read by WCAG's measure, and how much they stand out."""
    found: dict[str, float] = {}
    dialogs = [widget.region for widget in app.screen.query(".dialog")]
    front = dialogs[0] if dialogs else app.screen.region  # what is behind a dialog is dim
    for line in screen_lines(app)[front.y : front.bottom]:
        for text, style, _ in Strip(line).crop(front.x, front.right):
            ratio = contrast(*colours(style or Style()))
            if ratio < least and any(sign.isalnum() for sign in text):
                found[text.strip()] = min(ratio, found.get(text.strip(), ratio))
    return [(round(ratio, 2), text) for text, ratio in found.items()]


def contrast(one: Rgb, other: Rgb) -> float:
    """WCAG's contrast of two colours, from 1 to 21."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Rgb) -> float:
    parts = [part / 255 for part in colour]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
