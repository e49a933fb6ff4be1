"""How far a long work is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes done of a stage's total; of quantizing, bytes of source weights. `note` is what it waits for."""

    stage: str
    done_bytes: int
    total_bytes: int
    note: str = ""
