"""An engine's own process: requests come in as JSON lines, events go out as JSON lines, a runtime works in between.

    in    {"op": "load", "settings": {...}, "budget": {...}}
          {"op": "answer", "id": 1, "messages": [...], "options": {...}}
          {"op": "count", "messages": [...]}
          {"op": "time", "prompt_tokens": 512, "generation_tokens": 128}
          {"op": "state_bytes"}  {"op": "save", "path": "..."}  {"op": "restore", "path": "..."}
          {"op": "cancel", "id": 1}           end of file: the parent is gone, and so is this process, at once
    out   {"placed": bytes that it will take}  {"loaded": {...}}  {"rendered": {...}}  {"finish": {...}}
          {"counted": tokens}  {"timing": {...}}  {"state_bytes": 1}  {"saved": bytes}  {"restored": tokens}
          {"error": {...}}  and, for every piece of an answer, a bare JSON string

The first thread only reads requests, so that a cancellation or the parent's death is seen while the runtime computes.
Knows no runtime: a `Desk` of one loads, reads and says tokens.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from phi4local.backends.prompt import Prompts
from phi4local.backends.state_file import read_state, write_state
from phi4local.engine import FinishReason, GenerationOptions
from phi4local.errors import FormatError, Phi4LocalError, UsageError

# llama.cpp splits text with std::regex, which needs a stack frame for every letter of a word: 60,000 fill 8 MiB.
_STACK_BYTES = (512 << 20, 64 << 20, 0)  # the largest that the system grants; 0: its default
_BUG = 70
_SHORT_PROMPT = 16  # before generation is timed
Request = dict[str, Any]


class Cancelled(Exception):
    """The caller no longer wants the answer."""


class Inbox:
    """The parent's requests, in order; a cancellation overtakes them."""

    def __init__(self) -> None:
        self.cancelled_id = 0
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()

    def read(self, stream: BinaryIO) -> None:
        """Take requests until the parent closes the pipe or dies."""
        for line in stream:
            request = json.loads(line)
            if request["op"] == "cancel":
                self.cancelled_id = max(self.cancelled_id, request["id"])  # one may have been overtaken by the next
            else:
                self._requests.put(request)

    def next(self) -> Request:
        """Wait for the next request."""
        return self._requests.get()


class Events:
    """The way back to the parent: one write for a line, whole or not at all."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def send(self, event: object) -> None:
        self.write(line(event))

    def write(self, data: bytes) -> None:
        """Write prepared lines; a pipe may take a long one in parts."""
        while data:
            data = data[os.write(self._fd, data) :]


def line(event: object) -> bytes:
    """An event on the wire."""
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """What a token writes; `line` is ready for the pipe when that is whole characters."""

    data: bytes
    text: str
    line: bytes
    ends: bool


class Speaker:
    """Sends an answer token by token, whole characters only, and remembers its text."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._incomplete = False
        self._texts: list[str] = []

    def say(self, piece: Piece) -> None:
        if piece.line and not self._incomplete:
            self._texts.append(piece.text)
            self._events.write(piece.line)
        else:
            self._say_part(self._decoder.decode(piece.data))
            self._incomplete = bool(self._decoder.getstate()[0])

    def end(self) -> str:
        """The whole text, after what was incomplete has become U+FFFD."""
        self._say_part(self._decoder.decode(b"", final=True))
        return "".join(self._texts)

    def _say_part(self, text: str) -> None:
        if text:
            self._texts.append(text)
            self._events.send(text)


class Vocabulary(Protocol):
    """What the tokens of a model write."""

    size: int

    def piece(self, token: int) -> bytes:
        """The bytes that a token writes."""

    def ends(self, token: int) -> bool:
        """Whether the answer is over when the model says this token."""


class Timeline(Protocol):
    """One cache and the ids of the tokens in it; reads only what it has not read yet. `size`: of the open context."""

    tokens: list[int]
    size: int

    def __len__(self) -> int: ...

    def rewind(self, ids: Sequence[int]) -> int:
        """Keep the common beginning with `ids`, in a context that has room for them all; its length (UsageError)."""

    def clear(self) -> None:
        """Forget everything."""

    def read(self, ids: Sequence[int]) -> None:
        """Add a part of a prompt (BackendError, Cancelled)."""

    @property
    def state_bytes(self) -> int:
        """About what `save` writes; 0 where nothing was read."""

    def save(self, path: Path) -> int:
        """Write cache and tokens over the file; how many bytes, 0 where that failed."""

    def restore(self, path: Path, size: int) -> int:
        """Take over what was saved in a context of this size; how many tokens, 0 and an empty timeline if it fails."""


def size_for(ids: Sequence[int], sizes: Sequence[int]) -> int:
    """The smallest of the context sizes that holds a prompt and at least a token of its answer (UsageError)."""
    if len(ids) >= sizes[-1]:
        raise UsageError(
            f"The conversation is {len(ids)} tokens long; the context holds {sizes[-1]}, answer included",
            hint="Start a new chat, or give this one more room with `--context`",
        )
    return next(size for size in sizes if size > len(ids))


def reusable(tokens: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens of a prompt have been read already; its last one is always read, for what comes after it."""
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, ids, strict=False)))
    return min(common, len(ids) - 1)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model: what the parent is told of it, and `state_key`: all that the values in the cache depend on."""

    name: str
    facts: dict[str, Any]
    vocabulary: Vocabulary
    timeline: Timeline
    prompts: Prompts
    state_key: dict[str, Any]


class Desk(ABC):
    """Serves the requests with one loaded model."""

    model: Loaded

    def __init__(self, inbox: Inbox, events: Events) -> None:
        self._inbox = inbox
        self.events = events
        self._answer_id = -1
        self._rounds = 0
        self._pieces: dict[int, Piece] = {}

    @abstractmethod
    def load(self, request: Request) -> Loaded:
        """Load the model; the event `placed` is sent on the way (the errors of `Engine`)."""

    @abstractmethod
    def tokens(self, options: GenerationOptions) -> Generator[int]:
        """What comes after what was read, token by token, until the context is full; nothing else ends it."""

    @property
    def errors(self) -> Sequence[str]:
        """What the runtime has complained about in this request."""
        return ()

    def listen(self) -> None:  # noqa: B027  not every runtime complains
        """A request begins: complaints of earlier ones are forgotten."""

    def serve(self) -> None:
        """Serve until the process ends."""
        operations: dict[str, Callable[[Request], None]] = {
            "load": self._load,
            "answer": self._answer,
            "count": lambda request: self.events.send({"counted": len(self._prompt(request["messages"]))}),
            "time": self._time,
            "state_bytes": lambda _: self.events.send({"state_bytes": self.model.timeline.state_bytes}),
            "save": self._save,
            "restore": self._restore,
        }
        while True:
            request = self._inbox.next()
            self.listen()
            try:
                operations[request["op"]](request)
            except Phi4LocalError as error:
                self.events.send({"error": {"type": type(error).__name__, **vars(error)}})

    def cancelled(self) -> bool:
        """Whether the parent no longer wants the answer."""
        return self._inbox.cancelled_id == self._answer_id

    def _load(self, request: Request) -> None:
        self.model = self.load(request)
        self.events.send({"loaded": self.model.facts})

    def _answer(self, request: Request) -> None:
        self._answer_id = request["id"]
        ids = self._prompt(request["messages"])
        self.events.send({"finish": self._speak(ids, GenerationOptions(**request["options"]))})

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """A conversation's token ids (FormatError, UsageError); the parent is told when the template is done."""
        rendered = self.model.prompts.render(messages)
        self.events.send({"rendered": {"thinking": rendered.thinking}})
        ids = self.model.prompts.ids(rendered)
        if not ids:  # llama.cpp would abort
            raise FormatError(f"The chat template of `{self.model.name}` writes nothing")
        return ids

    def _time(self, request: Request) -> None:
        """Tokens in no order, then generation at the beginning of a timeline, whatever its end; nothing is kept."""
        self._answer_id = -1  # the last answer may have been cancelled, this was not
        timeline, vocabulary = self.model.timeline, self.model.vocabulary.size
        self._rounds += 1
        ids = [(self._rounds + 7919 * place) % vocabulary for place in range(request["prompt_tokens"])]
        timeline.clear()
        start = time.perf_counter()
        timeline.read(ids)
        read_seconds = time.perf_counter() - start
        timeline.clear()
        timeline.read(ids[:_SHORT_PROMPT])
        start = time.perf_counter()
        with contextlib.closing(self.tokens(GenerationOptions())) as tokens:
            for _ in islice(tokens, request["generation_tokens"] + 1):  # one more: a token is read when the next is due
                pass
        seconds = time.perf_counter() - start
        timeline.clear()
        self.events.send({"timing": {"prompt_seconds": read_seconds, "generation_seconds": seconds}})

    def _save(self, request: Request) -> None:
        answers = self.model.prompts.remembered()
        written = write_state(Path(request["path"]), self.model.timeline, self.model.state_key, answers, self.errors)
        self.events.send({"saved": written})

    def _restore(self, request: Request) -> None:
        """With the ids of its own answers, without which a conversation would not begin with the same tokens."""
        answers = read_state(Path(request["path"]), self.model.timeline, self.model.state_key)
        for text, ids in answers or ():
            self.model.prompts.remember(text, ids)
        self.events.send({"restored": 0 if answers is None else len(self.model.timeline)})

    def _speak(self, ids: list[int], options: GenerationOptions) -> dict[str, Any]:
        """Read the prompt and answer it; how it ended and what it cost."""
        said: list[int] = []
        timeline = self.model.timeline
        started = read = time.perf_counter()
        cached = timeline.rewind(ids)
        try:
            timeline.read(ids[cached:])
            read = time.perf_counter()
            reason = self._generate(said, options)
        except Cancelled:
            reason = "cancelled"
        return {
            "reason": reason,
            "prompt_tokens": len(ids),
            "cached_tokens": cached,
            "read_tokens": min(len(timeline), len(ids)) - cached,
            "generation_tokens": len(said),
            "prompt_seconds": read - started,
            "generation_seconds": time.perf_counter() - read,
        }

    def _generate(self, said: list[int], options: GenerationOptions) -> FinishReason:
        """Say tokens until something ends the answer (Cancelled)."""
        speaker = Speaker(self.events)
        try:
            with contextlib.closing(self.tokens(options)) as tokens:
                return self._say(tokens, speaker, said, options.max_tokens)
        finally:
            self.model.prompts.remember(speaker.end(), said)

    def _say(self, tokens: Iterator[int], speaker: Speaker, said: list[int], most: int | None) -> FinishReason:
        """The hot loop. A token is on its way before the next one is computed."""
        if most == 0:
            return "length"
        for token in tokens:
            piece = self._pieces.get(token) or self._make_piece(token)
            if piece.ends:
                return "stop"
            said.append(token)
            speaker.say(piece)
            if self.cancelled():
                return "cancelled"
            if len(said) == most:
                break
        return "length"

    def _make_piece(self, token: int) -> Piece:
        vocabulary = self.model.vocabulary
        data = vocabulary.piece(token)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = ""
        piece = Piece(data, text, line(text) if text else b"", vocabulary.ends(token))
        self._pieces[token] = piece
        return piece


def run(make_desk: Callable[[Inbox, Events], Desk]) -> None:
    """Run the process: the pipes are standard input and output, everything else that is printed goes to the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of the weights would keep the user waiting
    events = os.dup(1)
    os.dup2(2, 1)
    inbox = Inbox()
    _start_thread(make_desk, inbox, Events(events))
    inbox.read(sys.stdin.buffer)
    os._exit(0)  # also in the middle of a computation


def _start_thread(make_desk: Callable[[Inbox, Events], Desk], inbox: Inbox, events: Events) -> None:
    for size in _STACK_BYTES:
        with contextlib.suppress(RuntimeError, ValueError):
            threading.stack_size(size)
            threading.Thread(target=_serve, args=(make_desk, inbox, events), daemon=True).start()
            return
    raise MemoryError("no room for a thread")


def _serve(make_desk: Callable[[Inbox, Events], Desk], inbox: Inbox, events: Events) -> None:
    try:
        make_desk(inbox, events).serve()
    except BaseException:  # noqa: BLE001  the end of the process, not of the exception
        sys.excepthook(*sys.exc_info())  # a bug keeps its traceback, in the log
        os._exit(_BUG)
