"""What the worker's events mean to the parent, and its death; an answer's become chunks and the finish."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from phi4local import errors
from phi4local.backends.process import Worker, WorkerDied
from phi4local.conversation import ThinkSplitter
from phi4local.engine import Chunk, Finish, Load, Stats
from phi4local.fit import Use


class Answer:
    """One answer as it arrives: pieces of text in, chunks and the finish out. `number` 0: not asked for yet."""

    def __init__(self, started: float) -> None:
        self.number = 0
        self.cancelled = False
        self.finished = False
        self.began = False
        self._started = started
        self._first_seconds = 0.0
        self._splitter = ThinkSplitter()

    def end_by(self, seconds: float, worker: Worker) -> None:
        """End the worker when this answer, cancelled by now, has not ended after so many seconds."""

        def end() -> None:
            if not self.finished:
                worker.end_overdue()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()

    def rendered(self, event: Any) -> None:
        """The template has run; it may have begun the thinking itself (the worker's own errors)."""
        self.finished = ends(event)
        self._splitter = ThinkSplitter(thinking=checked(event)["rendered"]["thinking"])

    def heard(self, event: Any) -> Iterator[Chunk | Finish]:
        """What an event means to the caller (the worker's own errors)."""
        if isinstance(event, str):
            parts = self._splitter.feed(event)
        else:
            self.finished = ends(event)
            checked(event)
            parts = self._splitter.end()
        if not self.began and (parts or self.finished):
            self._first_seconds = time.perf_counter() - self._started
        for kind, text in parts:
            self.began = True
            yield Chunk(text, kind)
        if self.finished:
            yield Finish(event["finish"]["reason"], self._stats(event["finish"]))

    def _stats(self, cost: dict[str, Any]) -> Stats:
        return Stats(
            prompt_tokens=cost["prompt_tokens"],
            cached_tokens=cost["cached_tokens"],
            generation_tokens=cost["generation_tokens"],
            prompt_tps=_rate(cost["read_tokens"], cost["prompt_seconds"]),
            generation_tps=_rate(cost["generation_tokens"], cost["generation_seconds"]),
            ttft_seconds=self._first_seconds,
        )


def checked(event: Any) -> Any:
    """The event, unless it is an error of the worker, which is raised here."""
    if isinstance(event, dict) and "error" in event:
        known = dict(event["error"])
        kind, message = known.pop("type"), printable(known.pop("message"))
        raise getattr(errors, kind)(message, **known)
    return event


def load_of(facts: dict[str, Any]) -> Load:
    """A `Load` from the worker's JSON."""
    uses = {key: {device: Use(**use) for device, use in facts[key].items()} for key in ("predicted", "took")}
    return Load(**facts | uses)


def printable(text: str) -> str:
    """One line without control characters: what llama.cpp says may come from a foreign file."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def error_of(death: WorkerDied, name: str, reinstall: str) -> errors.Phi4LocalError:
    """What the death of a worker with the model `name` means to the user, once nothing more is done about it."""
    if death.phase == "template" and (death.overdue or death.crashed):
        return errors.FormatError(
            f"The chat template of `{name}` did not come to an end", hint="Get another build of the model"
        )
    again = _DAMAGED if death.phase == "load" else _AGAIN
    if death.overdue:
        return errors.BackendError(f"The engine did not {_DUTIES[death.phase]} in time and was ended", hint=again)
    said = f": {printable(death.last_line)}" if death.explained and death.last_line else ""
    failed_to_run = death.phase in ("start", "load") and death.explained and not death.crashed
    hint = reinstall if failed_to_run else _HINTS.get(death.cause, again)
    return errors.BackendError(f"The engine's process ended with {death.cause}{said}", hint=hint)


def ends(event: Any) -> bool:
    """Whether nothing more comes of the answer."""
    return isinstance(event, dict) and ("finish" in event or "error" in event)


_DUTIES = {
    "start": "start",
    "load": "load the model",
    "count": "count the tokens",
    "cancel": "stop",
    "work": "answer",
    "save": "keep its state",
}
_AGAIN = "Ask again: the engine starts anew by itself"
_DAMAGED = (
    "The file may be damaged (`phi4local verify` checks builds), or this machine needs another build of the model"
)
_HINTS = {"SIGKILL": "Perhaps memory ran out: choose a smaller build or a smaller `--context`"}


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
