"""How long the answers of a chat took: the last one and percentiles, from what was kept with each. Knows no widget.

What was kept may be damaged: whatever is not a sensible number is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Latency:
    """`ttft_seconds` and `generation_tps` are of the chat's answers, the last one at the end."""

    ttft_seconds: tuple[float, ...] = ()
    generation_tps: tuple[float, ...] = ()
    prompt_tokens: int = 0  # these four: of the last answer
    cached_tokens: int = 0
    generation_tokens: int = 0
    prompt_tps: float = 0.0

    @property
    def answers(self) -> int:
        return len(self.ttft_seconds)


def latency_of(stats: Sequence[Mapping[str, Any] | None]) -> Latency:
    """The answers that have a time of their first token, in their order."""
    told = [one for one in stats if isinstance(one, Mapping) and number(one, "ttft_seconds")]
    if not told:
        return Latency()
    last = told[-1]
    return Latency(
        tuple(number(one, "ttft_seconds") for one in told),
        tuple(tps for one in told if (tps := number(one, "generation_tps"))),
        prompt_tokens=int(number(last, "prompt_tokens")),
        cached_tokens=int(number(last, "cached_tokens")),
        generation_tokens=int(number(last, "generation_tokens")),
        prompt_tps=number(last, "prompt_tps"),
    )


def number(stats: Mapping[str, Any], name: str) -> float:
    """A positive number, or 0 for whatever else stands there."""
    value = stats.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return 0.0
    try:
        return float(value) if value > 0 and math.isfinite(value) else 0.0
    except OverflowError:  # a whole number of hundreds of digits
        return 0.0


def percentile(values: Sequence[float], percent: int, *, best_first: bool = True) -> float | None:
    """The nearest rank: `percent` of the answers were as good as this or better; None without any.

    Of times the smallest are the best, of speeds the largest (`best_first` False).
    """
    if not values:
        return None
    ranked = sorted(values, reverse=not best_first)
    return ranked[max(0, -(-percent * len(ranked) // 100) - 1)]
