"""Work in threads beside a screen: what comes of it is posted to one widget, in small messages.

The threads are daemons, so that quitting waits for none of them. Work is stopped at its next event, where its own
thread closes its generator; what it has done stays, and the same work goes on from there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from textual.message import Message
from textual.message_pump import MessagePump

from quant.progress import Progress

_TELL_SECONDS = 0.1
_PACE_SECONDS = 6.0

T = TypeVar("T")
Tell = Callable[[Progress], None]


class Stopped(Exception):
    """The user wants no more of it."""


class Job(Generic[T]):
    """One piece of work: `work` runs in a thread and is given a `tell`; `settle` hands what came of it to `done`."""

    class Told(Message, bubble=False):
        """How far it is, ten times a second at most."""

        def __init__(self, job: Job[Any], progress: Progress) -> None:
            super().__init__()
            self.job = job
            self.progress = progress

    class Ended(Message, bubble=False):
        """The thread has nothing more to say; `job.settle()` is to be called."""

        def __init__(self, job: Job[Any]) -> None:
            super().__init__()
            self.job = job

    def __init__(self, owner: MessagePump, work: Callable[[Tell], T], done: Callable[[T], None]) -> None:
        self.is_stopping = False
        self._owner, self._work, self._done = owner, work, done
        self._stage, self._told_at = "", 0.0
        self._result: list[T] = []
        self._error: BaseException | None = None

    def start(self) -> Job[T]:
        threading.Thread(target=self._run, name="job", daemon=True).start()
        return self

    def stop(self) -> None:
        """Let it end at its next event."""
        self.is_stopping = True

    def settle(self) -> None:
        """Hand the result over, or raise what the thread has met: Stopped, Phi4LocalError, or a bug as it is."""
        if self._error:
            raise self._error
        self._done(self._result[0])

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._tell))
        except BaseException as error:  # noqa: BLE001  raised again by `settle`, where it is not lost
            self._error = error
        self._post(Job.Ended(self))

    def _tell(self, progress: Progress) -> None:
        if self.is_stopping:
            raise Stopped
        now = time.monotonic()
        if progress.stage != self._stage or now - self._told_at >= _TELL_SECONDS:
            self._stage, self._told_at = progress.stage, now
            self._post(Job.Told(self, progress))

    def _post(self, message: Message) -> None:
        with contextlib.suppress(RuntimeError):  # the application has ended
            self._owner.post_message(message)


def follow(work: Generator[Progress, None, T], tell: Tell) -> T:
    """Run work to its end and tell of each event; it is closed where `tell` has enough."""
    with contextlib.closing(work):
        while True:
            try:
                progress = next(work)
            except StopIteration as stop:
                result: T = stop.value
                return result
            tell(progress)


class Pace:
    """Bytes per second over the last seconds; what was here when it began is not counted."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, seconds: float, done_bytes: int) -> None:
        """It is so far at that time."""
        if self._seen and done_bytes < self._seen[-1][1]:  # begun anew
            self._seen.clear()
        self._seen.append((seconds, done_bytes))
        while len(self._seen) > 2 and seconds - self._seen[0][0] > _PACE_SECONDS:
            self._seen.popleft()

    @property
    def bytes_per_second(self) -> float:
        """0 where nothing can be said yet."""
        if len(self._seen) < 2:
            return 0.0
        (begun, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - begun) if now - begun >= 2 * _TELL_SECONDS else 0.0

    def seconds_left(self, total_bytes: int) -> float | None:
        """Until the whole is done, if it goes on like this."""
        pace = self.bytes_per_second
        return max(0, total_bytes - self._seen[-1][1]) / pace if pace else None
