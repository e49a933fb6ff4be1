"""What takes time, done in order by a thread of its own while the screen goes on. Knows nothing of what is done.

Not a worker of Textual: leaving the program waits for those, and a disk may take seconds.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from textual.message import Message
from textual.message_pump import MessagePump

Result = TypeVar("Result")


class Errands:
    """A queue of work and the thread that does it; each outcome comes back to the owner as `Done`."""

    class Done(Message):
        """`finish` hands the result on, or raises what the work raised; to be called by the owner's handler."""

        def __init__(self, future: Future[Any], then: Callable[[Any], None]) -> None:
            super().__init__()
            self._future = future
            self._then = then

        def finish(self) -> None:
            self._then(self._future.result())

    def __init__(self, owner: MessagePump) -> None:
        self._owner = owner
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def start(self) -> None:
        """Begin, in the owner's context; what was asked for before waits until then."""
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._work,), name="errands", daemon=True).start()

    def run(self, work: Callable[[], Result], then: Callable[[Result], None]) -> None:
        """Do `work` after what was asked for before; `then` gets its result in the owner's thread."""
        self._queue.put(lambda: self._do(work, then))

    def close(self) -> None:
        """Begin nothing that is asked for from now on; what was asked for before is still done."""
        self._queue.put(None)

    def _work(self) -> None:
        while (errand := self._queue.get()) is not None:
            errand()

    def _do(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        future: Future[Any] = Future()
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  raised again where the owner takes the outcome
            future.set_exception(error)
        with contextlib.suppress(RuntimeError):  # the program is leaving, and its loop is closed
            self._owner.post_message(self.Done(future, then))
