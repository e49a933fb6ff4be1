"""The parent's end of a worker: whatever the process does, it is understood, ended and taken in."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from phi4local.backends.process import Worker, WorkerDied

READ = "import sys, os, time, signal\nline = sys.stdin.readline()\n"


def worker(tmp_path: Path, program: str) -> Worker:
    return Worker([sys.executable, "-c", READ + program], tmp_path / "log" / "worker.log")


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def death(running: Worker) -> WorkerDied:
    with pytest.raises(WorkerDied) as caught:
        running.receive()
    return caught.value


def test_lines_go_both_ways(tmp_path: Path) -> None:
    running = worker(tmp_path, "print(line.strip(), flush=True); print('\"é\"', flush=True); sys.stdin.read()")
    running.send({"op": "é"})
    assert running.receive() == {"op": "é"}
    assert running.receive() == "é"
    assert running.alive
    running.stop()
    assert not running.alive
    assert not children()


@pytest.mark.parametrize(
    ("program", "cause", "crashed", "line"),
    [
        ("sys.exit(3)", "status 3", False, ""),
        ("raise ImportError('no engine')", "status 1", False, "ImportError: no engine"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV", True, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL", False, ""),
        ("sys.stderr.write('a\\n/x/ggml.c:12: GGML_ASSERT(x) failed\\n'); os.abort()", "SIGABRT", True,
         "ggml.c:12: GGML_ASSERT(x) failed"),
        ("print('{\"half\": ', end='', flush=True)", "status 0", False, ""),
        ("print('nonsense', flush=True); sys.stdin.read()", "a garbled message", False, ""),
    ],
)  # fmt: skip
def test_every_end_is_told(tmp_path: Path, program: str, cause: str, crashed: bool, line: str) -> None:
    running = worker(tmp_path, program)
    running.send({})
    end = death(running)
    assert (end.cause, end.crashed, end.overdue, end.last_line) == (cause, crashed, False, line)
    assert not running.alive
    assert not children()
    for _ in range(2):
        with pytest.raises(WorkerDied):
            running.send({})
        assert death(running).cause == cause


def test_variables_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHI_SET", "by the user")
    program = "print(json.dumps([os.environ['PHI_SET'], os.environ['PHI_UNSET']]), flush=True)"
    command = [sys.executable, "-c", f"import json\n{READ}{program}"]
    running = Worker(command, tmp_path / "worker.log", {"PHI_SET": "by us", "PHI_UNSET": "by us"})
    running.send({})
    assert running.receive() == ["by the user", "by us"]
    running.stop()


def test_a_deadline_ends_the_process(tmp_path: Path) -> None:
    running = worker(tmp_path, "print('1', flush=True)\nwhile True: pass")
    running.send({})
    with running.deadline("first", 30):
        assert running.receive() == 1
    started = time.monotonic()
    with running.deadline("second", 0.2):
        end = death(running)
    assert (end.phase, end.overdue, end.crashed) == ("second", True, False)
    assert time.monotonic() - started < 2
    assert not children()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_deaf_process_is_ended_by_force(tmp_path: Path, stopped: bool) -> None:
    running = worker(tmp_path, "print('1', flush=True)\ntime.sleep(60)")
    running.send({})
    assert running.receive() == 1
    if stopped:
        children()[0].send_signal(signal.SIGSTOP)
    started = time.monotonic()
    running.stop()
    assert time.monotonic() - started < 0.3
    assert not children()


@pytest.mark.parametrize("request_letters", [1, 1_000_000])  # the second fills the pipe
def test_who_talks_with_a_process_that_is_stopped_meets_its_death(tmp_path: Path, request_letters: int) -> None:
    running = worker(tmp_path, "")
    children()[0].send_signal(signal.SIGSTOP)
    stopping = threading.Timer(0.2, running.stop)
    stopping.start()
    started = time.monotonic()
    with contextlib.suppress(WorkerDied):
        running.send({"op": "x" * request_letters})
    end = death(running)
    assert (end.stopped, end.crashed) == (True, False)
    assert time.monotonic() - started < 1
    stopping.join()
    assert not children()


def test_what_takes_long_to_go_is_waited_for_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process with gigabytes of memory does."""
    monkeypatch.setattr("phi4local.backends.process._MOMENT_SECONDS", 0.0)
    for _ in range(5):
        running = worker(tmp_path, "bytearray(300_000_000)\nprint('1', flush=True)\ntime.sleep(60)")
        assert len(children()) == 1
        running.send({})
        assert running.receive() == 1
        running.stop()
    worker(tmp_path, "")
    assert not children()


def test_a_forgotten_worker_takes_its_process_along(tmp_path: Path) -> None:
    running = worker(tmp_path, "")
    assert len(children()) == 1
    del running
    gc.collect()
    assert not children()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_no_file_stays_open(tmp_path: Path) -> None:
    def count() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for program in ("sys.stdin.read()", "sys.exit(1)", "os.kill(os.getpid(), 11)") * 3:
        running = worker(tmp_path, program)
        running.send({})
        if program != "sys.stdin.read()":
            death(running)
        running.stop()
    del running
    assert count() == before


def test_the_log_stays_small(tmp_path: Path) -> None:
    for _ in range(4):
        running = worker(tmp_path, "sys.stderr.write('x' * 600_000 + '\\nlast\\n'); sys.exit(1)")
        running.send({})
        assert death(running).last_line == "last"
    assert (tmp_path / "log" / "worker.log").stat().st_size < 2_000_000


def test_an_old_log_is_not_taken_for_a_reason(tmp_path: Path) -> None:
    for program, line in (("sys.stderr.write('old\\n'); sys.exit(1)", "old"), ("sys.exit(1)", "")):
        running = worker(tmp_path, program)
        running.send({})
        assert death(running).last_line == line
