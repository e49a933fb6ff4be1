"""The thread that owns the engine: one job after the other; what it learns it tells in messages.

It is a daemon, so that leaving the program waits for nothing. A turn has ended when `Ended` has come, never earlier.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import secrets
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textual.message import Message as Fact

from phi4local.errors import Phi4LocalError
from ui import told
from ui.told import ModelChoice

if TYPE_CHECKING:
    from phi4local.actions import talk
    from phi4local.actions.chat import Opened
    from phi4local.chats import Attachment, Chat, Message
    from phi4local.engine import Chunk, Finish, Session
    from phi4local.history import History

_FRAME_SECONDS = 0.07  # pieces of an answer are told together, about fourteen times a second
_IDLE_SECONDS = 1.5  # so long after an answer what was read is kept on disk
_WRITTEN_BYTES = 200e6  # so many more bytes of a KV cache, a second more of that
_LAST_SECONDS = 0.25  # for an answer to end when the program is left
_OTHERWISE = 0.7  # temperature of another answer where the model's own sampling would say the same again
_LEAST_KEPT = 256  # tokens: reading fewer again costs nothing


@dataclass
class _Pending:
    """What was said and has not been told yet."""

    text: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    told_at: float = 0.0
    tokens: int = 0


# How to come by an engine: the choice, what is open now, and how to close that once it is certain that it must go.
Load = Callable[[ModelChoice, "Opened | None", Callable[[], None]], "Opened"]


def load_model(choice: ModelChoice, before: Opened | None, leave: Callable[[], None]) -> Opened:
    """Load a model of this machine (the errors of `phi4local.actions.chat.open_model`)."""
    from phi4local.actions.chat import check_room, locate, open_located

    context, kv = choice.context_tokens, choice.kv_type
    located = locate(choice.name, context_tokens=context, kv_type=kv, replaced=before.engine if before else None)
    if before:
        check_room(located, before.engine, context_tokens=context, kv_type=kv)
        leave()
    return open_located(located, context_tokens=context, kv_type=kv)


class ModelThread:
    """The engine and its thread. Its methods are for the screen's thread and return at once."""

    def __init__(self, tell: Callable[[Fact], object], load: Load | None = None) -> None:
        self.opened: Opened | None = None
        self._tell = tell
        self._load = load or load_model
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._session: Session | None = None
        self._chat: int | None = None  # whose timeline the session is
        self._unkept = False
        self._wanted: ModelChoice | None = None  # the newest choice; one that waits behind a load is not loaded for it
        self._request = 0
        self._stopped = threading.Event()
        self._quiet = threading.Event()  # no answer is waited for
        self._quiet.set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    # ---- for the screen ----

    def open(self, choice: ModelChoice) -> None:
        """Load a model in the place of the present one."""
        self._wanted = choice
        self._jobs.put(lambda: self._open(choice) if choice is self._wanted else None)

    def ask(self, history: History, chat: Chat, branch: Sequence[Message], *, again: bool = False) -> None:
        """Answer the question at the end of a branch; `again`: it has an answer, another one is wanted."""
        self._speak_later(lambda: self._answer(history, chat, list(branch), again))

    def stop(self) -> None:
        """End the present answer within a token."""
        self._stopped.set()
        if self._session is not None:
            self._session.cancel()

    def visit(self, chat: Chat, branch: Sequence[Message]) -> None:
        """A chat was opened: take over what was read of it, and count it."""
        self._jobs.put(lambda: self._visit(chat, list(branch)))

    def count(self, chat: Chat, branch: Sequence[Message]) -> None:
        self._jobs.put(lambda: self._count(chat, list(branch)))

    def count_attachment(self, attachment: Attachment) -> None:
        self._jobs.put(lambda: self._count_attachment(attachment))

    def find_room(self, chat: Chat, branch: Sequence[Message], asked: int) -> None:
        """What could be done about a conversation that is too long; `asked` comes back with the answers."""
        self._jobs.put(lambda: self._find_room(chat, list(branch), asked))

    def summarise(self, chat: Chat, branch: Sequence[Message], start: int) -> None:
        """Let the model write what stands for the messages before the one at `start`."""
        self._speak_later(lambda: self._summarise(chat, list(branch), start))

    def forget(self) -> None:
        """Do not ask what has not been asked yet."""
        self._request += 1

    def _speak_later(self, job: Callable[[], None]) -> None:
        self._request += 1
        request = self._request

        def speak() -> None:
            try:
                if request == self._request:
                    job()
            finally:
                self._quiet.set()

        self._stopped.clear()
        self._quiet.clear()
        self._jobs.put(speak)

    @property
    def is_dead(self) -> bool:
        """The engine's process has died and nobody has asked since."""
        return self.opened is not None and not self.opened.engine.alive

    def close(self) -> None:
        """Let go of the engine; an answer is stopped and what it has said is kept, other work just ends."""
        self._closed = True
        self.stop()
        self._quiet.wait(_LAST_SECONDS)
        if self.opened is not None:
            self.opened.engine.close()

    # ---- in the thread ----

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._patience() if self._unkept else None)
            except queue.Empty:
                job = self._keep
            try:
                job()
            except BaseException as error:  # noqa: BLE001  it is raised again in the screen's thread
                self._say(told.Bug(error))

    def _say(self, fact: Fact) -> None:
        if not self._closed:
            self._tell(fact)

    def _open(self, choice: ModelChoice) -> None:
        self._say(told.Loading(choice))
        self._keep()
        before = self.opened
        try:
            opened = self._load(choice, before, self._leave)
        except Phi4LocalError as error:
            if before is not None and self.opened is None:
                self._go_back(before)
            self._say(told.LoadFailed(error, choice, self.opened))
        else:
            self._enter(opened)
            self._say(told.Loaded(opened, choice))

    def _leave(self) -> None:
        """The present model makes room."""
        if self.opened is not None:
            self.opened.engine.close()
        self.opened = self._session = None
        self._unkept = False

    def _enter(self, opened: Opened) -> None:
        self.opened = opened
        self._session, self._chat = opened.engine.open_session(), None
        if self._closed:
            opened.engine.close()

    def _go_back(self, before: Opened) -> None:
        """The model that was open, open again, where that still works."""
        load = before.engine.info.load
        with contextlib.suppress(Phi4LocalError):
            self._enter(
                self._load(ModelChoice(before.located.name, load.context_tokens, load.kv_type), None, self._leave)
            )

    def _session_of(self, chat: int) -> Session | None:
        """The timeline of a chat, with what was read of it before."""
        from phi4local.actions.talk import restore_state

        if self._session is None or self.opened is None:
            return None
        if self._chat != chat:
            self._keep()
            self._session = self.opened.engine.open_session()
            restore_state(self._session, chat)
            self._chat = chat
        return self._session

    def _patience(self) -> float:
        """How long nothing must happen before what was read is kept: a large state takes its time to write."""
        if self.opened is None:
            return _IDLE_SECONDS
        kv_bytes = sum(use.kv_bytes for use in self.opened.engine.info.load.took.values())
        return _IDLE_SECONDS + kv_bytes / _WRITTEN_BYTES

    def _keep(self) -> None:
        """Put on disk what was read of the chat."""
        from phi4local.actions.talk import save_state

        if self._unkept and self._session is not None and self._chat is not None:
            save_state(self._session, self._chat)
        self._unkept = False

    def _visit(self, chat: Chat, branch: list[Message]) -> None:
        self._session_of(chat.id)
        self._count(chat, branch)

    def _count(self, chat: Chat, branch: list[Message]) -> None:
        from phi4local.actions.talk import prompt_of

        tokens = None
        if self.opened is not None:
            with contextlib.suppress(Phi4LocalError):  # the question itself will say what is wrong
                tokens = self.opened.engine.count(prompt_of(chat, branch))
        self._say(told.Counted(branch[-1].id if branch else None, tokens))

    def _count_attachment(self, attachment: Attachment) -> None:
        from phi4local.conversation import Message as Turn
        from phi4local.documents import as_prompt

        if self.opened is not None:
            with contextlib.suppress(Phi4LocalError):
                tokens = self.opened.engine.count([Turn("user", as_prompt("", [attachment]))])
                self._say(told.AttachmentCounted(attachment, tokens))

    def _answer(self, history: History, chat: Chat, branch: list[Message], again: bool) -> None:
        from phi4local.actions import talk
        from phi4local.actions.talk import LEAST_ROOM, TooLong, options_of, prompt_of

        question, session = branch[-1], self._session_of(chat.id)
        if session is None or self.opened is None:
            self._say(told.Refused(question, _NO_MODEL))
            return
        options = options_of(self.opened.options, chat.sampling)
        if "seed" not in chat.sampling:
            options = dataclasses.replace(options, seed=secrets.randbelow(1 << 31))
        if again and not options.temperature and "temperature" not in chat.sampling:
            options = dataclasses.replace(options, temperature=_OTHERWISE)
        try:
            prompt = prompt_of(chat, branch)
            used, context = self.opened.engine.count(prompt), self.opened.engine.info.context_tokens
            if used + LEAST_ROOM > context:
                self._say(told.Refused(question, TooLong(used, context)))
                return
            answer = talk.answer(
                history,
                question,
                prompt,
                lambda turns: self._begin(session, session.stream(turns, options)),
                self.opened.label,
            )
            self._speak(answer, used)
        except Phi4LocalError as error:
            self._say(told.Refused(question, error))

    def _begin(self, session: Session, stream: Generator[Chunk | Finish]) -> Generator[Chunk | Finish]:
        """A stream that a stop before it has reached, too."""
        if self._stopped.is_set():
            session.cancel()
        return stream

    def _speak(self, answer: Generator[talk.Event], used_tokens: int) -> None:
        """Tell of an answer while it is given (Phi4LocalError where it has not begun)."""
        from phi4local.actions import talk
        from phi4local.engine import Chunk

        pending, message = _Pending(), 0
        for event in answer:
            if isinstance(event, Chunk):
                (pending.text if event.kind == "answer" else pending.thinking).append(event.text)
                pending.tokens += 1
                if time.monotonic() - pending.told_at >= _FRAME_SECONDS:
                    self._tell_pending(message, pending)
            elif isinstance(event, talk.Begun):
                message = event.message.id
                self._say(told.Begun(event.message, used_tokens))
            elif isinstance(event, talk.Unsaved):
                self._say(told.Unsaved(event.error))
            else:
                self._tell_pending(message, pending)
                stats = event.finish.stats if event.finish else None
                self._unkept = bool(stats and stats.prompt_tokens + stats.generation_tokens >= _LEAST_KEPT)
                self._say(told.Ended(event))

    def _tell_pending(self, message: int, pending: _Pending) -> None:
        if pending.text or pending.thinking:
            self._say(told.Delta(message, "".join(pending.text), "".join(pending.thinking), pending.tokens))
        pending.text, pending.thinking, pending.told_at = [], [], time.monotonic()

    def _find_room(self, chat: Chat, branch: list[Message], asked: int) -> None:
        from phi4local.actions.longer import longer_context
        from phi4local.actions.talk import prompt_of, turns_to_drop

        if self.opened is None:
            self._say(told.DropCounted(asked, 0, 0))
            self._say(told.LongerFound(asked, "No model is open"))
            return
        index = tokens = 0
        with contextlib.suppress(Phi4LocalError):  # then nothing can be dropped
            found = turns_to_drop(self.opened.engine, chat, branch)
            tokens = self.opened.engine.count(prompt_of(chat, branch[found:]))
            index = found
        self._say(told.DropCounted(asked, index, tokens))
        self._say(told.LongerFound(asked, longer_context(self.opened)))

    def _summarise(self, chat: Chat, branch: list[Message], start: int) -> None:
        said, failure = "", None
        try:
            said = self._summary(chat, branch, start)
        except Phi4LocalError as error:
            failure = error
        self._say(told.Summarised(chat.id, branch[start].id, said, failure))

    def _summary(self, chat: Chat, branch: list[Message], start: int) -> str:
        """What the model writes about the messages before `start`, whole (Phi4LocalError)."""
        from phi4local.actions.talk import options_of, summarise
        from phi4local.engine import Chunk

        session = self._session_of(chat.id)
        if session is None or self.opened is None:
            raise _NO_MODEL
        options = options_of(self.opened.options, chat.sampling)
        # Not the chat's own limit of an answer: a summary that breaks off would be a loss that nobody sees.
        options = dataclasses.replace(options, max_tokens=max(64, self.opened.engine.info.context_tokens // 4))
        said, reason = [], ""
        stream = self._begin(session, session.stream(summarise(chat, branch, start), options))
        with contextlib.closing(stream):
            for item in stream:
                if not isinstance(item, Chunk):
                    reason = item.reason
                elif item.kind == "answer":
                    said.append(item.text)
        text = "".join(said).strip()
        if reason != "stop" or not text:
            why = "was stopped" if reason == "cancelled" else "did not come to its end"
            raise Phi4LocalError(f"The summary {why}", hint="Drop the oldest turns instead, or try again: Ctrl-L")
        return text


_NO_MODEL = Phi4LocalError("No model is loaded", hint="Choose one: F2 shows what is here and what fits")
