"""How many tokens a conversation takes, told without reading it: always the number that an answer then costs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from phi4local.backends.child import ChildEngine, Deadlines, Host
from phi4local.backends.load_settings import LoadSettings
from phi4local.conversation import Message
from phi4local.engine import Chunk, Engine, Finish, GenerationOptions, Session, Stats
from phi4local.errors import FormatError, UsageError
from phi4local.settings import nano_folder
from tests.gguf_models import write_scripted
from tests.running import make

ASK = [Message("user", "12 + 34")]
FEW = GenerationOptions(max_tokens=20)
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
PICKY = "{% if messages[-1].role != 'user' %}{{ raise_exception('a question, please') }}{% endif %}x<|im_sep|>"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nano") / "nano.gguf"
    make(nano_folder(), "BF16", path)
    return path


@contextlib.contextmanager
def opened(path: Path, state_folder: Path, deadlines: Deadlines | None = None) -> Iterator[ChildEngine]:
    host = Host(state_folder, deadlines=deadlines or Deadlines())
    with contextlib.closing(ChildEngine(LoadSettings(str(path), threads=1), host)) as engine:
        yield engine
    assert not psutil.Process().children(recursive=True)


@pytest.fixture
def engine(path: Path, tmp_path: Path) -> Iterator[Engine]:
    with opened(path, tmp_path / "state") as engine:
        yield engine


def ask(session: Session, talk: Sequence[Message]) -> tuple[Message, Stats]:
    *chunks, finish = session.stream(talk, FEW)
    assert isinstance(finish, Finish)
    return Message("assistant", "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk))), finish.stats


def kill(worker: psutil.Process) -> None:
    worker.kill()
    worker.wait()


def test_it_is_what_an_answer_then_costs(engine: Engine) -> None:
    session = engine.open_session()
    talk = [Message("system", "Be <|im_end|> brief 🌊."), *ASK]
    for question in ("and 5 + 6?", "x" * 500, " \n "):
        counted = engine.count(talk)
        answer, stats = ask(session, talk)
        assert counted == stats.prompt_tokens
        talk += [answer, Message("user", question)]
    assert engine.count([]) == 0
    assert engine.count(talk) > engine.count(talk[:-1]) > engine.count(talk[:-2])


def test_own_answers_keep_their_tokens(tmp_path: Path) -> None:
    path = tmp_path / "scripted.gguf"
    write_scripted(path, ["h", "e", b"\xff", "y", "<|im_end|>"])  # a tokenizer would give `he`, and no id for U+FFFD
    with opened(path, tmp_path / "state") as engine:
        session = engine.open_session()
        talk = [*ASK, Message("assistant", "he\ufffdy"), Message("user", "And?")]
        foreign = engine.count(talk)
        assert ask(session, ASK)[0] == talk[1]
        own = engine.count(talk)
        assert own != foreign
        session.save(tmp_path / "one.state")
        kill(psutil.Process().children()[0])
        assert engine.count(talk) == own  # by a new worker, which has restored what it needs to know
        answered = ask(session, talk)[1]
        assert (answered.prompt_tokens, answered.cached_tokens) == (own, engine.count(ASK) + 4)


def test_what_was_read_stays_read(engine: Engine) -> None:
    session = engine.open_session()
    answer, first = ask(session, ASK)
    for other in ("something else", "y" * 3000, "z " * 100_000):  # the last is longer than the context
        assert engine.count([Message("user", other)]) > 10
    _, second = ask(session, [*ASK, answer, Message("user", "5 + 6")])
    assert second.cached_tokens >= first.prompt_tokens + first.generation_tokens - 1


def test_it_waits_for_the_answer_that_is_being_given(tmp_path: Path) -> None:
    path = tmp_path / "endless.gguf"
    write_scripted(path, ["a", "b"], loop=True)
    with opened(path, tmp_path / "state") as engine:
        stream = engine.open_session().stream(ASK, GenerationOptions())
        next(stream)
        with pytest.raises(UsageError, match="another answer"):
            engine.count(ASK)
        counts: list[int] = []
        waiting = threading.Thread(target=lambda: counts.append(engine.count(ASK)))
        waiting.start()
        time.sleep(0.3)
        assert not counts
        stream.close()
        waiting.join(5)
        assert counts == [engine.count(ASK)]


def test_a_template_that_refuses_says_so(tmp_path: Path) -> None:
    path = tmp_path / "picky.gguf"
    write_scripted(path, ["a", "<|im_end|>"], template=PICKY)
    with opened(path, tmp_path / "state") as engine:
        [worker] = psutil.Process().children()
        for _ in range(2):
            with pytest.raises((FormatError, UsageError), match="a question, please"):
                engine.count([*ASK, Message("assistant", "46")])
            assert engine.count(ASK) == ask(engine.open_session(), ASK)[1].prompt_tokens
        assert worker.is_running()


def test_a_template_that_writes_nothing(tmp_path: Path) -> None:
    write_scripted(tmp_path / "mute.gguf", ["a"], template="{{ '' }}")
    with opened(tmp_path / "mute.gguf", tmp_path / "state") as engine, pytest.raises(FormatError, match="nothing"):
        engine.count(ASK)


def test_a_template_without_end_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "hanging.gguf"
    write_scripted(path, ["a", "<|im_end|>"], template="{% if messages|length > 1 %}" + ENDLESS + "{% endif %}x")
    with opened(path, tmp_path / "state", Deadlines(template_seconds=0.3)) as engine:
        for _ in range(2):
            with pytest.raises(FormatError, match=r"`hanging\.gguf` did not come to an end"):
                engine.count(ASK * 2)
            assert engine.count(ASK) == 1


def test_a_dead_engine_is_started_anew(engine: Engine) -> None:
    expected = engine.count(ASK)
    for _ in range(3):
        kill(psutil.Process().children()[0])
        assert engine.count(ASK) == expected
        assert len(psutil.Process().children()) == 1
