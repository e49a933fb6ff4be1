"""The engine's own process: requests come in as JSON lines, events go out as JSON lines, llama.cpp runs in between.

    in    {"op": "load", "settings": {...}, "budget": {...}}
          {"op": "answer", "id": 1, "messages": [...], "options": {...}}
          {"op": "count", "messages": [...]}
          {"op": "time", "prompt_tokens": 512, "generation_tokens": 128}
          {"op": "state_bytes"}  {"op": "save", "path": "..."}  {"op": "restore", "path": "..."}
          {"op": "cancel", "id": 1}           end of file: the parent is gone, and so is this process, at once
    out   {"placed": bytes that it will take}  {"loaded": {...}}  {"rendered": {...}}  {"finish": {...}}
          {"counted": tokens}  {"timing": {...}}  {"state_bytes": 1}  {"saved": bytes}  {"restored": tokens}
          {"error": {...}}  and, for every piece of an answer, a bare JSON string

The first thread only reads requests, so that a cancellation or the parent's death is seen while llama.cpp computes.
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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import llama_cpp.llama_cpp as llama

from phi4local.backends.llamacpp_model import Cancelled, LlamaModel, NativeLog, Timeline, make_sampler
from phi4local.backends.llamacpp_state import file_identity, read_state, state_key, write_state
from phi4local.backends.load_settings import Budget, LoadSettings
from phi4local.backends.placing import loaded, place_file
from phi4local.backends.prompt import Prompts
from phi4local.engine import FinishReason, GenerationOptions
from phi4local.errors import FormatError, Phi4LocalError
from phi4local.template import ChatTemplate

# llama.cpp splits text with std::regex, which needs a stack frame for every letter of a word: 60,000 fill 8 MiB.
_STACK_BYTES = (512 << 20, 64 << 20, 0)  # the largest that the system grants; 0: its default
_BUG = 70
_SHORT_PROMPT = 16  # before generation is timed
Request = dict[str, Any]


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


class Desk:
    """Serves the requests with one loaded model."""

    def __init__(self, inbox: Inbox, events: Events) -> None:
        self._inbox = inbox
        self._events = events
        self._log = NativeLog(2)
        self._answer_id = -1
        self._rounds = 0
        self._pieces: dict[int, Piece] = {}

    def serve(self) -> None:
        """Serve until the process ends."""
        operations: dict[str, Callable[[Request], None]] = {
            "load": self._load,
            "answer": self._answer,
            "count": lambda request: self._events.send({"counted": len(self._prompt(request["messages"]))}),
            "time": self._time,
            "state_bytes": lambda _: self._events.send({"state_bytes": self._timeline.state_bytes}),
            "save": self._save,
            "restore": self._restore,
        }
        while True:
            request = self._inbox.next()
            self._log.listen()
            try:
                operations[request["op"]](request)
            except Phi4LocalError as error:
                self._events.send({"error": {"type": type(error).__name__, **vars(error)}})

    def _load(self, request: Request) -> None:
        placed = place_file(LoadSettings(**request["settings"]), Budget(**request["budget"]), self._log.errors)
        self._events.send({"placed": placed.placement.total.total_bytes})
        self._log.listen()  # what was only asked is no complaint
        identity = file_identity(Path(placed.settings.path))  # as it is now: it may be replaced while it is in use
        self._model = LlamaModel(placed.settings, self._log)
        self._state_key = state_key(self._model, identity)
        self._timeline = Timeline(self._model, self._cancelled)
        self._prompts = Prompts(_chat_template(self._model), self._model.vocabulary)
        self._events.send(
            {
                "loaded": {
                    "description": self._model.description,
                    "context_sizes": self._model.context_sizes,
                    "load": asdict(loaded(placed, self._timeline.context, self._model.context_sizes[0])),
                }
            }
        )

    def _answer(self, request: Request) -> None:
        self._answer_id = request["id"]
        ids = self._prompt(request["messages"])
        self._events.send({"finish": self._speak(ids, GenerationOptions(**request["options"]))})

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """A conversation's token ids (FormatError, UsageError); the parent is told when the template is done."""
        rendered = self._prompts.render(messages)
        self._events.send({"rendered": {"thinking": rendered.thinking}})
        ids = self._prompts.ids(rendered)
        if not ids:  # llama.cpp would abort
            raise FormatError(f"The chat template of `{_name(self._model)}` writes nothing")
        return ids

    def _time(self, request: Request) -> None:
        """Tokens in no order, then generation at the beginning of a timeline, whatever its end; nothing is kept."""
        self._answer_id = -1  # the last answer may have been cancelled, this was not
        vocabulary = self._model.vocabulary.size
        self._rounds += 1
        ids = [(self._rounds + 7919 * place) % vocabulary for place in range(request["prompt_tokens"])]
        self._timeline.clear()
        start = time.perf_counter()
        self._timeline.read(ids)
        read_seconds = time.perf_counter() - start
        self._timeline.clear()
        self._timeline.read(ids[:_SHORT_PROMPT])
        sampler = make_sampler(GenerationOptions())
        start = time.perf_counter()
        for _ in range(request["generation_tokens"]):
            self._timeline.append(llama.llama_sampler_sample(sampler, self._timeline.context, -1))
        llama.llama_synchronize(self._timeline.context)
        seconds = time.perf_counter() - start
        llama.llama_sampler_free(sampler)
        self._timeline.clear()
        self._events.send({"timing": {"prompt_seconds": read_seconds, "generation_seconds": seconds}})

    def _save(self, request: Request) -> None:
        answers = self._prompts.remembered()
        written = write_state(Path(request["path"]), self._timeline, self._state_key, answers, self._log.errors)
        self._events.send({"saved": written})

    def _restore(self, request: Request) -> None:
        """With the ids of its own answers, without which a conversation would not begin with the same tokens."""
        answers = read_state(Path(request["path"]), self._timeline, self._state_key)
        for text, ids in answers or ():
            self._prompts.remember(text, ids)
        self._events.send({"restored": 0 if answers is None else len(self._timeline)})

    def _speak(self, ids: list[int], options: GenerationOptions) -> dict[str, Any]:
        """Read the prompt and answer it; how it ended and what it cost."""
        said: list[int] = []
        started = read = time.perf_counter()
        cached = self._timeline.rewind(ids)
        try:
            self._timeline.read(ids[cached:])
            read = time.perf_counter()
            reason = self._generate(said, options)
        except Cancelled:
            reason = "cancelled"
        return {
            "reason": reason,
            "prompt_tokens": len(ids),
            "cached_tokens": cached,
            "read_tokens": min(len(self._timeline), len(ids)) - cached,
            "generation_tokens": len(said),
            "prompt_seconds": read - started,
            "generation_seconds": time.perf_counter() - read,
        }

    def _generate(self, said: list[int], options: GenerationOptions) -> FinishReason:
        """Say tokens until something ends the answer (Cancelled)."""
        sampler = make_sampler(options)
        speaker = Speaker(self._events)
        try:
            return self._say_tokens(sampler, speaker, said, options.max_tokens)
        finally:
            llama.llama_sampler_free(sampler)
            self._prompts.remember(speaker.end(), said)

    def _say_tokens(self, sampler: Any, speaker: Speaker, said: list[int], most: int | None) -> FinishReason:
        """The hot loop. A token is on its way before the next one is computed."""
        timeline, pieces = self._timeline, self._pieces
        while len(said) != most:
            token = llama.llama_sampler_sample(sampler, timeline.context, -1)
            piece = pieces.get(token) or self._piece(token)
            if piece.ends:
                return "stop"
            said.append(token)
            speaker.say(piece)
            if self._inbox.cancelled_id == self._answer_id:
                return "cancelled"
            if len(said) != most and not timeline.append(token):
                return "length"
        return "length"

    def _piece(self, token: int) -> Piece:
        vocabulary = self._model.vocabulary
        data = vocabulary.piece(token)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = ""
        piece = Piece(data, text, line(text) if text else b"", vocabulary.ends(token))
        self._pieces[token] = piece
        return piece

    def _cancelled(self) -> bool:
        return self._inbox.cancelled_id == self._answer_id


def _chat_template(model: LlamaModel) -> ChatTemplate:
    name = _name(model)
    if not model.template:
        raise FormatError(f"`{name}` carries no chat template", hint="Get a build that has one")
    return ChatTemplate(model.template, name=name, bos=model.vocabulary.bos, eos=model.vocabulary.eos)


def _name(model: LlamaModel) -> str:
    return Path(model.settings.path).name


def main() -> None:
    """Run the process: the pipes are standard input and output, everything else that is printed goes to the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of the weights would keep the user waiting
    events = os.dup(1)
    os.dup2(2, 1)
    inbox = Inbox()
    _start_thread(Desk(inbox, Events(events)))
    inbox.read(sys.stdin.buffer)
    os._exit(0)  # also in the middle of a computation


def _start_thread(desk: Desk) -> None:
    for size in _STACK_BYTES:
        with contextlib.suppress(RuntimeError, ValueError):
            threading.stack_size(size)
            threading.Thread(target=_serve, args=(desk,), daemon=True).start()
            return
    raise MemoryError("no room for a thread")


def _serve(desk: Desk) -> None:
    try:
        desk.serve()
    except BaseException:  # noqa: BLE001  the end of the process, not of the exception
        sys.excepthook(*sys.exc_info())  # a bug keeps its traceback, in the log
        os._exit(_BUG)


if __name__ == "__main__":
    main()
