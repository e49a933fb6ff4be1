"""From the chat to the other screens and back: models, chats, settings, the context, files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on

from phi4local.actions.talk import TooLong, forget_state
from phi4local.errors import NotFound, Phi4LocalError
from ui import told
from ui.answering import AnsweringScreen
from ui.chat_files import FORMATS, current_folder, target, write_chat
from ui.context import Budget, Choice, ContextScreen, Drop
from ui.dialogs import Ask, Confirm
from ui.model_thread import Load
from ui.prompt import Prompt
from ui.told import ModelChoice

if TYPE_CHECKING:
    from ui.chats import Chosen
    from ui.settings import Settings


class NavigatingScreen(AnsweringScreen):
    """What leads away from the transcript, and what comes back from there."""

    def __init__(self, choice: ModelChoice, load: Load | None = None) -> None:
        super().__init__(choice, load)
        self._fullness: ContextScreen | None = None
        self._opened_files: dict[Path, None] = {}  # in their order
        self._asked = 0  # which opening of the dialog this is
        self._drop_at: int | None = None
        self._longer_tokens: int | None = None

    # ---- models ----

    def action_models(self) -> None:
        self._open_models(first_run=False)

    def first_run(self) -> None:
        self._open_models(first_run=True)

    def _open_models(self, *, first_run: bool) -> None:
        from phi4local.actions.chat import given_back
        from ui.models import ModelsScreen  # late, as the engine's side is: nothing of it is needed at first

        opened = self.model.opened
        screen = ModelsScreen(
            self._same_model() if opened else None,
            files=self._files(),
            given_back=given_back(opened.engine) if opened else None,
            first_run=first_run,
        )
        self.app.push_screen(screen, self._model_chosen)

    def _model_chosen(self, label: str | None) -> None:
        opened = self.model.opened
        if label is None or (opened and label == self._same_model() and self._state != "loading"):
            return
        if self.waiting is not None:
            self.stop_answer()
        self.model.open(dataclasses.replace(self.choice, name=label, context_tokens=None))

    # ---- chats ----

    def action_chats(self) -> None:
        self._open_chats(searching=False)

    def action_search(self) -> None:
        self._open_chats(searching=True)

    def _open_chats(self, *, searching: bool) -> None:
        if self._is_busy():
            return
        from ui.chats import ChatsScreen

        current = None if self.talk.is_new else self.talk.chat.id
        screen = ChatsScreen(self.talk.history, current, searching=searching, on_delete=forget_state)
        self.app.push_screen(screen, self._chat_chosen)

    def _is_busy(self) -> bool:
        if self.waiting is not None:
            self.notify("The answer is still coming; Esc stops it")
        return self.waiting is not None

    def _chat_chosen(self, chosen: Chosen | None) -> None:
        if chosen is None:
            self._try(self._look_again)
            return

        def change() -> None:
            if chosen.chat:
                self.talk.open(chosen.chat, chosen.message)
                self._follow_model()
            else:
                self.talk.start_anew()

        if self._try(change):
            self._chat_changed(chosen.message)

    def _chat_changed(self, message: int | None = None) -> None:
        self.show_chat(at=message)
        self.recount()
        self.set_focus(self.query_one(Prompt))

    def _look_again(self) -> None:
        """The chat that is open may have been renamed in the list, or deleted elsewhere (Phi4LocalError)."""
        if self.talk.is_new:
            return
        before = [one.id for one in self.talk.branch]
        try:
            self.talk.open(self.talk.chat.id)
        except NotFound:
            self.talk.keep_anew()
            self.notify("This chat was deleted in another window; it is kept as a new one")
        if before != [one.id for one in self.talk.branch]:
            self._chat_changed()
        self.show_title()

    def _follow_model(self) -> None:
        """A chat goes on with the model it was talked in with, where that is here."""
        label = self.talk.chat.model
        if label and self.model.opened and label != self.model.opened.label:
            self.notify(f"This chat was with {label}; F2 changes the model", markup=False)

    def action_new(self) -> None:
        if not self._is_busy():
            self.talk.start_anew()
            self._chat_changed()

    def action_rename(self) -> None:
        def named(title: str | None) -> None:
            if title and title.strip():
                self._try(lambda: self.talk.rename(title.strip()))
                self.show_title()

        self.app.push_screen(Ask("Rename the chat", text=self.talk.chat.title), named)

    def _try(self, change: Callable[[], object]) -> bool:
        """Make a change on disk; whether it was made."""
        try:
            change()
        except Phi4LocalError as error:
            self.complain(error)
            return False
        return True

    # ---- settings ----

    def action_settings(self) -> None:
        opened = self.model.opened
        if opened is None:
            self.notify("The model is not loaded yet")
            return
        from ui.settings import Settings, SettingsScreen

        chat = self.talk.chat
        screen = SettingsScreen(Settings(chat.system, chat.sampling), opened.options, opened.engine.info.context_tokens)
        self.app.push_screen(screen, self._settings_chosen)

    def _settings_chosen(self, settings: Settings | None) -> None:
        if settings and self._try(lambda: self.talk.set(system=settings.system, sampling=settings.sampling)):
            self.recount()

    # ---- the context ----

    @on(Budget.Pressed)
    def action_context(self) -> None:
        opened = self.model.opened
        if opened is None:
            self.notify("The model is not loaded yet")
        elif not self._is_busy():
            self._open_context(self.status.budget.used_tokens, opened.engine.info.context_tokens)

    def too_long(self, error: TooLong) -> None:
        self._open_context(error.used_tokens, error.context_tokens)

    def _open_context(self, used_tokens: int | None, context_tokens: int) -> None:
        self._drop_at = self._longer_tokens = None
        self._fullness = ContextScreen(used_tokens, context_tokens, None, None, bool(self.talk.start))
        self.app.push_screen(self._fullness, self._way_chosen)
        self._asked += 1
        self.model.find_room(self.talk.chat, self.talk.branch, self._asked)

    @on(told.DropCounted)
    def _drop_counted(self, fact: told.DropCounted) -> None:
        opened = self.model.opened
        if self._fullness and fact.asked == self._asked:
            self._drop_at = fact.index
            free = opened.engine.info.context_tokens - fact.tokens if opened else 0
            self._fullness.set_drop(Drop(max(0, fact.index - self.talk.start), free))

    @on(told.LongerFound)
    def _longer_found(self, fact: told.LongerFound) -> None:
        if self._fullness and fact.asked == self._asked:
            self._longer_tokens = None if isinstance(fact.longer, str) else fact.longer.context_tokens
            self._fullness.set_longer(fact.longer)

    def _way_chosen(self, choice: Choice | None) -> None:
        self._fullness = None
        branch, at = self.talk.branch, self._drop_at
        if choice is Choice.DROP and at is not None:
            self.shorten(branch[at].id)
        elif choice is Choice.SUMMARISE and at is not None:
            self.waiting = branch[-1].id
            self._set_state("answering")
            self.notify("The model writes the summary; Esc stops it")
            self.model.summarise(self.talk.chat, branch, branch[at].id)
        elif choice is Choice.LONGER and self.model.opened and self._longer_tokens:
            self.model.open(
                dataclasses.replace(self.choice, name=self._same_model(), context_tokens=self._longer_tokens)
            )
            if branch and branch[-1].role == "user":
                self.ask_model()
        elif choice is Choice.NEW:
            self.action_new()
        elif choice is Choice.EVERYTHING:
            self.shorten(None)

    def _same_model(self) -> str:
        assert self.model.opened is not None
        return self.model.opened.located.name

    def _files(self) -> list[Path]:
        """The GGUFs outside the store that were opened since the program began."""
        opened = self.model.opened
        if opened and not opened.located.stored:
            self._opened_files[opened.located.path.absolute()] = None
        return list(self._opened_files)

    # ---- files ----

    def action_export(self) -> None:
        if self.talk.is_new:
            self.notify("There is nothing to export yet")
            return
        name = FORMATS[0].file_name(self.talk.chat.title)
        note = f"A name that ends in {FORMATS[1].ending} takes all branches along. {current_folder()}"
        self.app.push_screen(Ask("Export the chat", text=name, note=note), self._export)

    def _export(self, answer: str | None) -> None:
        if answer and answer.strip():
            self._try(lambda: self._export_to(answer.strip()))

    def _export_to(self, typed: str) -> None:
        form = next((one for one in FORMATS if typed.lower().endswith(one.ending)), FORMATS[0])
        path = target(typed, form.file_name(self.talk.chat.title))

        def write() -> None:
            write_chat(self.talk.history, self.talk.chat.id, form, path)
            self.notify(f"Written: {path}", markup=False)

        if path.exists():

            def confirmed(yes: bool | None) -> None:
                if yes:
                    self._try(write)

            self.app.push_screen(Confirm(f"Overwrite {path}?", yes="Overwrite"), confirmed)
        else:
            write()
