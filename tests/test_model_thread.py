"""The thread that owns the engine: what it tells, in which order, and what it keeps."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from textual.message import Message as Fact

from phi4local.actions.chat import Opened
from phi4local.actions.talk import TooLong, chat_state
from phi4local.backends.states import state_path
from phi4local.conversation import Message
from phi4local.errors import NotFound
from phi4local.history import History
from tests.fakes import FakeEngine, FakeSession, loads, opened
from ui import model_thread, told
from ui.model_thread import Load, ModelThread
from ui.open_chat import OpenChat
from ui.told import ModelChoice

Kind = TypeVar("Kind", bound=Fact)


class Listener:
    """What a thread tells, in its order."""

    def __init__(self, load: Load) -> None:
        self._facts: queue.SimpleQueue[Fact] = queue.SimpleQueue()
        self.heard: list[Fact] = []
        self.thread = ModelThread(self._facts.put, load)

    def wait(self, kind: type[Kind]) -> Kind:
        """The next fact of a kind; what comes before is heard, too."""
        while True:
            fact = self._facts.get(timeout=30)
            self.heard.append(fact)
            if isinstance(fact, kind):
                return fact


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[OpenChat]:
    history = History(tmp_path / "history.sqlite3")
    yield OpenChat(history)
    history.close()


@pytest.fixture
def listen() -> Iterator[Callable[[Load], Listener]]:
    listeners: list[Listener] = []

    def start(load: Load) -> Listener:
        listeners.append(Listener(load))
        return listeners[-1]

    yield start
    for one in listeners:
        one.thread.close()


def ask(listener: Listener, talk: OpenChat, text: str) -> None:
    talk.ask(text, (), talk.branch[-1].id if talk.branch else None)
    listener.thread.ask(talk.history, talk.chat, talk.branch)


def test_one_end_for_each_beginning(listen: Callable[[Load], Listener], talk: OpenChat) -> None:
    listener = listen(loads(FakeEngine()))
    listener.thread.open(ModelChoice())
    ask(listener, talk, "one two three")
    ended = listener.wait(told.Ended)
    kinds = [type(fact).__name__ for fact in listener.heard]
    assert kinds[:3] == ["Loading", "Loaded", "Begun"]
    assert kinds[-1] == "Ended"
    assert kinds.count("Begun") == kinds.count("Ended") == 1
    said = "".join(fact.text for fact in listener.heard if isinstance(fact, told.Delta))
    assert said == ended.answered.message.text == "one two three "


def test_pieces_are_told_together(listen: Callable[[Load], Listener], talk: OpenChat) -> None:
    listener = listen(loads(FakeEngine(lambda _: ["x"] * 1000)))
    listener.thread.open(ModelChoice())
    ask(listener, talk, "q")
    listener.wait(told.Ended)
    deltas = [fact for fact in listener.heard if isinstance(fact, told.Delta)]
    assert len(deltas) < 100
    assert deltas[-1].tokens == 1000


def test_a_question_without_a_model_is_refused(listen: Callable[[Load], Listener], talk: OpenChat) -> None:
    def nothing(*_: Any) -> Opened:
        raise NotFound("No model", hint="Get one")

    listener = listen(nothing)
    listener.thread.open(ModelChoice())
    assert listener.wait(told.LoadFailed).kept is None
    ask(listener, talk, "q")
    assert listener.wait(told.Refused).error.message == "No model is loaded"


def test_too_long_is_refused_before_it_is_asked(listen: Callable[[Load], Listener], talk: OpenChat) -> None:
    engine = FakeEngine(context_tokens=100)
    listener = listen(loads(engine))
    listener.thread.open(ModelChoice())
    ask(listener, talk, "word " * 90)
    assert isinstance(listener.wait(told.Refused).error, TooLong)
    assert engine.asked == []


def test_a_stop_reaches_an_answer_that_has_not_begun(listen: Callable[[Load], Listener], talk: OpenChat) -> None:
    loading = threading.Event()

    def slow(*arguments: Any) -> Opened:
        loading.wait(10)
        return loads(FakeEngine(lambda _: iter(lambda: "x ", "")))(*arguments)

    listener = listen(slow)
    listener.thread.open(ModelChoice())
    ask(listener, talk, "q")
    listener.thread.stop()
    loading.set()
    finish = listener.wait(told.Ended).answered.finish
    assert finish
    assert finish.reason == "cancelled"


def test_a_model_that_fails_gives_the_old_one_back(listen: Callable[[Load], Listener], talk: OpenChat) -> None:
    engines = [FakeEngine(), FakeEngine()]

    def load(choice: ModelChoice, before: Opened | None, leave: Callable[[], None]) -> Opened:
        if choice.name == "broken":
            leave()
            raise NotFound("broken")
        return opened(engines[0] if before is None and not engines[0].closed else engines[1])

    listener = listen(load)
    listener.thread.open(ModelChoice())
    listener.wait(told.Loaded)
    listener.thread.open(ModelChoice("broken"))
    kept = listener.wait(told.LoadFailed).kept
    assert kept
    assert kept.engine is engines[1]
    assert engines[0].closed
    ask(listener, talk, "still here")
    assert listener.wait(told.Ended).answered.message.text == "still here "


class KeepingSession(FakeSession):
    """Writes a file where it is told to keep what it has read."""

    def save(self, path: Path) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.write_bytes(b"state")

    def restore(self, path: Path) -> int:
        return len(path.read_bytes()) if path.exists() else 0


class KeepingEngine(FakeEngine):
    def open_session(self) -> FakeSession:
        return KeepingSession(self)


def test_what_was_read_is_kept_when_nothing_happens(
    listen: Callable[[Load], Listener], talk: OpenChat, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_thread, "_IDLE_SECONDS", 0.1)
    listener = listen(loads(KeepingEngine()))
    listener.thread.open(ModelChoice())
    ask(listener, talk, "short")
    talk.answered(listener.wait(told.Ended).answered.message)
    state = state_path(*chat_state(talk.chat.id))
    ask(listener, talk, "word " * 200)
    listener.wait(told.Ended)
    end = time.monotonic() + 20
    while not state.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_nobody_expected_is_told(listen: Callable[[Load], Listener], talk: OpenChat) -> None:
    def bug(messages: Sequence[Message]) -> Iterable[str]:
        raise ZeroDivisionError

    listener = listen(loads(FakeEngine(bug)))
    listener.thread.open(ModelChoice())
    ask(listener, talk, "q")
    assert isinstance(listener.wait(told.Bug).error, ZeroDivisionError)


def test_closing_keeps_an_answer_and_is_quick(listen: Callable[[Load], Listener], talk: OpenChat) -> None:
    listener = listen(loads(FakeEngine(lambda _: iter(lambda: "x ", ""), seconds=0.005)))
    listener.thread.open(ModelChoice())
    ask(listener, talk, "q")
    begun = listener.wait(told.Begun)
    listener.wait(told.Delta)
    start = time.monotonic()
    listener.thread.close()
    assert time.monotonic() - start < 5
    kept = talk.history.branch(begun.message.id)[-1]
    assert kept.state == "stopped"
    assert kept.text.startswith("x ")
