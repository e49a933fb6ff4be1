"""All that is printed: data on stdout, talk and progress on stderr, colour and bars only on a terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from phi4local.printing import printable, printable_lines

_WIDE_COLUMNS = 90  # below, a bar says how much in percent alone

Event = TypeVar("Event")
Result = TypeVar("Result")


class Bar(NamedTuple):
    """How far some work is: bytes, or things where they are counted; a total of 0 is not known."""

    what: str
    done: int
    total: int
    note: str = ""
    is_told: bool = False  # also where there is no terminal


def emit_json(value: Any) -> None:
    """One JSON value on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """Talk: one line on stderr."""
    sys.stderr.write(printable_lines(text) + "\n")


def heading(text: str) -> None:
    """A line that stands out on a terminal, and is plain text elsewhere."""
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    sys.stdout.write(f"\n\x1b[1m{text}\x1b[0m\n" if bold else f"\n{text}\n")


def is_narrow() -> bool:
    """Whether stdout is a terminal of fewer than 80 columns."""
    return sys.stdout.isatty() and shutil.get_terminal_size().columns < 80


def paragraph(text: str) -> None:
    """Sentences on stdout, broken into lines on a terminal."""
    lines = printable_lines(text).split("\n")
    if sys.stdout.isatty():
        width = max(40, min(100, shutil.get_terminal_size().columns))
        lines = [part for line in lines for part in textwrap.wrap(line, width) or [""]]
    sys.stdout.write("\n".join(lines) + "\n")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Columns on stdout; those in `right` are aligned to the right. Wide tables are not cut when piped."""
    lines = [heads, *([printable(cell, limit=1000) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        cells = [cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in _numbered(line, widths)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _numbered(line: Sequence[str], widths: list[int]) -> Iterable[tuple[int, tuple[str, int]]]:
    return enumerate(zip(line, widths, strict=True))


def record(facts: Iterable[tuple[str, str]]) -> None:
    """Facts on stdout, one a line, their values in one column."""
    pairs = [(name, printable(value, limit=1000)) for name, value in facts]
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        sys.stdout.write(f"{name:{width}}  {value}\n")


def with_progress(
    work: Generator[Event, None, Result], describe: Callable[[Event], Bar], *, counted: bool = False
) -> Result:
    """Run work to its end with one bar at a time on a terminal.

    A bar begins where the work is when it is first heard of, so that rate and time left are those of this run.
    """
    if not sys.stderr.isatty():
        return _drain(work, describe)
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    amounts: list[progress.ProgressColumn] = [progress.MofNCompleteColumn()]
    if not counted:
        wide = console.width >= _WIDE_COLUMNS
        both = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
        amounts = [*both] if wide else [progress.TaskProgressColumn()]
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=None),
        *amounts,
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True) as bars:
        shown, task = None, progress.TaskID(0)
        try:
            while True:
                bar = describe(next(work))
                if bar.what != shown:
                    if shown is not None:
                        bars.remove_task(task)
                    shown, task = bar.what, bars.add_task("", total=bar.total or None, completed=bar.done)
                text = f"{bar.what}: {bar.note}" if bar.note else bar.what
                bars.update(task, completed=bar.done, total=bar.total or None, description=printable(text))
        except StopIteration as stop:
            result: Result = stop.value
            return result
        finally:
            work.close()


def _drain(work: Generator[Event, None, Result], describe: Callable[[Event], Bar]) -> Result:
    told = None
    try:
        while True:
            bar = describe(next(work))
            if bar.is_told and bar.what != told:
                told = bar.what
                say(told)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    finally:
        work.close()
