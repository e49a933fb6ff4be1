"""One long work at a time, in a thread, and how far it is: its stage, a bar, bytes, speed, time left.

It knows nothing of what the work is about.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Button, Label, ProgressBar

from phi4local.errors import Phi4LocalError
from phi4local.printing import printable
from phi4local.units import duration, file_size
from quant.progress import Progress
from ui.dialogs import Confirm
from ui.jobs import Job, Pace, Stopped, Tell

T = TypeVar("T")

# stage of a work -> what is said of it
STAGES = {
    "quantize": "Quantizing",
    "check": "Checking",
    "verify": "Checking what is here",
    "wait": "Waiting for another process that works on it",
    "headers": "Reading headers",
    "fetch": "Fetching",
    "again": "Fetching again, from the beginning",
    "build": "Fetching and quantizing",
    "mend": "Mending",
}


class WorkPanel(Vertical):
    """Two lines that are shown while there is work."""

    class Changed(Message):
        """Work has begun, or ended: well, with an error, or stopped by the user with `stopped` to be said."""

        def __init__(self, *, stopped: str = "", error: Phi4LocalError | None = None) -> None:
            super().__init__()
            self.stopped = stopped
            self.error = error

    def __init__(self) -> None:
        super().__init__(classes="-idle")
        self._job: Job[Any] | None = None
        self._title, self._stage, self._keeps = "", "", ""
        self._pace = Pace()

    def compose(self) -> ComposeResult:
        with Horizontal(classes="work-line"):
            yield Label("", id="work-title", markup=False)
            stop = Button("Stop", id="work-stop", compact=True)
            stop.can_focus = False
            yield stop
        with Horizontal(classes="work-line"):
            yield ProgressBar(show_percentage=False, show_eta=False, id="work-bar")
            yield Label("", id="work-numbers", markup=False)

    def on_unmount(self) -> None:
        if self._job:
            self._job.stop()

    @property
    def is_busy(self) -> bool:
        return self._job is not None

    def begin(self, title: str, work: Callable[[Tell], T], done: Callable[[T], None], keeps: str = "") -> None:
        """Start work and hand its result to `done`; `keeps` says what stays of it when it is stopped, if anything."""
        self._title, self._stage, self._keeps, self._pace = title, "", keeps, Pace()
        self._say("", "")
        self.query_one(ProgressBar).update(total=None)
        self.remove_class("-idle")
        self._job = Job(self, work, done).start()
        self.post_message(self.Changed())

    @on(Job.Told)
    def _told(self, event: Job.Told) -> None:
        if event.job.is_stopping or not self.is_attached:  # what comes while the screen is taken down
            return
        progress = event.progress
        if progress.stage != self._stage:
            self._stage, self._pace = progress.stage, Pace()
        self._pace.add(time.monotonic(), progress.done_bytes)
        stage = STAGES.get(progress.stage, progress.stage)
        self._say(f"{stage}: {progress.note}" if progress.note else stage, numbers(progress, self._pace))
        known = progress.total_bytes or None
        self.query_one(ProgressBar).update(total=known, progress=progress.done_bytes if known else 0)

    @on(Job.Ended)
    def _ended(self, event: Job.Ended) -> None:
        self._job = None
        if not self.is_attached:
            return
        self.add_class("-idle")
        changed = self.Changed()
        try:
            event.job.settle()
        except Stopped:
            changed = self.Changed(stopped=f"Stopped. {self._keeps}".strip())
        except Phi4LocalError as error:
            changed = self.Changed(error=error)
        self.post_message(changed)

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.ask_stop()

    def ask_stop(self) -> None:
        """Stop, but not before the user has said so again where something was done already."""
        if self._keeps and self._job and not self._job.is_stopping:
            question = Confirm(f"Stop the work on {self._title}?", note=self._keeps, yes="Stop", no="Go on")
            self.app.push_screen(question, lambda yes: self.stop() if yes else None)
        else:
            self.stop()

    def stop(self) -> None:
        """At its next event."""
        if self._job:
            self._job.stop()
            self._say("stopping…", "")

    def _say(self, stage: str, numbers: str) -> None:
        text = f"{self._title} · {stage}" if stage else self._title
        self.query_one("#work-title", Label).update(Content(printable(text)))
        self.query_one("#work-numbers", Label).update(Content(numbers))


def numbers(progress: Progress, pace: Pace) -> str:
    """Percent, bytes, speed and time left, as far as they are known."""
    if not progress.total_bytes:
        return file_size(progress.done_bytes) if progress.done_bytes else ""
    percent = min(100, progress.done_bytes * 100 // progress.total_bytes)
    parts = [f"{percent} %", f"{file_size(progress.done_bytes)} of {file_size(progress.total_bytes)}"]
    left = pace.seconds_left(progress.total_bytes)
    if pace.bytes_per_second:
        parts.append(f"{file_size(pace.bytes_per_second)}/s")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return " · ".join(parts)
