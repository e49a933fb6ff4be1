"""The parent's end of a worker process: spoken to in JSON lines, expected to die at any moment, never left behind.

A worker ends when its standard input ends, so it cannot outlive this process. Knows no engine and no message.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_LOG_BYTES = 1 << 20
_LOG_TAIL_BYTES = 4096
_ENDING_SECONDS = 2.0  # for a process whose pipes have ended
_MOMENT_SECONDS = 0.2  # for one that was killed, before it is left to a thread
_LEAVING_SECONDS = 10.0  # for those, before another is started
_PACKAGES = Path(__file__).resolve().parents[2]
CRASHES = frozenset(("SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS", "SIGFPE", "SIGTRAP", "SIGSYS"))
_OVERDUE, _GARBLED, _MUTE, _STOPPED = "a missed deadline", "a garbled message", "closed pipes", "a stop"
# An abort says why, without calling a debugger. And threads that wait for each other give the processor away after a
# tenth of a millisecond instead of 15: next to one busy program that is 30 tokens a second instead of 3.
ENGINE_VARIABLES = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "1000"}
_WINDOWS_ERRORS = 0xC0000000  # an exception code where other systems have a signal


class WorkerDied(Exception):
    """The process is gone: `phase` is what it was doing, `cause` a signal's name, a status or why it was ended.

    `crashed`: of its own fault, in native code. `overdue`: it took too long. `stopped`: by `Worker.stop`, from another
    thread. `explained`: `last_line` may say why.
    """

    def __init__(self, phase: str, status: int, ended_for: str, last_line: str) -> None:
        super().__init__(f"{phase}: {status} {ended_for}")
        self.phase = phase
        self.last_line = last_line
        self.cause = ended_for or cause(status)
        self.overdue = ended_for == _OVERDUE
        self.stopped = ended_for == _STOPPED
        self.crashed = not ended_for and (self.cause in CRASHES or status >= _WINDOWS_ERRORS)
        self.explained = not ended_for and (status == -signal.SIGABRT or 0 <= status < _WINDOWS_ERRORS)


def cause(status: int) -> str:
    """A signal's name, or the exit status."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"status {status:#x}" if status >= _WINDOWS_ERRORS else f"status {status}"


class Worker:
    """One running process. What it prints to standard error is added to the file `log`; `variables` are defaults."""

    def __init__(self, command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> None:
        self.phase = "start"
        self._ended_for = ""
        self._log = _open_log(log)
        weakref.finalize(self, self._log.close)
        self._log_start = self._log.seek(0, os.SEEK_END)
        _wait_for_leaving()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**(variables or {}), **environment()},
            **own_group(),
        )
        self._finish = weakref.finalize(self, _end, self._process)

    @property
    def alive(self) -> bool:
        """Whether the process runs; asks the system and never waits, also for other threads."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the process now, from any thread and whatever it does; who talks with it meets WorkerDied."""
        self._end(_STOPPED)
        self._finish()

    def send(self, request: Mapping[str, Any]) -> None:
        """Write one request (WorkerDied)."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):  # ValueError: the pipe was closed by stop()
            raise self._death() from None

    def receive(self) -> Any:
        """Wait for the next event (WorkerDied)."""
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
            if line.endswith(b"\n"):
                return json.loads(line)
        except ValueError:  # not JSON, or the pipe was closed by stop()
            self._end(_GARBLED)
        raise self._death()

    @contextlib.contextmanager
    def deadline(self, phase: str, seconds: float) -> Iterator[None]:
        """While the block runs the process is in `phase`; it is ended when that takes longer."""
        self.phase = phase
        timer = threading.Timer(seconds, self.end_overdue)
        timer.daemon = True
        try:
            timer.start()
            yield
        finally:
            timer.cancel()
            self.phase = "work"

    def end_overdue(self) -> None:
        """End the process because it took too long, from any thread."""
        self._end(_OVERDUE)

    def _end(self, why: str) -> None:
        if self.alive:
            self._ended_for = self._ended_for or why
            self._process.kill()

    def _death(self) -> WorkerDied:
        if not self._ended_for:
            try:
                self._process.wait(_ENDING_SECONDS)  # its pipes end before it does, and its status tells why
            except subprocess.TimeoutExpired:
                self._end(_MUTE)
        self._finish()
        return WorkerDied(self.phase, self._process.returncode or 0, self._ended_for, self._last_line())

    def _last_line(self) -> str:
        """The last thing that the process said, without the folder of the source file that it names."""
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(min(end, max(self._log_start, end - _LOG_TAIL_BYTES)))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return re.sub(r"^\S*/(?=[\w.-]+:\d+: )", "", lines[-1].strip()) if lines else ""


def _open_log(path: Path) -> Any:
    """The log, unbuffered; a nameless file in its place where it cannot be written (a read-only disk)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b", buffering=0)
    except OSError:
        return tempfile.TemporaryFile(buffering=0)
    if file.seek(0, os.SEEK_END) > _LOG_BYTES:
        file.truncate(0)
    return file


def environment() -> dict[str, str]:
    """The worker finds this very package, installed or not."""
    installed = str(_PACKAGES) in sysconfig.get_paths().values()
    paths = ["" if installed else str(_PACKAGES), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and take it in; one with much memory to give back is not waited for, but left to a thread.

    By a signal, because a process that is itself stopped does not see its pipes end. And they are closed only after it
    is gone: before that, a thread that waits in a pipe would not let go of it.
    """
    process.kill()
    try:
        process.wait(_MOMENT_SECONDS)
    except subprocess.TimeoutExpired:
        _leaving.add(process)
        with contextlib.suppress(RuntimeError):  # at the interpreter's end there are no new threads, nor a need for one
            threading.Thread(target=_take_in, args=(process,), daemon=True).start()
    else:
        _take_in(process)


_leaving: set[subprocess.Popen[bytes]] = set()  # killed, and not gone yet


def _take_in(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    _leaving.discard(process)


def _wait_for_leaving() -> None:
    """The memory of what was ended is free before anybody measures what is."""
    for process in tuple(_leaving):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LEAVING_SECONDS)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started with `own_group` and has not ended by itself, and what it has started."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def own_group() -> dict[str, Any]:
    """Ctrl-C in the terminal reaches this process alone."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"process_group": 0}


def python_module(name: str) -> tuple[str, ...]:
    """The command that runs a module; -P keeps the current folder's files from being taken for packages."""
    return (sys.executable, "-P", "-m", name)
