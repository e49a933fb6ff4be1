"""The engine behind the seam: a runtime in a child process that may crash without taking the program along.

    open        start the worker, load the model
    stream      one answer; the worker is started again first when it has died
    restore     what an earlier session has read, from a file; after a death by itself, once
    count       the tokens of a conversation; the cache stays as it is
    crash       before the first word: once more, with safe settings where the runtime has any; if that works it is
                remembered
                after it: BackendError, and the next question works again

One engine has one KV cache; its sessions take turns. `close` and `alive` wait for nobody's turn.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from phi4local.backends import requests
from phi4local.backends.answer import Answer, checked, ends, error_of, load_of
from phi4local.backends.ask import REINSTALL
from phi4local.backends.load_settings import Budget, LoadSettings
from phi4local.backends.process import ENGINE_VARIABLES, Worker, WorkerDied, python_module
from phi4local.backends.requests import Deadlines
from phi4local.backends.safe_mode import crash_remembered, machine_and_build, memory_file, remember_crash
from phi4local.conversation import Message
from phi4local.engine import Chunk, EngineInfo, Finish, GenerationOptions, Timing
from phi4local.errors import BackendError, NotFound, Phi4LocalError, UsageError

_LOG = "engine.log"
_GLANCE_SECONDS = 0.2  # how often who waits for a turn looks whether the engine was closed
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Host:
    """How the worker is run: its command, the folder for its log and its memory, and how long it may take.

    `has_safe_mode`: there are settings for it that crash less. `reinstall` is what helps when it does not even start.
    """

    state_folder: Path
    command: tuple[str, ...] = python_module("phi4local.backends.llamacpp_worker")
    deadlines: Deadlines = field(default_factory=Deadlines)
    backend: str = "llama.cpp"
    has_safe_mode: bool = True
    reinstall: str = REINSTALL


class ChildEngine:
    """A model in a worker process (`phi4local.engine.Engine`)."""

    def __init__(self, settings: LoadSettings, host: Host, budget: Callable[[], Budget] = Budget) -> None:
        """Load the model (NotFound, BackendError, DoesNotFit, InsufficientResources, UsageError).

        `budget` is asked at every start of the worker.
        """
        self._path = Path(settings.path)
        if not self._path.exists():
            raise NotFound(f"No model file `{self._path}`", hint="See what is here: phi4local list")
        self._host = host
        self._budget = budget
        self._key = machine_and_build()
        remembered = host.has_safe_mode and bool(crash_remembered(memory_file(host.state_folder), self._key))
        self._settings = replace(settings, path=str(self._path.absolute()), safe_mode=settings.safe_mode or remembered)
        self._crash = ""  # what safe mode was entered for in this process, once it has proved itself
        self._fresh_crash: WorkerDied | None = None  # safe mode was entered for it and has not proved itself yet
        self._worker: Worker | None = None
        self._turn = threading.Lock()
        self._speaker = 0  # the thread that has the turn
        # The session whose tokens are in the cache, if it still is.
        self._reader: Callable[[], ChildSession | None] = lambda: None
        self._starts = 0
        self._answers = 0
        self._closed = False
        self._persistently(self._start)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            backend=self._host.backend,
            description=self._loaded["description"],
            context_tokens=self._loaded["context_sizes"][-1],
            safe_mode=self._settings.safe_mode,
            load=load_of(self._loaded["load"]),
            notes=(*self._crash_notes(), *self._rope_notes()),
        )

    @property
    def alive(self) -> bool:
        """Whether the engine's process runs (`phi4local.engine.Engine.alive`)."""
        worker = self._worker
        return not self._closed and worker is not None and worker.alive

    def open_session(self) -> ChildSession:
        return ChildSession(self)

    def count(self, messages: Sequence[Message]) -> int:
        """How many tokens the prompt of this conversation takes (`phi4local.engine.Engine.count`)."""
        if not messages:
            return 0
        with self._speaking():
            # What has been restored knows the ids of its own answers, so a new worker restores first, as for an answer.
            ready = partial(self._ready, self._reader())
            return self._persistently(lambda: requests.count(ready(), messages, self._host.deadlines))

    def time_tokens(self, prompt_tokens: int, generation_tokens: int) -> Timing:
        """Measure reading and generating; what was in the cache is gone (UsageError, BackendError)."""
        request = {"op": "time", "prompt_tokens": prompt_tokens, "generation_tokens": generation_tokens}

        def timing() -> Timing:
            worker = self._running()
            worker.send(request)
            event = checked(worker.receive())
            self._prove_safe_mode()
            return Timing(**event["timing"])

        with self._speaking():
            return self._persistently(timing)

    def close(self) -> None:
        """End the worker, from any thread and at once; an answer that is still coming ends with a BackendError."""
        self._closed = True  # first: a worker that is being started now is ended by who starts it
        worker = self._worker
        if worker is not None:
            worker.stop()

    def cancel(self, answer: Answer) -> None:
        """From any thread: end this answer, also when it has not begun."""
        answer.cancelled = True
        worker = self._worker
        if answer.number and not answer.finished and worker is not None:
            # In a thread of its own: the pipe may be full, and who cancels does not wait.
            threading.Thread(target=self._cancel, args=(worker, answer), daemon=True).start()

    def _cancel(self, worker: Worker, answer: Answer) -> None:
        answer.end_by(self._host.deadlines.cancel_seconds, worker)
        with contextlib.suppress(WorkerDied):
            worker.send({"op": "cancel", "id": answer.number})

    def save(self, session: ChildSession, path: Path) -> int:
        """Write what the session has read (`phi4local.engine.Session.save`)."""
        with self._speaking():
            worker = self._worker
            self._check_open()
            if self._reader() is not session or worker is None or not worker.alive:
                return 0
            try:
                written = requests.save(worker, path.absolute(), self._host.deadlines)
            except WorkerDied as death:
                raise self._failure(death) from None
            if written:
                session.kept = Kept(path.absolute(), self._starts)
            return written

    def restore(self, session: ChildSession, path: Path) -> int:
        """Take over what a session has read (`phi4local.engine.Session.restore`)."""
        with self._speaking():
            try:
                tokens = requests.restore(self._running(), path.absolute(), self._host.deadlines)
            except WorkerDied as death:
                raise self._failure(death) from None
            if tokens:
                self._reader = weakref.ref(session)
            session.kept = Kept(path.absolute(), self._starts) if tokens else None
            return tokens

    def answer(
        self, session: ChildSession, messages: Sequence[Message], options: GenerationOptions, answer: Answer
    ) -> Generator[Chunk | Finish]:
        """Give one answer, with what it takes to get over a crash."""
        request = {"op": "answer", "messages": [asdict(message) for message in messages], "options": asdict(options)}
        with self._speaking():
            yield from self._attempts(session, request, answer)

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Wait for the turn and take it (UsageError)."""
        if self._turn.locked() and self._speaker == threading.get_ident():  # it would wait for itself
            raise UsageError("The engine is still giving another answer", hint="Read it to its end, or close it")
        while not self._turn.acquire(timeout=_GLANCE_SECONDS):
            self._check_open()
        try:
            self._speaker = threading.get_ident()
            yield
        finally:
            self._speaker = 0
            self._turn.release()

    def _attempts(self, session: ChildSession, request: dict[str, Any], answer: Answer) -> Generator[Chunk | Finish]:
        recoveries = 0
        while True:
            try:
                yield from self._attempt(session, request, answer)
            except WorkerDied as death:
                if answer.began:
                    raise self._failure(death) from None
                self._get_over(death, recoveries)
                recoveries += 1
            else:
                return

    def _attempt(self, session: ChildSession, request: dict[str, Any], answer: Answer) -> Generator[Chunk | Finish]:
        worker = self._ready(session)
        self._reader = weakref.ref(session)
        self._answers += 1
        answer.number = self._answers
        try:
            with worker.deadline("template", self._host.deadlines.template_seconds):
                if answer.cancelled:  # said first, so that it does not even begin
                    self._cancel(worker, answer)
                worker.send({**request, "id": answer.number})
                answer.rendered(worker.receive())
            while not answer.finished:
                event = worker.receive()
                self._prove_safe_mode()
                yield from answer.heard(event)
        finally:
            if not answer.finished:
                self._put_to_rest(worker, answer)

    def _ready(self, session: ChildSession | None) -> Worker:
        """A worker; a new one has taken over what the session has on disk. Once, in case it dies of that."""
        worker, kept = self._running(), session.kept if session else None
        if session is None or kept is None or kept.start == self._starts:
            return worker
        session.kept = None
        requests.restore(worker, kept.path, self._host.deadlines)
        return self._running()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("The engine is closed")

    def _running(self) -> Worker:
        self._check_open()
        if self._worker is None or not self._worker.alive:
            self._start()
        assert self._worker is not None
        return self._worker

    def _start(self) -> None:
        """Start a worker and load the model (WorkerDied, UsageError)."""
        if self._worker is not None:
            self._worker.stop()
        self._worker = worker = Worker(self._host.command, self._host.state_folder / _LOG, ENGINE_VARIABLES)
        try:
            self._check_open()
            self._loaded = requests.load(worker, self._settings, self._budget(), self._host.deadlines)
        except BaseException:
            worker.stop()
            raise
        self._starts += 1

    def _put_to_rest(self, worker: Worker, answer: Answer) -> None:
        """End an answer that nobody reads on; the worker dies when it cannot."""
        with contextlib.suppress(WorkerDied), worker.deadline("cancel", self._host.deadlines.cancel_seconds):
            worker.send({"op": "cancel", "id": answer.number})
            while not ends(worker.receive()):
                pass
            answer.finished = True

    def _persistently(self, ask: Callable[[], Result]) -> Result:
        """Ask, and again where that may help after a death."""
        recoveries = 0
        while True:
            try:
                return ask()
            except WorkerDied as death:
                self._get_over(death, recoveries)
                recoveries += 1

    def _get_over(self, death: WorkerDied, recoveries: int) -> None:
        """Prepare to ask again, or raise what the death means."""
        if recoveries == 2 or not self._recover(death, first=not recoveries):
            raise self._failure(death) from None

    def _recover(self, death: WorkerDied, *, first: bool) -> bool:
        """Whether to ask again, and with which settings; nothing of the answer has been handed out yet."""
        if self._closed:
            return False
        if death.phase in ("template", "count"):
            return first and not death.overdue  # it died before it took the question
        if not death.crashed or self._settings.safe_mode or not self._host.has_safe_mode:
            return False
        self._settings = replace(self._settings, safe_mode=True)
        self._fresh_crash = death
        return True

    def _prove_safe_mode(self) -> None:
        """Safe settings have got further than the crash did: remember them."""
        if self._fresh_crash is None:
            return
        self._crash = self._fresh_crash.cause
        self._fresh_crash = None
        with contextlib.suppress(OSError):  # a full disk must not cost the answer
            remember_crash(memory_file(self._host.state_folder), self._key, self._crash)

    def _failure(self, death: WorkerDied) -> Phi4LocalError:
        """The error for a death that nothing more is done about."""
        if self._fresh_crash is not None:  # safe settings did not help
            self._fresh_crash = None
            self._settings = replace(self._settings, safe_mode=False)
        return (
            BackendError("The engine was closed")
            if self._closed
            else error_of(death, self._path.name, self._host.reinstall)
        )

    def _crash_notes(self) -> Iterator[str]:
        crash = self._crash or (self._fresh_crash.cause if self._fresh_crash else "")
        if crash:
            yield (
                f"{self._host.backend} crashed ({crash}) and now runs with safe settings, which may be slower; this is "
                f"remembered in `{memory_file(self._host.state_folder)}`, delete it to try full speed again"
            )

    def _rope_notes(self) -> Iterator[str]:
        *short, _ = self._loaded["context_sizes"]
        for tokens in short:
            yield f"A conversation that passes {tokens} tokens is read again once, with the model's long rope factors"


@dataclass(frozen=True, slots=True)
class Kept:
    """The file that a session was saved to or restored from, and with which of the engine's workers."""

    path: Path
    start: int


class ChildSession:
    """One timeline of an engine (`phi4local.engine.Session`)."""

    def __init__(self, engine: ChildEngine) -> None:
        self.kept: Kept | None = None
        self._engine = engine
        self._answer: Answer | None = None

    def stream(self, messages: Sequence[Message], options: GenerationOptions) -> Generator[Chunk | Finish]:
        """The answer to a conversation (UsageError, FormatError, BackendError)."""
        self._answer = Answer(time.perf_counter())
        return self._engine.answer(self, messages, options, self._answer)

    def cancel(self) -> None:
        """From any thread: this session's answer ends with Finish("cancelled"), also while it waits or reads."""
        if self._answer is not None:
            self._engine.cancel(self._answer)

    def save(self, path: Path) -> int:
        """Keep what was read in a file; how many bytes (UsageError, InsufficientResources, BackendError)."""
        return self._engine.save(self, path)

    def restore(self, path: Path) -> int:
        """Take over what `save` wrote; how many tokens (UsageError, BackendError)."""
        return self._engine.restore(self, path)

    def close(self) -> None:
        """Nothing to give back: the engine's cache belongs to whoever asks next."""
