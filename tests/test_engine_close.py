"""The engine is closed from any thread at any time, at once, and nobody else is kept waiting; no process is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from phi4local.backends.child import ChildEngine, Host
from phi4local.backends.load_settings import LoadSettings
from phi4local.conversation import Message
from phi4local.engine import Finish, GenerationOptions, Session
from phi4local.errors import BackendError, Phi4LocalError, UsageError
from tests.gguf_models import Geometry, write_random

ASK = [Message("user", "Hi")]
LONG_ASK = [Message("user", "x" * 6000)]  # read for seconds
HUGE_ASK = [Message("user", "x" * 500_000)]  # more than a pipe holds
FEW = GenerationOptions(max_tokens=3)
AT_ONCE, SOON = 0.3, 1.0
Deed = Callable[[ChildEngine, Session, Path], object]
DEEDS: dict[str, Deed] = {
    "stream": lambda _engine, session, _state: list(session.stream(LONG_ASK, FEW)),
    "stream what the pipe cannot hold": lambda _engine, session, _state: list(session.stream(HUGE_ASK, FEW)),
    "save": lambda _engine, session, state: session.save(state),
    "restore": lambda _engine, session, state: session.restore(state),
    "count": lambda engine, _session, _state: engine.count(LONG_ASK),
    "time": lambda engine, _session, _state: engine.time_tokens(6000, 3),
}
BUSY = ("stream", "time")  # what takes seconds also where the process is not stopped


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "slow.gguf"
    write_random(path, Geometry(hidden=256, layers=4, feed_forward=1024, context=8192))
    return path


@pytest.fixture
def engine(path: Path, tmp_path: Path) -> Iterator[ChildEngine]:
    engine = ChildEngine(LoadSettings(str(path), threads=1), Host(tmp_path / "state"))
    yield engine
    engine.close()
    assert not psutil.Process().children(recursive=True)


class Doing:
    """A deed in a thread of its own, and when and how it ended."""

    def __init__(self, deed: Callable[[], object]) -> None:
        self.error: Phi4LocalError | None = None
        self.ended = 0.0
        self._deed = deed
        self._thread = threading.Thread(target=self._do, daemon=True)
        self._thread.start()

    def _do(self) -> None:
        try:
            self._deed()
        except Phi4LocalError as error:
            self.error = error
        self.ended = time.monotonic()

    def wait(self) -> None:
        self._thread.join(20)
        assert self.ended


def close(engine: ChildEngine, *others: Doing) -> None:
    """Close it in another thread, as a screen does, with nobody's patience tried; whoever waited got an error."""
    started = time.monotonic()
    closing = Doing(engine.close)
    closing.wait()
    assert closing.ended - started < AT_ONCE
    for other in others:
        other.wait()
        assert other.ended - started < SOON
        assert other.error
        assert "closed" in other.error.message
    assert not engine.alive
    assert not psutil.Process().children(recursive=True)


@pytest.mark.parametrize("stopped", [False, True])
def test_an_idle_engine(engine: ChildEngine, stopped: bool) -> None:
    assert engine.alive
    if stopped:
        psutil.Process().children()[0].send_signal(signal.SIGSTOP)
    close(engine)
    close(engine)


@pytest.mark.parametrize(("deed", "stopped"), [*((deed, True) for deed in DEEDS), *((deed, False) for deed in BUSY)])
def test_an_engine_at_work(engine: ChildEngine, tmp_path: Path, deed: str, stopped: bool) -> None:
    session, state = engine.open_session(), tmp_path / "states" / "one.state"
    list(session.stream(ASK, FEW))
    assert session.save(state)
    if stopped:
        psutil.Process().children()[0].send_signal(signal.SIGSTOP)
    doing = Doing(lambda: DEEDS[deed](engine, session, state))
    time.sleep(0.3)
    close(engine, doing)
    assert isinstance(doing.error, BackendError)
    assert [file.name for file in state.parent.iterdir()] == [state.name]  # nor is a file blamed that was being read


@pytest.mark.parametrize("deed", DEEDS)
def test_who_waits_for_a_turn_that_nobody_gives_back(engine: ChildEngine, tmp_path: Path, deed: str) -> None:
    stream = engine.open_session().stream(ASK, GenerationOptions())
    next(stream)  # and never on: the turn is taken
    session = engine.open_session()
    doing = Doing(lambda: DEEDS[deed](engine, session, tmp_path / "one.state"))
    time.sleep(0.1)
    close(engine, doing)
    assert isinstance(doing.error, UsageError)
    with pytest.raises(BackendError, match="closed"):
        list(stream)


@pytest.mark.parametrize("pause", [0.0, 0.02, 0.1, 0.2])
@pytest.mark.parametrize("stopped", [False, True])
def test_an_engine_that_starts_anew(engine: ChildEngine, pause: float, stopped: bool) -> None:
    [worker] = psutil.Process().children()
    worker.kill()
    worker.wait()
    doing = Doing(lambda: list(engine.open_session().stream(LONG_ASK, FEW)))
    while not (others := psutil.Process().children()):
        time.sleep(0.001)
    if stopped:
        while "phi4local.backends.llamacpp_worker" not in others[0].cmdline():  # it is still this program's twin
            time.sleep(0.001)
        others[0].send_signal(signal.SIGSTOP)
    time.sleep(pause)
    close(engine, doing)


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.3])
def test_many_threads_at_once(engine: ChildEngine, tmp_path: Path, pause: float) -> None:
    session, state = engine.open_session(), tmp_path / "one.state"
    doings = [Doing(partial(deed, engine, session, state)) for deed in DEEDS.values()]
    time.sleep(pause)
    started = time.monotonic()
    for doing in [*doings, *(Doing(engine.close) for _ in range(4))]:
        doing.wait()
        assert doing.ended - started < SOON
    assert not psutil.Process().children(recursive=True)


def test_a_stopped_process_keeps_nobody_waiting_who_cancels(engine: ChildEngine) -> None:
    session = engine.open_session()
    [worker] = psutil.Process().children()
    worker.send_signal(signal.SIGSTOP)
    doing = Doing(lambda: list(session.stream(HUGE_ASK, FEW)))
    time.sleep(0.2)
    started = time.monotonic()
    session.cancel()
    assert time.monotonic() - started < 0.1
    close(engine, doing)


def test_being_alive_is_told_at_once(engine: ChildEngine) -> None:
    stream = engine.open_session().stream(ASK, GenerationOptions())
    next(stream)  # somebody has the turn
    started = time.monotonic()
    assert all(engine.alive for _ in range(1000))
    assert time.monotonic() - started < 0.5
    stream.close()


def test_a_death_is_seen_and_got_over(engine: ChildEngine) -> None:
    for _ in range(2):
        [worker] = psutil.Process().children()
        worker.kill()
        deadline = time.monotonic() + 1
        while engine.alive:
            assert time.monotonic() < deadline
        assert not psutil.Process().children()  # nor is it a zombie
        assert not engine.alive
        *_, finish = engine.open_session().stream(ASK, FEW)
        assert isinstance(finish, Finish)
        assert engine.alive


# --- the program leaves while the model is loaded --------------------------------------------------------------------

PROGRAM = """
import os, sys, threading, time
from pathlib import Path
import psutil
from phi4local.backends import open_engine
opened = []
def load():
    opened.append(open_engine(Path(sys.argv[1]), state_folder=Path(sys.argv[2]), threads=1))
threading.Thread(target=load, daemon=True).start()
while not psutil.Process().children():
    time.sleep(0.001)
time.sleep(float(sys.argv[3]))
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[4] == "_exit":
    os._exit(0)
"""


def all_stopped(pid: int) -> bool:
    """Whether each thread is; before that the process does not count as stopped when its parent leaves."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state == "T" for state in states)


@pytest.mark.parametrize("pause", [0.02, 0.15])
@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("way", ["_exit", "end"])
def test_a_program_that_leaves(path: Path, tmp_path: Path, way: str, stopped: bool, pause: float) -> None:
    command = [sys.executable, "-c", PROGRAM, str(path), str(tmp_path), str(pause), way]
    pipe, nowhere, root = subprocess.PIPE, subprocess.DEVNULL, Path(__file__).parents[1]
    # In a session of its own: a stopped process is woken by the end of its session's last other process.
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=nowhere, cwd=root, start_new_session=True
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        [worker] = psutil.Process(program.pid).children()
        if stopped:
            worker.send_signal(signal.SIGSTOP)
            while not all_stopped(worker.pid):
                time.sleep(0.001)
        program.stdin.close()
        program.wait(2)
        deadline = time.monotonic() + 3
        while (runs := worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE) and time.monotonic() < deadline:
            time.sleep(0.01)  # init takes a zombie in when it likes
        if runs:
            worker.kill()
        assert not runs
