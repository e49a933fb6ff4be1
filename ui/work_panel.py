"""How far a long work is: what is done, a bar, bytes, speed, time left. Told by its owner, knows no work."""

from __future__ import annotations

import time

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Button, Label, ProgressBar

from phi4local.printing import printable
from phi4local.units import duration, file_size
from quant.progress import Progress
from ui.jobs import Pace

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
    """Two lines and a button to stop it; shown while there is work."""

    class StopWanted(Message):
        """The button was pressed."""

    def __init__(self) -> None:
        super().__init__(classes="-idle")
        self._title, self._stage = "", ""
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

    def begin(self, title: str) -> None:
        """Something is at work from now on; how far it is will be told."""
        self._title, self._stage, self._pace = title, "", Pace()
        self._say("", "")
        self.query_one(ProgressBar).update(total=None)
        self.remove_class("-idle")

    def tell(self, progress: Progress) -> None:
        """It is so far."""
        if progress.stage != self._stage:
            self._stage, self._pace = progress.stage, Pace()
        self._pace.add(time.monotonic(), progress.done_bytes)
        stage = STAGES.get(progress.stage, progress.stage)
        self._say(f"{stage}: {progress.note}" if progress.note else stage, numbers(progress, self._pace))
        known = progress.total_bytes or None
        self.query_one(ProgressBar).update(total=known, progress=progress.done_bytes if known else 0)

    def stopping(self) -> None:
        """It was told to stop and has not yet."""
        self._say("stopping…", "")

    def end(self) -> None:
        """Nothing is at work."""
        self.add_class("-idle")

    def _say(self, stage: str, numbers: str) -> None:
        text = f"{self._title} · {stage}" if stage else self._title
        self.query_one("#work-title", Label).update(Content(printable(text)))
        self.query_one("#work-numbers", Label).update(Content(numbers))

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.StopWanted())


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
