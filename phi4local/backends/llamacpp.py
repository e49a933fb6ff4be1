"""The engine behind the seam: llama.cpp in a child process that may crash without taking the program along.

    open        start the worker, load the model
    stream      one answer; the worker is started again first when it has died
    restore     what an earlier session has read, from a file; after a death by itself, once
    crash       before the first word: once more, with safe settings; when that works it is remembered
                after it: BackendError, and the next question works again

One engine has one KV cache; its sessions take turns.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phi4local.backends.ask import REINSTALL
from phi4local.backends.llamacpp_answer import Answer, checked, ends, load_of, printable
from phi4local.backends.load_settings import Budget, LoadSettings
from phi4local.backends.process import ENGINE_VARIABLES, Worker, WorkerDied, python_module
from phi4local.backends.safe_mode import crash_remembered, machine_and_build, memory_file, remember_crash
from phi4local.backends.states import room_bytes, writing_state
from phi4local.conversation import Message
from phi4local.engine import Chunk, EngineInfo, Finish, GenerationOptions, Timing
from phi4local.errors import BackendError, FormatError, NotFound, Phi4LocalError, UsageError
from phi4local.files import atomic_write

_DISK_BYTES_PER_SECOND = 100e6
_LOG = "engine.log"


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the worker may take before it is ended; `load_seconds` grows with the file."""

    load_seconds: float = 20.0
    template_seconds: float = 5.0
    cancel_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Host:
    """How the worker is run: its command, the folder for its log and its memory, and how long it may take."""

    state_folder: Path
    command: tuple[str, ...] = python_module("phi4local.backends.llamacpp_worker")
    deadlines: Deadlines = Deadlines()


class LlamaCppEngine:
    """A model in a worker process (`phi4local.engine.Engine`)."""

    def __init__(self, settings: LoadSettings, host: Host, budget: Callable[[], Budget] = Budget) -> None:
        """Load the model (NotFound, BackendError, DoesNotFit, InsufficientResources, UsageError).

        `budget` is asked at every start of the worker.
        """
        self._path = Path(settings.path)
        if not self._path.is_file():
            raise NotFound(f"No model file `{self._path}`", hint="See what is here: phi4local list")
        self._host = host
        self._budget = budget
        self._key = machine_and_build()
        remembered = bool(crash_remembered(memory_file(host.state_folder), self._key))
        self._settings = replace(settings, path=str(self._path.absolute()), safe_mode=settings.safe_mode or remembered)
        self._crash = ""  # what safe mode was entered for in this process, once it has proved itself
        self._fresh_crash: WorkerDied | None = None  # safe mode was entered for it and has not proved itself yet
        self._worker: Worker | None = None
        self._turn = threading.Lock()
        self._speaker = 0  # the thread that has the turn
        self._reader: Callable[[], object] = lambda: None  # the session whose tokens are in the cache, if it still is
        self._starts = 0
        self._answers = 0
        self._closed = False
        self._load()

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            backend="llama.cpp",
            description=self._loaded["description"],
            context_tokens=self._loaded["context_sizes"][-1],
            safe_mode=self._settings.safe_mode,
            load=load_of(self._loaded["load"]),
            notes=(*self._crash_notes(), *self._rope_notes()),
        )

    def open_session(self) -> LlamaCppSession:
        return LlamaCppSession(self)

    def time_tokens(self, prompt_tokens: int, generation_tokens: int) -> Timing:
        """Measure reading and generating; what was in the cache is gone (BackendError)."""
        request = {"op": "time", "prompt_tokens": prompt_tokens, "generation_tokens": generation_tokens}
        with self._turn:
            while True:
                worker = self._running()
                try:
                    worker.send(request)
                    event = checked(worker.receive())
                    self._prove_safe_mode()
                    return Timing(**event["timing"])
                except WorkerDied as death:
                    if not self._recover(death, first=False):
                        raise self._failure(death) from None

    def close(self) -> None:
        """End the worker; an answer that is still coming ends with a BackendError."""
        self._closed = True
        if self._worker is not None:
            self._worker.stop()

    def cancel(self, answer: Answer) -> None:
        """From any thread: end this answer, also when it has not begun."""
        answer.cancelled = True
        worker = self._worker
        if answer.number and not answer.finished and worker is not None:
            with contextlib.suppress(WorkerDied):
                worker.send({"op": "cancel", "id": answer.number})
            answer.end_by(self._host.deadlines.cancel_seconds, worker)

    def save(self, session: LlamaCppSession, path: Path) -> int:
        """Write what the session has read (`phi4local.engine.Session.save`)."""
        with self._speaking():
            worker = self._worker
            if self._closed:
                raise UsageError("The engine is closed")
            if self._reader() is not session or worker is None or not worker.alive:
                return 0
            try:
                written = self._saved(worker, path.absolute())
            except WorkerDied as death:
                raise self._failure(death) from None
            if written:
                session.kept = Kept(path.absolute(), self._starts)
            return written

    def restore(self, session: LlamaCppSession, path: Path) -> int:
        """Take over what a session has read (`phi4local.engine.Session.restore`)."""
        with self._speaking():
            try:
                worker = self._running()
            except WorkerDied as death:
                raise self._failure(death) from None
            tokens = self._restored(worker, path.absolute())
            if tokens:
                self._reader = weakref.ref(session)
            session.kept = Kept(path.absolute(), self._starts) if tokens else None
            return tokens

    def answer(
        self, session: LlamaCppSession, messages: Sequence[Message], options: GenerationOptions, answer: Answer
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
        with self._turn:
            self._speaker = threading.get_ident()
            try:
                yield
            finally:
                self._speaker = 0

    def _attempts(self, session: LlamaCppSession, request: dict[str, Any], answer: Answer) -> Generator[Chunk | Finish]:
        recoveries = 0
        while True:
            try:
                yield from self._attempt(session, request, answer)
            except WorkerDied as death:
                if answer.began or recoveries == 2 or not self._recover(death, first=not recoveries):
                    raise self._failure(death) from None
                recoveries += 1
            else:
                return

    def _attempt(self, session: LlamaCppSession, request: dict[str, Any], answer: Answer) -> Generator[Chunk | Finish]:
        worker = self._ready(session)
        self._reader = weakref.ref(session)
        self._answers += 1
        answer.number = self._answers
        worker.send({**request, "id": answer.number})
        if answer.cancelled:
            self.cancel(answer)
        try:
            with worker.deadline("template", self._host.deadlines.template_seconds):
                answer.rendered(worker.receive())
            while not answer.finished:
                event = worker.receive()
                self._prove_safe_mode()
                yield from answer.heard(event)
        finally:
            if not answer.finished:
                self._put_to_rest(worker, answer)

    def _ready(self, session: LlamaCppSession) -> Worker:
        """A worker; a new one has taken over what the session has on disk. Once, in case it dies of that."""
        worker, kept = self._running(), session.kept
        if kept is None or kept.start == self._starts:
            return worker
        session.kept = None
        self._restored(worker, kept.path)
        return self._running()

    def _saved(self, worker: Worker, path: Path) -> int:
        """The worker writes into the file, which gets its name here: a death leaves nothing behind (WorkerDied)."""
        seconds = self._host.deadlines.load_seconds
        needed = self._asked("save", worker, {"op": "state_bytes"}, seconds)["state_bytes"]
        with writing_state(path.parent, needed):
            if not 0 < needed <= room_bytes(path.parent):
                return 0
            with atomic_write(path) as file:
                request = {"op": "save", "path": file.name}
                saved: int = self._asked("save", worker, request, seconds + needed / _DISK_BYTES_PER_SECOND)["saved"]
        return saved

    def _restored(self, worker: Worker, path: Path) -> int:
        """How many tokens the worker took over; a file that it dies of is removed."""
        try:
            seconds = self._host.deadlines.load_seconds + path.stat().st_size / _DISK_BYTES_PER_SECOND
            event = self._asked("restore", worker, {"op": "restore", "path": str(path)}, seconds)
        except WorkerDied:
            with contextlib.suppress(OSError):
                path.unlink()
        except (OSError, Phi4LocalError):  # no file, or no memory for the context that it needs
            pass
        else:
            return int(event["restored"])
        return 0

    def _asked(self, phase: str, worker: Worker, request: Mapping[str, Any], seconds: float) -> Any:
        """The event that answers a request; a worker whose answer nobody waits for is ended (WorkerDied)."""
        try:
            with worker.deadline(phase, seconds):
                worker.send(request)
                event = worker.receive()
        except BaseException:
            worker.stop()
            raise
        return checked(event)

    def _running(self) -> Worker:
        if self._closed:
            raise UsageError("The engine is closed")
        if self._worker is None or not self._worker.alive:
            self._start()
        assert self._worker is not None
        return self._worker

    def _load(self) -> None:
        """Start for the first time; a crash is retried like one in an answer."""
        try:
            self._start()
        except WorkerDied as death:
            if not self._recover(death, first=False):
                raise self._failure(death) from None
            try:
                self._start()
            except WorkerDied as again:
                raise self._failure(again) from None

    def _start(self) -> None:
        """Start a worker and load the model (WorkerDied)."""
        if self._worker is not None:
            self._worker.stop()
        self._worker = worker = Worker(self._host.command, self._host.state_folder / _LOG, ENGINE_VARIABLES)
        load = {"op": "load", "settings": asdict(self._settings), "budget": asdict(self._budget())}
        seconds = self._host.deadlines.load_seconds
        try:
            with worker.deadline("load", seconds):
                worker.send(load)
                placed_bytes = checked(worker.receive())["placed"]
            with worker.deadline("load", seconds + placed_bytes / _DISK_BYTES_PER_SECOND):
                self._loaded = checked(worker.receive())["loaded"]
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

    def _recover(self, death: WorkerDied, *, first: bool) -> bool:
        """Whether to ask again, and with which settings; nothing of the answer has been handed out yet."""
        if death.phase == "template":
            return first and not death.overdue  # it died before it took the question
        if not death.crashed or self._settings.safe_mode:
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
        if death.phase == "template" and (death.overdue or death.crashed):
            return FormatError(
                f"The chat template of `{self._path.name}` did not come to an end",
                hint="Get another build of the model",
            )
        again = _DAMAGED if death.phase == "load" else _AGAIN
        if death.overdue:
            return BackendError(f"The engine did not {_DUTIES[death.phase]} in time and was ended", hint=again)
        said = f": {printable(death.last_line)}" if death.explained and death.last_line else ""
        failed_to_run = death.explained and not death.crashed
        hint = REINSTALL if failed_to_run else _HINTS.get(death.cause, again)
        return BackendError(f"The engine's process ended with {death.cause}{said}", hint=hint)

    def _crash_notes(self) -> Iterator[str]:
        crash = self._crash or (self._fresh_crash.cause if self._fresh_crash else "")
        if crash:
            yield (
                f"llama.cpp crashed ({crash}) and now runs with safe settings, which may be slower; this is remembered "
                f"in `{memory_file(self._host.state_folder)}`, delete it to try full speed again"
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


class LlamaCppSession:
    """One timeline of an engine (`phi4local.engine.Session`)."""

    def __init__(self, engine: LlamaCppEngine) -> None:
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


_DUTIES = {"start": "start", "load": "load the model", "cancel": "stop", "work": "answer", "save": "keep its state"}
_AGAIN = "Ask again: the engine starts anew by itself"
_DAMAGED = (
    "The file may be damaged (`phi4local verify` checks builds), or this machine needs another build of the model"
)
_HINTS = {"SIGKILL": "Perhaps memory ran out: choose a smaller build or a smaller `--context`"}
