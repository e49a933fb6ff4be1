"""Runs one outside tool within bounds of time and output, and leaves nothing of it behind. Nothing here raises.

A tool may hang, flood, die, or start a child that keeps the pipe open after it. So each runs in a session of its own
that is killed as a whole, and whoever asks gets a text or the reason why there is none.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

_MAX_OUTPUT_BYTES = 1 << 20
_PIECE_BYTES = 1 << 16
_LOOK_SECONDS = 0.05  # how soon it is noticed that a tool has ended although its pipe is still open
_REAP_SECONDS = 0.1  # a process inside a broken driver does not even die when killed: it is not waited for

LATE = "did not answer in time"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool printed; where `problem` says why, there is no text to trust."""

    text: str = ""
    problem: str = ""


def ask(command: Sequence[str], deadline: float, trusted: Collection[int] = (0,)) -> Answer:
    """Run it until `deadline` (of `time.monotonic`); the exit statuses in `trusted` are those whose output counts."""
    if time.monotonic() >= deadline:
        return Answer(problem=LATE)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Answer(problem=f"could not be run: {error}")
    try:
        return _answer(process, deadline, trusted)
    finally:
        _end(process)


def _answer(process: subprocess.Popen[bytes], deadline: float, trusted: Collection[int]) -> Answer:
    try:
        printed = _read(process, deadline)
        if len(printed) > _MAX_OUTPUT_BYTES:
            return Answer(problem="printed more than anything it could mean")
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Answer(problem=LATE)
    except OSError as error:
        return Answer(problem=f"could not be read: {error}")
    if status < 0:
        return Answer(problem=f"was ended by signal {-status}")
    if status not in trusted:
        return Answer(problem=f"failed with exit status {status}")
    return Answer(printed.decode("utf-8", errors="replace"))


def _read(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Its output up to its end, the deadline, or one piece over the limit."""
    assert process.stdout is not None
    printed = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left_seconds := deadline - time.monotonic()) > 0 and len(printed) <= _MAX_OUTPUT_BYTES:
            if selector.select(min(left_seconds, _LOOK_SECONDS)):
                piece = os.read(process.stdout.fileno(), _PIECE_BYTES)
                if not piece:
                    break
                printed += piece
            elif process.poll() is not None:  # ended, and the pipe is empty: a child that it left holds it open
                break
    return bytes(printed)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it with all its children, and close the pipe."""
    with suppress(OSError):  # the group is gone already; macOS refuses to signal one that only waits to be reaped
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_REAP_SECONDS)
    if process.stdout is not None:
        process.stdout.close()
