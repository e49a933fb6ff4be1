"""The engine behind the seam: llama.cpp in a child process that may crash without taking the program along.

    open        start the worker, load the model
    stream      one answer; the worker is started again first when it has died
    crash       before the first word: once more, with safe settings; when that works it is remembered
                after it: BackendError, and the next question works again

One engine has one KV cache; its sessions take turns.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from phi4local import errors
from phi4local.backends.ask import REINSTALL
from phi4local.backends.load_settings import Budget, LoadSettings
from phi4local.backends.process import ENGINE_VARIABLES, Worker, WorkerDied, python_module
from phi4local.backends.safe_mode import crash_remembered, machine_and_build, memory_file, remember_crash
from phi4local.conversation import Message, ThinkSplitter
from phi4local.engine import Chunk, EngineInfo, Finish, GenerationOptions, Load, Stats, Timing
from phi4local.errors import BackendError, FormatError, NotFound, Phi4LocalError, UsageError
from phi4local.fit import Use

_LOAD_BYTES_PER_SECOND = 100e6
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
            load=_load_of(self._loaded["load"]),
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
                    event = _checked(worker.receive())
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

    def answer(
        self, messages: Sequence[Message], options: GenerationOptions, answer: Answer
    ) -> Generator[Chunk | Finish]:
        """Give one answer, with what it takes to get over a crash."""
        request = {"op": "answer", "messages": [asdict(message) for message in messages], "options": asdict(options)}
        if self._turn.locked() and self._speaker == threading.get_ident():  # it would wait for itself
            raise UsageError("The engine is still giving another answer", hint="Read it to its end, or close it")
        with self._turn:
            self._speaker = threading.get_ident()
            try:
                yield from self._attempts(request, answer)
            finally:
                self._speaker = 0

    def _attempts(self, request: dict[str, Any], answer: Answer) -> Generator[Chunk | Finish]:
        recoveries = 0
        while True:
            try:
                yield from self._attempt(request, answer)
            except WorkerDied as death:
                if answer.began or recoveries == 2 or not self._recover(death, first=not recoveries):
                    raise self._failure(death) from None
                recoveries += 1
            else:
                return

    def _attempt(self, request: dict[str, Any], answer: Answer) -> Generator[Chunk | Finish]:
        worker = self._running()
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
                placed_bytes = _checked(worker.receive())["placed"]
            with worker.deadline("load", seconds + placed_bytes / _LOAD_BYTES_PER_SECOND):
                self._loaded = _checked(worker.receive())["loaded"]
        except BaseException:
            worker.stop()
            raise

    def _put_to_rest(self, worker: Worker, answer: Answer) -> None:
        """End an answer that nobody reads on; the worker dies when it cannot."""
        with contextlib.suppress(WorkerDied), worker.deadline("cancel", self._host.deadlines.cancel_seconds):
            worker.send({"op": "cancel", "id": answer.number})
            while not _ends(worker.receive()):
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
        said = f": {_printable(death.last_line)}" if death.explained and death.last_line else ""
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


class LlamaCppSession:
    """One timeline of an engine (`phi4local.engine.Session`)."""

    def __init__(self, engine: LlamaCppEngine) -> None:
        self._engine = engine
        self._answer: Answer | None = None

    def stream(self, messages: Sequence[Message], options: GenerationOptions) -> Generator[Chunk | Finish]:
        """The answer to a conversation (UsageError, FormatError, BackendError)."""
        self._answer = Answer(time.perf_counter())
        return self._engine.answer(messages, options, self._answer)

    def cancel(self) -> None:
        """From any thread: this session's answer ends with Finish("cancelled"), also while it waits or reads."""
        if self._answer is not None:
            self._engine.cancel(self._answer)

    def close(self) -> None:
        """Nothing to give back: the engine's cache belongs to whoever asks next."""


class Answer:
    """One answer as it arrives: pieces of text in, chunks and the finish out. `number` 0: not asked for yet."""

    def __init__(self, started: float) -> None:
        self.number = 0
        self.cancelled = False
        self.finished = False
        self.began = False
        self._started = started
        self._first_seconds = 0.0
        self._splitter = ThinkSplitter()

    def end_by(self, seconds: float, worker: Worker) -> None:
        """End the worker when this answer, cancelled by now, has not ended after so many seconds."""

        def end() -> None:
            if not self.finished:
                worker.end_overdue()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()

    def rendered(self, event: Any) -> None:
        """The template has run; it may have begun the thinking itself (the worker's own errors)."""
        self.finished = _ends(event)
        self._splitter = ThinkSplitter(thinking=_checked(event)["rendered"]["thinking"])

    def heard(self, event: Any) -> Iterator[Chunk | Finish]:
        """What an event means to the caller (the worker's own errors)."""
        if isinstance(event, str):
            parts = self._splitter.feed(event)
        else:
            self.finished = _ends(event)
            _checked(event)
            parts = self._splitter.end()
        if not self.began and (parts or self.finished):
            self._first_seconds = time.perf_counter() - self._started
        for kind, text in parts:
            self.began = True
            yield Chunk(text, kind)
        if self.finished:
            yield Finish(event["finish"]["reason"], self._stats(event["finish"]))

    def _stats(self, cost: dict[str, Any]) -> Stats:
        return Stats(
            prompt_tokens=cost["prompt_tokens"],
            cached_tokens=cost["cached_tokens"],
            generation_tokens=cost["generation_tokens"],
            prompt_tps=_rate(cost["read_tokens"], cost["prompt_seconds"]),
            generation_tps=_rate(cost["generation_tokens"], cost["generation_seconds"]),
            ttft_seconds=self._first_seconds,
        )


_DUTIES = {"start": "start", "load": "load the model", "cancel": "stop", "work": "answer"}
_AGAIN = "Ask again: the engine starts anew by itself"
_DAMAGED = (
    "The file may be damaged (`phi4local verify` checks builds), or this machine needs another build of the model"
)
_HINTS = {"SIGKILL": "Perhaps memory ran out: choose a smaller build or a smaller `--context`"}


def _checked(event: Any) -> Any:
    """The event, unless it is an error of the worker, which is raised here."""
    if isinstance(event, dict) and "error" in event:
        known = dict(event["error"])
        kind, message = known.pop("type"), _printable(known.pop("message"))
        raise getattr(errors, kind)(message, **known)
    return event


def _load_of(facts: dict[str, Any]) -> Load:
    """A `Load` from the worker's JSON."""
    uses = {key: {device: Use(**use) for device, use in facts[key].items()} for key in ("predicted", "took")}
    return Load(**facts | uses)


def _printable(text: str) -> str:
    """One line without control characters: what llama.cpp says may come from a foreign file."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _ends(event: Any) -> bool:
    return isinstance(event, dict) and ("finish" in event or "error" in event)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
