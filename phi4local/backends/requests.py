"""What the parent asks of a worker besides answers: each request with its deadline, and what came of it.

A worker that dies of one, or is ended because it took too long, is a WorkerDied; its own errors come as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phi4local.backends.answer import checked
from phi4local.backends.load_settings import Budget, LoadSettings
from phi4local.backends.process import Worker, WorkerDied
from phi4local.backends.states import room_bytes, writing_state
from phi4local.conversation import Message
from phi4local.errors import Phi4LocalError
from phi4local.files import atomic_write

_DISK_BYTES_PER_SECOND = 100e6
_TEXT_BYTES_PER_SECOND = 100e3


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the worker may take before it is ended; `load_seconds` grows with what is read, written or counted."""

    load_seconds: float = 20.0
    template_seconds: float = 5.0
    cancel_seconds: float = 10.0


def load(worker: Worker, settings: LoadSettings, budget: Budget, deadlines: Deadlines) -> Any:
    """Load the model; the facts about it."""
    request = {"op": "load", "settings": asdict(settings), "budget": asdict(budget)}
    placed_bytes = _event("load", worker, deadlines.load_seconds, request)["placed"]
    return _event("load", worker, deadlines.load_seconds + placed_bytes / _DISK_BYTES_PER_SECOND)["loaded"]


def count(worker: Worker, messages: Sequence[Message], deadlines: Deadlines) -> int:
    """How many tokens the prompt of a conversation takes."""
    request = {"op": "count", "messages": [asdict(message) for message in messages]}
    _event("template", worker, deadlines.template_seconds, request)
    text_bytes = sum(len(message.content) for message in messages)
    counted: int = _event("count", worker, deadlines.load_seconds + text_bytes / _TEXT_BYTES_PER_SECOND)["counted"]
    return counted


def save(worker: Worker, path: Path, deadlines: Deadlines) -> int:
    """How many bytes the worker has written, 0: none. The file gets its name here: a death leaves nothing behind."""
    needed = _event("save", worker, deadlines.load_seconds, {"op": "state_bytes"})["state_bytes"]
    seconds = deadlines.load_seconds + needed / _DISK_BYTES_PER_SECOND
    with writing_state(path.parent, needed):
        if not 0 < needed <= room_bytes(path.parent):
            return 0
        with atomic_write(path) as file:
            saved: int = _event("save", worker, seconds, {"op": "save", "path": file.name})["saved"]
    return saved


def restore(worker: Worker, path: Path, deadlines: Deadlines) -> int:
    """How many tokens the worker took over; a file that it dies of is removed (WorkerDied if it was stopped)."""
    try:
        seconds = deadlines.load_seconds + path.stat().st_size / _DISK_BYTES_PER_SECOND
        event = _event("restore", worker, seconds, {"op": "restore", "path": str(path)})
    except WorkerDied as death:
        if death.stopped:  # the file is not to blame
            raise
        with contextlib.suppress(OSError):
            path.unlink()
    except (OSError, Phi4LocalError):  # no file, or no memory for the context that it needs
        pass
    else:
        return int(event["restored"])
    return 0


def _event(phase: str, worker: Worker, seconds: float, request: Mapping[str, Any] | None = None) -> Any:
    """The next event, after the request if there is one; a worker whose answer nobody waits for is ended."""
    try:
        with worker.deadline(phase, seconds):
            if request:
                worker.send(request)
            event = worker.receive()
    except BaseException:
        worker.stop()
        raise
    return checked(event)
