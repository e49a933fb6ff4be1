"""Foreign text as lines no wider than a terminal: made harmless, measured in cells, wrapped at words or anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from phi4local.printing import printable_lines

Run = tuple[str, Style]
Line = list[Segment]
Span = tuple[int, int]

# What shows nothing and could hide text or break a line; joiners make letters and emoji and stay.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u2028\u2029\u2060-\u206f\u3164\ud800-\udfff"
    "\ufdd0-\ufdef\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_JOINERS = re.compile("[\u200d\ufe0f]")
# Chinese, Japanese and Korean break at any sign, but not before one that closes.
_WIDE = "\u2e80-\u2fff\u3040-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_WIDE}][\u3001\u3002\uff01\uff09\uff0c\uff1a\uff1b\uff1f\u300d\u300f]*|[^ {_WIDE}]+")
_FEW = 2_000  # signs of one word that are looked at at once


def safe(text: str) -> str:
    """Text without tabs in which nothing acts on a terminal or hides; line breaks stay."""
    if text.isprintable():
        return text
    return _UNSEEN.sub("\ufffd", printable_lines(text.expandtabs(4)))


def wrapped(runs: Sequence[Run], width: int) -> list[Line]:
    """Lines broken between words, or inside one that is too long; a line break in a run stays one."""
    return _lines(runs, width, _at_words)


def chopped(runs: Sequence[Run], width: int) -> list[Line]:
    """Lines broken where they are full, as code is: behind a space where one is near, which stays."""
    return _lines(runs, width, _behind_spaces)


def measured(line: Iterable[Segment]) -> int:
    """The cells of a line."""
    return sum([cell_len(segment.text) for segment in line])


class Strips(Sequence[Strip]):
    """Lines that become strips when they are looked at: most of a chat never is."""

    def __init__(self, lines: Iterable[Line | Strip] = ()) -> None:
        self.lines = list(lines)

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, place: int) -> Strip: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Strip]: ...
    def __getitem__(self, place: int | slice) -> Strip | Sequence[Strip]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self.lines)))]
        line = self.lines[place]
        if isinstance(line, Strip):
            return line
        strip = self.lines[place] = Strip(line, measured(line))
        return strip


def _lines(runs: Sequence[Run], width: int, breaks: Callable[[str, int, int, int], Iterator[Span]]) -> list[Line]:
    text = "".join([run[0] for run in runs])
    if len(text) * 2 <= width and "\n" not in text:
        return [[Segment(*run) for run in runs if run[0]]]
    spans: list[Span] = []
    start = 0
    for part in text.split("\n"):
        spans += breaks(text, start, start + len(part), width)
        start += len(part) + 1
    lines = _segments(runs, spans)
    if text.isascii() or not _JOINERS.search(text):
        return lines
    # With joiners a line can be wider than its parts. They go where that happens.
    return [fitting for line in lines for fitting in _without_joiners(line, width, breaks)]


def _without_joiners(line: Line, width: int, breaks: Callable[[str, int, int, int], Iterator[Span]]) -> list[Line]:
    if measured(line) <= width:
        return [line]
    return _lines([(_JOINERS.sub("", text), style or Style.null()) for text, style, _ in line], width, breaks)


def _segments(runs: Sequence[Run], spans: Sequence[Span]) -> list[Line]:
    """The pieces of the runs that lie in each span of their text."""
    lines: list[Line] = []
    number, begins = 0, 0  # the run that a span starts in, and where that is in the text
    for start, end in spans:
        line: Line = []
        while number < len(runs):
            text, style = runs[number]
            if begins < end and (piece := text[max(0, start - begins) : end - begins]):
                line.append(Segment(piece, style))
            if begins + len(text) >= end:
                break
            begins += len(text)
            number += 1
        lines.append(line)
    return lines


def _at_words(text: str, start: int, end: int, width: int) -> Iterator[Span]:
    part = text[start:end]
    if part.isascii():
        return _at_spaces(text, start, end, width)
    if cell_len(part) <= width:
        return iter([(start, end)])
    return _between_words(text, start, end, width)


def _at_spaces(text: str, start: int, end: int, width: int) -> Iterator[Span]:
    """The quick way, where each sign is one cell."""
    while end - start > width:
        at = text.rfind(" ", start + 1, start + width + 1)
        if at < 0 or not text[start:at].strip(" "):
            yield start, start + width
            start += width
            continue
        line = text[start:at].rstrip(" ")
        yield start, start + len(line)
        start = at + 1
        while start < end and text[start] == " ":
            start += 1
    if start < end or not text[start:end]:
        yield start, end


def _between_words(text: str, start: int, end: int, width: int) -> Iterator[Span]:
    begins = stops = start  # of the line so far
    cells = 0
    for word in _WORD.finditer(text, start, end):
        size, space = cell_len(word[0]), word.start() - stops
        if cells + space + size > width:
            if cells:
                yield begins, stops
            begins, cells, space = word.start(), 0, 0
        stops = word.end()
        cells += space + size
        if cells > width:
            *full, last = _anywhere(text, begins, stops, width)
            yield from full
            begins, cells = last[0], cell_len(text[last[0] : stops])
    if begins < stops or begins == start:
        yield begins, stops


def _behind_spaces(text: str, start: int, end: int, width: int) -> Iterator[Span]:
    if not text[start:end].isascii():
        yield from _anywhere(text, start, end, width)
        return
    while end - start > width:
        stop = text.rfind(" ", start + width * 2 // 3, start + width) + 1 or start + width
        yield start, stop
        start = stop
    yield start, end


def _anywhere(text: str, start: int, end: int, width: int) -> Iterator[Span]:
    if end - start <= width and text[start:end].isascii():
        yield start, end
        return
    last = start
    for few in range(start, end, _FEW) or [start]:
        for piece in chop_cells(text[few : min(few + _FEW, end)], width):
            yield last, last + len(piece)
            last += len(piece)
