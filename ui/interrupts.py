"""Ctrl-C while an answer comes: a cancellation, never an exception in the middle of the engine's work."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator

from phi4local.engine import Session


@contextlib.contextmanager
def on_interrupt(action: Callable[[], object]) -> Iterator[None]:
    """While the block runs Ctrl-C calls `action`; not where it is ignored, nor in a thread, which gets no signals."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield
        return
    try:
        signal.signal(signal.SIGINT, lambda _signal, _frame: action())
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def cancelling(session: Session) -> Iterator[None]:
    """While the block runs Ctrl-C cancels the session's answer, which then ends by itself.

    A thread of its own cancels: the signal may have come while this one was writing to the engine.
    """
    presses: queue.SimpleQueue[bool] = queue.SimpleQueue()  # the one queue that a signal handler may put into

    def cancel() -> None:
        while presses.get():
            session.cancel()

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    with on_interrupt(lambda: presses.put(True)):
        try:
            yield
        finally:
            presses.put(False)
            thread.join()
