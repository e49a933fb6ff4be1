"""An open chat: what the model is told of it, and answers that are on disk while they come. Knows no screen.

A chat's options (`Chat.sampling`) hold what differs from the model's own sampling, the preset's name and, once the
user has shortened the conversation, `start`: the first message that the model is still told, and `summary`: what
stands for those before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi4local.backends.states import keep, state_path
from phi4local.chats import Chat, Message, State
from phi4local.conversation import Message as Turn
from phi4local.documents import as_prompt
from phi4local.engine import Chunk, Engine, Finish, GenerationOptions, Session
from phi4local.errors import Phi4LocalError, UsageError
from phi4local.history import History
from phi4local.settings import state_folder

SAVE_SECONDS = 1.0  # of an answer, at most so much can be lost to a kill
LEAST_ROOM = 64  # tokens that an answer must have
_STATE_OF: dict[str, State] = {"stop": "complete", "length": "partial", "cancelled": "stopped", "error": "failed"}


@dataclass(frozen=True, slots=True)
class Begun:
    """The answer has its place in the chat, still empty."""

    message: Message


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What was said since the last second is not on disk; the answer goes on."""

    error: Phi4LocalError


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer as it stays; `error` ended it early, `unsaved` kept it from the disk."""

    message: Message
    finish: Finish | None
    error: Phi4LocalError | None
    unsaved: Phi4LocalError | None


Event = Begun | Chunk | Unsaved | Answered


class TooLong(UsageError):
    """A conversation does not fit into the context."""

    def __init__(self, used_tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"The conversation takes {used_tokens:,} of the context's {context_tokens:,} tokens: no room for an answer",
            hint="Shorten it, or choose a longer context: Ctrl-L",
        )
        self.used_tokens, self.context_tokens = used_tokens, context_tokens


def prompt_of(chat: Chat, branch: Sequence[Message]) -> list[Turn]:
    """What the model is told: the system message, a summary, then the turns from `start` on.

    Turns without text are left out, and what the user said twice in a row is one turn: many templates want turns to
    alternate.
    """
    summary = chat.sampling.get("summary")
    told = branch[start_of(chat, branch) :]
    system = [chat.system] if chat.system else []
    if isinstance(summary, str) and summary and len(told) < len(branch):
        system.append(f"What was said before, in short:\n{summary}")
    turns = [Turn("system", "\n\n".join(system))] if system else []
    for message in told:
        text = as_prompt(message.text, message.attachments)
        if not text:
            continue
        if turns and turns[-1].role == message.role == "user":
            text = f"{turns.pop().content}\n\n{text}"
        turns.append(Turn(message.role, text))
    return turns


def start_of(chat: Chat, branch: Sequence[Message]) -> int:
    """The index of the first message that the model is told; 0 where the chat was not shortened on this branch."""
    start = chat.sampling.get("start")
    return next((index for index, message in enumerate(branch) if message.id == start), 0)


def options_of(defaults: GenerationOptions, sampling: Mapping[str, Any]) -> GenerationOptions:
    """The model's sampling with what the chat says otherwise; what makes no sense is ignored."""
    wanted: dict[str, Any] = {}
    for name, (kind, least, most) in _SENSIBLE.items():
        value: Any = sampling.get(name)
        if type(value) in (int, kind) and least <= value <= most:
            wanted[name] = value
    return dataclasses.replace(defaults, **wanted)


_SENSIBLE: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 10),
    "top_k": (int, 0, 1 << 20),
    "top_p": (float, 0, 1),
    "seed": (int, 0, (1 << 32) - 1),
    "max_tokens": (int, 1, 1 << 24),
}


def answer(
    history: History,
    question: Message,
    prompt: Sequence[Turn],
    ask: Callable[[Sequence[Turn]], Generator[Chunk | Finish]],
    model: str,
) -> Generator[Event]:
    """One answer to `question`, on disk from before its first word; closing the generator stops and keeps it.

    `ask` begins the stream of a session; `model` is who answers. Ends with exactly one `Answered`, also when the engine
    fails (InsufficientResources, UsageError where not even the empty answer can be kept).
    """
    written = _Written(history, history.begin_answer(question.chat, question.id), model)
    yield Begun(written.message)
    finish: Finish | None = None
    error: Phi4LocalError | None = None
    try:
        with contextlib.closing(ask(prompt)) as stream:
            for item in stream:
                if isinstance(item, Finish):
                    finish = item
                    continue
                missed = written.hear(item)
                yield item
                if missed:
                    yield Unsaved(missed)
    except Phi4LocalError as caught:
        error = caught
    except GeneratorExit:
        written.end("stopped")
        raise
    reason = finish.reason if finish else "error"
    unsaved = written.end(_STATE_OF[reason], finish, error)
    yield Answered(written.message, finish, error, unsaved)


class _Written:
    """An answer on its way to the disk."""

    def __init__(self, history: History, message: Message, model: str) -> None:
        self.message = message
        self._history, self._model = history, model
        self._said: dict[str, list[str]] = {"answer": [], "thinking": []}
        self._thinking_since = 0.0
        self._thinking_seconds = 0.0
        self._saved_at = time.monotonic()

    def hear(self, chunk: Chunk) -> Phi4LocalError | None:
        """Take a piece, and keep everything once a second; what keeps it from the disk."""
        now = time.monotonic()
        if chunk.kind == "thinking":
            self._thinking_since = self._thinking_since or now
            self._thinking_seconds = now - self._thinking_since
        self._said[chunk.kind].append(chunk.text)
        if now - self._saved_at < SAVE_SECONDS:
            return None
        self._saved_at = now
        try:
            self._history.grow(self.message.id, self._text("answer"), self._text("thinking"), self._thinking_seconds)
        except Phi4LocalError as error:
            return error
        return None

    def end(
        self, state: State, finish: Finish | None = None, error: Phi4LocalError | None = None
    ) -> Phi4LocalError | None:
        """The answer as it stays; what keeps it from the disk."""
        cost = dataclasses.asdict(finish.stats) | {"reason": finish.reason} if finish else {}
        why = {"error": error.message} if error else {}
        self.message = dataclasses.replace(
            self.message,
            text=self._text("answer"),
            thinking=self._text("thinking"),
            thinking_seconds=self._thinking_seconds,
            state=state,
            stats={"model": self._model, **cost, **why},
        )
        return save(self._history, self.message)

    def _text(self, kind: str) -> str:
        return "".join(self._said[kind])


def save(history: History, message: Message) -> Phi4LocalError | None:
    """Put a finished answer on disk; what keeps it from there."""
    try:
        history.finish(
            message.id,
            message.text,
            state=message.state,
            thinking=message.thinking,
            thinking_seconds=message.thinking_seconds,
            stats=message.stats,
        )
    except Phi4LocalError as error:
        return error
    return None


# ---- a conversation that gets too long ----


def turns_to_drop(engine: Engine, chat: Chat, branch: Sequence[Message]) -> int:
    """The index of the question that the conversation may begin with so that a quarter of the context is free.

    The last question where even that is not enough.
    """
    starts = [index for index, message in enumerate(branch) if message.role == "user" and index] or [0]
    most = engine.info.context_tokens * 3 // 4
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if engine.count(prompt_of(_started(chat, branch[starts[middle]].id, ""), branch)) <= most:
            high = middle
        else:
            low = middle + 1
    return starts[low]


def _started(chat: Chat, start: int, summary: str) -> Chat:
    return dataclasses.replace(chat, sampling={**chat.sampling, "start": start, "summary": summary})


def summarise(chat: Chat, branch: Sequence[Message], start: int) -> list[Turn]:
    """The conversation that asks a model for a summary of all before the message at `start`."""
    before = prompt_of(chat, branch[:start])
    if before and before[-1].role == "user":
        before.pop()
    return [*before, Turn("user", _SUMMARY)]


_SUMMARY = (
    "Summarise our conversation so far for your own later use: the facts, names, numbers, decisions, code and open "
    "questions that matter for going on. Be brief and complete, and write nothing else."
)


def shortened(chat: Chat, start: int | None, summary: str = "") -> dict[str, Any]:
    """The chat's options with another beginning for the model; None: all of it again."""
    options = {key: value for key, value in chat.sampling.items() if key not in ("start", "summary")}
    return options if start is None else options | {"start": start} | ({"summary": summary} if summary else {})


# ---- what the engine has read, kept on disk ----


def chat_state(chat: int) -> tuple[Path, str]:
    """The folder of kept states, and what a chat's is called there."""
    return state_folder() / "chats", f"chat-{chat}"


def save_state(session: Session, chat: int) -> int:
    """Keep what was read of a chat, so that it need not be read again when it is reopened; how many bytes."""
    folder, name = chat_state(chat)
    with contextlib.suppress(Phi4LocalError):  # a state only saves time
        written = session.save(state_path(folder, name))
        keep(folder, name)
        return written
    return 0


def restore_state(session: Session, chat: int) -> int:
    """Take over what was kept of a chat; how many tokens."""
    folder, name = chat_state(chat)
    with contextlib.suppress(Phi4LocalError):
        tokens = session.restore(state_path(folder, name))
        keep(folder, name)
        return tokens
    return 0


def forget_state(chat: int) -> None:
    """Remove what was kept of a chat that is deleted."""
    with contextlib.suppress(OSError):
        state_path(*chat_state(chat)).unlink(missing_ok=True)
