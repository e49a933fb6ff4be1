"""Failures that may pass: how often and how soon to try again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import NoReturn

from phi4local.errors import DownloadError

_DELAYS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each attempt that follows one without progress
_LONGEST_WAIT_SECONDS = 300
_TICK_SECONDS = 0.2
_PROGRESS_BYTES = 1 << 16
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_AGAIN = "Run the same command again: what is here already is not fetched twice"


class TransientError(Exception):
    """The network or the hub failed in a way that may pass; `wait_seconds` is what the server asked for."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class Retries:
    """Counts failures since the last progress that is worth the name."""

    def __init__(self) -> None:
        self.failures = 0
        self._progress_bytes = 0

    def progressed(self, count_bytes: int) -> None:
        """So much more has arrived."""
        self._progress_bytes += count_bytes
        if self._progress_bytes >= _PROGRESS_BYTES:
            self.failures = self._progress_bytes = 0

    def pause(self, error: TransientError, longest_seconds: float = _LONGEST_WAIT_SECONDS) -> Iterator[None]:
        """Wait before the next attempt, a tick at a time, so that a caller stays awake (DownloadError: no more)."""
        if self.failures == len(_DELAYS):
            give_up(error)
        seconds = _DELAYS[self.failures] * random.uniform(0.8, 1.2)
        self.failures += 1
        if error.wait_seconds is not None:
            if error.wait_seconds > longest_seconds:
                raise DownloadError(
                    f"{error}; it asks to wait {error.wait_seconds:.0f} seconds", hint="Try again after that"
                )
            seconds = max(seconds, error.wait_seconds)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            yield
            time.sleep(min(left, _TICK_SECONDS))


def give_up(error: TransientError) -> NoReturn:
    """The failure has not passed."""
    raise DownloadError(f"{error}, {len(_DELAYS) + 1} times in a row", hint=_AGAIN) from None


def wait_of(headers: dict[str, str]) -> float | None:
    """Seconds that a server asks for: `Retry-After: 5`, or the Hub's `RateLimit: "api";r=0;t=5`."""
    after = headers.get("retry-after", "").strip()
    if after.isascii() and after.isdigit():
        return float(after[:9])
    parts = dict(part.strip().partition("=")[::2] for part in headers.get("ratelimit", "").split(";"))
    left = parts.get("t", "")
    return float(left[:9]) if left.isascii() and left.isdigit() and parts.get("r") == "0" else None
