"""The turns of a transcript one below the other: where each begins, in lines. Knows no widget.

The heights of turns far away are guesses until somebody looks at them, because a chat of hundreds of messages has to
open at once. Places are therefore kept as lines of a turn, which stay right when those above turn out to be longer.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from ui.turn import Looks, Turn

_SPARE = 8  # turns on each side whose lines are kept after they have been near


class Spot(NamedTuple):
    """A line of a turn, counted from its first; below 0 it is that far above it."""

    turn: int
    within: int


class Column:
    """Turns and the lines that they begin at."""

    def __init__(self, turns: Sequence[Turn] = ()) -> None:
        self.turns = list(turns)
        self.starts = [0] * (len(self.turns) + 1)  # the last one is the end of them all
        self._is_stale = True  # a turn is known to begin elsewhere

    @property
    def height(self) -> int:
        return self.starts[-1]

    def add(self, turn: Turn) -> None:
        """One at the end, which has no height before the next `measure`."""
        self.turns.append(turn)
        self.starts.append(self.height)

    def index_at(self, line: int) -> int:
        """The turn that a line is in; the nearest one for a line outside."""
        return max(0, min(bisect_right(self.starts, line) - 1, len(self.turns) - 1))

    def spot(self, line: int) -> Spot:
        index = self.index_at(line)
        return Spot(index, line - self.starts[index])

    def line(self, spot: Spot) -> int:
        return self.starts[spot.turn] + spot.within

    def height_of(self, index: int) -> int:
        return self.starts[index + 1] - self.starts[index]

    def measure(self, width: int) -> None:
        """Find all beginnings anew."""
        self.starts = [0, *accumulate(turn.height(width) for turn in self.turns)]
        self._is_stale = False

    def make_around(self, spot: Spot, above: int, below: int, manner: tuple[int, Looks]) -> None:
        """Make the lines of the turns that are so near to a place; those far away are let go."""
        made, last = -spot.within, spot.turn
        for last in range(spot.turn, len(self.turns)):
            if made > below:
                break
            made += len(self.turns[last].lines(*manner))
        made, first = spot.within, spot.turn
        for first in range(spot.turn - 1, -1, -1):
            if made > above:
                break
            made += len(self.turns[first].lines(*manner))
        for turn in (*self.turns[: max(0, first - _SPARE)], *self.turns[last + 1 + _SPARE :]):
            turn.release()

    def is_made(self, first_line: int, last_line: int, manner: tuple[int, Looks]) -> bool:
        """Whether nothing from one line to another is a guess."""
        turns = self.turns[self.index_at(first_line) : self.index_at(last_line) + 1]
        return not self._is_stale and all(turn.is_made(*manner) for turn in turns)

    def make_some(self, manner: tuple[int, Looks], seconds: float) -> bool:
        """Turn guesses into lines for about so long, the newest first; whether any are left.

        `measure` has to follow.
        """
        until = time.perf_counter() + seconds
        guesses = [turn for turn in self.turns if not turn.is_measured(manner[0])]
        while guesses and time.perf_counter() < until:
            turn = guesses.pop()
            turn.lines(*manner)
            turn.release()
            self._is_stale = True
        return bool(guesses)
