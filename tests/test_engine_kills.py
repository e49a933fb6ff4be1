"""The engine's process is killed again and again, whatever it does; the next question works, and nothing remains.

PHI4LOCAL_KILLS sets how often.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from phi4local.backends.child import ChildEngine, Host
from phi4local.backends.load_settings import LoadSettings
from phi4local.conversation import Message
from phi4local.engine import Chunk, Finish, GenerationOptions, Session
from phi4local.errors import BackendError
from phi4local.settings import nano_folder
from tests.running import make

KILLS = int(os.environ.get("PHI4LOCAL_KILLS", "20"))
ASK = [Message("user", "12 + 34")]
LONG_ASK = [Message("user", "12 + 34 " * 300)]  # is read for half a second or more
FEW = GenerationOptions(max_tokens=20)
ENDLESS = GenerationOptions(temperature=9.0, top_k=0, top_p=1.0)  # any token, so hardly ever the end token
SOON = 2.0


class Killer:
    """Kills the engine's process, and knows when it did."""

    def __init__(self) -> None:
        self.struck = 0.0
        self._worker = psutil.Process().children()[0]

    def strike(self) -> None:
        self.struck = time.monotonic()
        self._worker.kill()

    def wait(self) -> None:
        """Until the process is gone; one that is killed may still say something."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._worker.wait(SOON)


def while_idle(killer: Killer, engine: ChildEngine, _session: Session, _luck: random.Random) -> None:
    killer.strike()
    while engine.alive:
        assert time.monotonic() - killer.struck < SOON


def while_reading(killer: Killer, _engine: ChildEngine, session: Session, luck: random.Random) -> None:
    timer = threading.Timer(luck.uniform(0.01, 0.4), killer.strike)
    timer.start()
    try:
        list(session.stream(LONG_ASK, FEW))
    finally:
        timer.join()


def while_generating(killer: Killer, _engine: ChildEngine, session: Session, luck: random.Random) -> None:
    last = luck.randrange(200)
    for number, _ in enumerate(session.stream(ASK, ENDLESS)):
        if number == last:
            killer.strike()


def while_counting(killer: Killer, engine: ChildEngine, _session: Session, luck: random.Random) -> None:
    timer = threading.Timer(luck.uniform(0.0, 0.02), killer.strike)
    timer.start()
    while timer.is_alive():
        assert engine.count(LONG_ASK) > 1000  # asks again by itself, if need be
    timer.join()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[ChildEngine]:
    make(nano_folder(), "BF16", tmp_path / "nano.gguf")
    settings = LoadSettings(str(tmp_path / "nano.gguf"), threads=1)
    with contextlib.closing(ChildEngine(settings, Host(tmp_path / "state"))) as opened:
        yield opened
    assert not psutil.Process().children(recursive=True)


def test_kills_at_random_moments(engine: ChildEngine) -> None:
    luck, session, broken = random.Random(5), engine.open_session(), Counter[str]()
    moments = (while_reading, while_generating, while_idle, while_counting)
    for number in range(KILLS):
        moment, killer = moments[number % len(moments)], Killer()
        try:
            moment(killer, engine, session, luck)
        except BackendError as error:
            assert "SIGKILL" in error.message
            assert time.monotonic() - killer.struck < SOON
            broken[moment.__name__] += 1
        killer.wait()
        *chunks, finish = session.stream(ASK, FEW)
        assert isinstance(finish, Finish)
        assert "= 46" in "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk))
        assert engine.alive
        [worker] = psutil.Process().children(recursive=True)
        assert worker.status() != psutil.STATUS_ZOMBIE
    assert not engine.info.safe_mode
    assert broken["while_reading"] > KILLS // 8
    assert broken["while_generating"] > KILLS // 8
    assert broken.keys() == {"while_reading", "while_generating"}  # the others never notice
