"""A screen whose transcript follows the model thread: what it tells becomes what is seen."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from textual import on
from textual.screen import Screen

from phi4local.actions.talk import TooLong, save, shortened
from phi4local.chats import Message
from phi4local.errors import NotFound, Phi4LocalError
from ui import told
from ui.model_thread import Load, ModelThread
from ui.open_chat import OpenChat
from ui.status import State, StatusLine, StatusPanel
from ui.told import ModelChoice
from ui.transcript import Transcript
from ui.turn import Place, Turn

if TYPE_CHECKING:
    from textual.message import Message as Fact

_WATCH_SECONDS = 0.5
_SAVE_SECONDS = 5.0  # between tries to put on disk what was kept from it
_SAVES_AGAIN = "Make room: it is tried again by itself as long as this program runs"


class AnsweringScreen(Screen[None]):
    """Holds the open chat, the model and its thread. What a user can do is in the class below this one."""

    def __init__(self, choice: ModelChoice, load: Load | None = None) -> None:
        super().__init__()
        self.choice = choice
        self.talk: OpenChat  # opened when the screen has been painted once
        self.model = ModelThread(self._tell, load)
        self.waiting: int | None = None  # the question whose answer has not ended
        self._unsaved: list[Message] = []
        self._thinking_since = self._answering_since = 0.0
        self._prompt_tokens = 0
        self._was_dead = False
        self._saves_at = 0.0
        self._state: State = "none"

    def _tell(self, fact: Fact) -> None:
        with contextlib.suppress(RuntimeError):  # the program is being left
            self.post_message(fact)

    # ---- parts ----

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def status(self) -> StatusLine:
        return self.query_one(StatusLine)

    @property
    def label(self) -> str:
        """What the model in use is called."""
        return self.model.opened.label if self.model.opened else self.talk.chat.model

    def begin(self, talk: OpenChat) -> None:
        """The first paint is done: open the model behind it, and watch it."""
        self.talk = talk
        self.model.open(self.choice)
        self.set_interval(_WATCH_SECONDS, self._watch_engine)

    def complain(self, error: Phi4LocalError, *, title: str = "", hint: str = "") -> None:
        """Say what went wrong and what to do about it."""
        todo = f"\n{hint or error.hint}" if hint or error.hint else ""
        self.notify(f"{error.message}{todo}", title=title, severity="error", timeout=10, markup=False)

    def show_chat(self, at: int | None = None) -> None:
        """The open branch as it is on disk."""
        unsaved = {one.id: one for one in self._unsaved}
        self.talk.branch = [unsaved.get(one.id, one) for one in self.talk.branch]
        start, places = self.talk.start, self._places()
        turns = [
            Turn(message, place, self._speaker(message))
            for message, place in zip(self.talk.branch, places, strict=True)
        ]
        for turn in turns:
            turn.note = _note(turn.message)
        if start:
            turns[start].rule = self._rule(start)
            summary = self.talk.chat.sampling.get("summary")
            turns[start].summary = summary if isinstance(summary, str) else ""
        self.transcript.show(turns, at)
        self.show_title()
        self.show_latency()

    def _places(self) -> list[Place]:
        try:
            return self.talk.places()
        except Phi4LocalError as error:
            self.complain(error)
            return [Place()] * len(self.talk.branch)

    def _rule(self, start: int) -> str:
        told = "is told a summary of" if self.talk.chat.sampling.get("summary") else "is no longer told"
        return f"the model {told} the {start} messages above"

    def _speaker(self, message: Message) -> str:
        if message.stats is None and message.state == "complete":
            return "Answer, written by you"
        model = (message.stats or {}).get("model")
        return model if isinstance(model, str) and model else self.label or "Answer"

    def show_title(self) -> None:
        """The chat's name, and where it is kept."""

    def show_latency(self) -> None:
        self.query_one(StatusPanel).show_answers([one.stats for one in self.talk.branch if one.stats])

    # ---- asking ----

    def ask_model(self, *, again: bool = False) -> None:
        """Let the model answer the question at the end of the branch; `again`: otherwise than before."""
        self.waiting = self.talk.branch[-1].id
        self.try_to_save()
        loads = self._state == "loading"
        if self.model.opened is None and not loads:
            self.model.open(self.choice)
        self._set_state("reading" if self.model.opened and not loads else "loading")
        self.model.ask(self.talk.history, self.talk.chat, self.talk.branch, again=again)

    def stop_answer(self) -> None:
        """End the answer; a question that waits for its model is not asked at all."""
        if self._state != "loading" or self.waiting is None:
            self.model.stop()
            return
        self.model.forget()
        if turn := self.transcript.turn_of(self.waiting):
            turn.end(turn.message, "not asked; r on it asks")
            self.transcript.changed(turn)
        self.waiting = None
        self._set_state("loading")

    def _set_state(self, state: State, tokens: int = 0) -> None:
        self._state = state
        self.status.show_state(state, tokens)
        self.set_class(self.waiting is not None, "-answering")
        self.refresh_bindings()

    def try_to_save(self) -> None:
        """Put on disk the answers that a full one has kept from it."""
        self._unsaved = [one for one in self._unsaved if save(self.talk.history, one) is not None]

    # ---- what the thread tells ----

    @on(told.Loading)
    def _loading(self) -> None:
        self._set_state("loading")

    @on(told.Loaded)
    def _loaded(self, fact: told.Loaded) -> None:
        self.choice = fact.choice
        self._show_model()
        for note in fact.opened.engine.info.notes:
            self.notify(note, timeout=8, markup=False)
        self._set_state("reading" if self.waiting is not None else "ready")
        self.recount()

    @on(told.LoadFailed)
    def _load_failed(self, fact: told.LoadFailed) -> None:
        self._show_model()
        self._set_state("ready" if fact.kept else "none")
        self.recount()
        if fact.kept is None and isinstance(fact.error, NotFound) and fact.choice.name is None:
            self.first_run()
            return
        going_on = f"Going on with {fact.kept.label}" if fact.kept else "The model was not loaded"
        self.complain(fact.error, title=going_on)

    def first_run(self) -> None:
        """There is no model on this machine."""

    def _show_model(self) -> None:
        self._was_dead = False
        self.status.show_model(self.model.opened)
        self.query_one(StatusPanel).show_model(self.model.opened)
        self._show_use(None)

    def recount(self) -> None:
        """Ask how many tokens the branch takes."""
        if self.model.opened and self.waiting is None:
            if self.talk.is_new:
                self.model.count(self.talk.chat, self.talk.branch)
            else:
                self.model.visit(self.talk.chat, self.talk.branch)

    @on(told.Counted)
    def _counted(self, fact: told.Counted) -> None:
        leaf = self.talk.branch[-1].id if self.talk.branch else None
        if fact.leaf == leaf:
            self._show_use(fact.tokens)

    @on(told.Refused)
    def _refused(self, fact: told.Refused) -> None:
        self.waiting = None
        self._set_state("ready" if self.model.opened else "none")
        turn = self.transcript.turn_of(fact.question.id)
        if turn:
            turn.end(turn.message, _told(fact.error, "press r on it to ask again"))
            self.transcript.changed(turn)
        if isinstance(fact.error, TooLong):
            self._show_use(fact.error.used_tokens)
            self.too_long(fact.error)

    def too_long(self, error: TooLong) -> None:
        """The conversation does not fit any more."""

    @on(told.Begun)
    def _begun(self, fact: told.Begun) -> None:
        if not self._is_here(fact.message):
            return
        if self.waiting is None:  # it was given up in the moment in which it was asked
            self.model.stop()
        self.talk.answered(fact.message)
        with contextlib.suppress(Phi4LocalError):  # it is only a note for the next time
            self.talk.set(model=self.label)
        turn = Turn(fact.message, self._places()[-1], self.label)
        turn.begin("…")
        self.transcript.add(turn)
        self._thinking_since, self._prompt_tokens = 0.0, fact.prompt_tokens
        self._show_use(fact.prompt_tokens)
        self._set_state("reading", fact.prompt_tokens)

    def _is_here(self, answer: Message) -> bool:
        """Whether an answer belongs to the branch that is open; another chat may have been opened meanwhile."""
        return answer.chat == self.talk.chat.id and any(one.id == answer.parent for one in self.talk.branch)

    @on(told.Delta)
    def _delta(self, fact: told.Delta) -> None:
        turn = self.transcript.turn_of(fact.message)
        if turn is None:
            return
        if fact.thinking:
            self._thinking_since = self._thinking_since or time.monotonic()
        thought = time.monotonic() - self._thinking_since if fact.thinking else 0.0
        turn.grow(fact.text, fact.thinking, thought)
        self.transcript.changed(turn)
        self._show_use(self._prompt_tokens + fact.tokens)
        if self._state != "answering":
            self._answering_since = time.monotonic()
            self._set_state("answering")
        elif (seconds := time.monotonic() - self._answering_since) > 1:
            self.status.show_speed(fact.tokens / seconds, None)

    def _show_use(self, tokens: int | None) -> None:
        """How much of the context is used."""
        if self.model.opened:
            self.status.budget.show(tokens, self.model.opened.engine.info.context_tokens)

    @on(told.Unsaved)
    def _not_saved(self, fact: told.Unsaved) -> None:
        self.complain(fact.error, title="The answer is not on disk", hint=_SAVES_AGAIN)

    @on(told.Ended)
    def _ended(self, fact: told.Ended) -> None:
        answered = fact.answered
        message = answered.message
        self.waiting = None
        if answered.unsaved:
            self._unsaved.append(message)
            self.complain(answered.unsaved, title="The answer is not on disk", hint=_SAVES_AGAIN)
        if self._is_here(message):
            self.talk.answered(message)
        if turn := self.transcript.turn_of(message.id):
            turn.end(message, _note(message))
            self.transcript.changed(turn)
        if answered.finish:
            stats = answered.finish.stats
            self.status.show_speed(stats.generation_tps, stats.ttft_seconds)
            self._show_use(stats.prompt_tokens + stats.generation_tokens)
        self.show_latency()
        self._set_state("stopped" if self.model.is_dead else "ready")

    @on(told.Summarised)
    def _summarised(self, fact: told.Summarised) -> None:
        self.waiting = None
        self._set_state("ready")
        if fact.error:
            self.complain(fact.error)
        elif fact.chat == self.talk.chat.id:
            self.shorten(fact.start, fact.text)

    def shorten(self, start: int | None, summary: str = "") -> None:
        """Let the model be told less, and ask what is waiting for room."""
        try:
            self.talk.set(sampling=shortened(self.talk.chat, start, summary))
        except Phi4LocalError as error:
            self.complain(error)
            return
        self.show_chat()
        if self.talk.branch and self.talk.branch[-1].role == "user":
            self.ask_model()
        else:
            self.recount()

    @on(told.Bug)
    def _bug(self, fact: told.Bug) -> None:
        raise fact.error

    def _watch_engine(self) -> None:
        """The engine may die while nobody asks it anything."""
        dead = self.model.is_dead
        if dead and not self._was_dead and self.waiting is None:
            self._set_state("stopped")
            self.notify("The engine's process has ended. It starts again with the next question", severity="warning")
        self._was_dead = dead
        if self._unsaved and time.monotonic() > self._saves_at:
            self._saves_at = time.monotonic() + _SAVE_SECONDS
            self.try_to_save()


def _told(error: Phi4LocalError, instead: str) -> str:
    return f"{error.message}\n{error.hint or instead}"


def _note(message: Message) -> str:
    """How an answer ended, where that is not as it should be."""
    stats = message.stats or {}
    if message.state == "failed" and isinstance(stats.get("error"), str):
        return f"{stats['error']}\nr asks again"
    cut = message.state == "partial" and stats.get("reason") == "length"
    return "cut off: the longest answer or the end of the context is reached" if cut else ""
