"""The chat: a transcript, a question, and what a user can do with both. The model's side is in the class above."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.notifications import SeverityLevel
from textual.widgets import Footer, Static

from phi4local.chats import Message
from phi4local.errors import NotFound, Phi4LocalError
from ui import told
from ui.composer import Composer
from ui.dialogs import Ask, Confirm, shown
from ui.model_thread import Load
from ui.navigation import NavigatingScreen
from ui.open_chat import OpenChat
from ui.prompt import Prompt
from ui.status import StatusLine, StatusPanel
from ui.told import ModelChoice
from ui.transcript import Transcript, Wish

_ASKED = 200  # questions that the prompt remembers


class ChatScreen(NavigatingScreen):
    """Where people spend their time."""

    CSS_PATH = ["chat.tcss", "status.tcss"]  # noqa: RUF012  as Textual declares it
    AUTO_FOCUS = "Prompt"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="chat.stop", tooltip="Stop the answer; else back to the question"),
        Binding(
            "ctrl+c",
            "interrupt",
            "Stop",
            id="chat.interrupt",
            show=False,
            priority=True,
            tooltip="Copy what is selected, or stop the answer, or empty the question; twice: leave",
        ),
        Binding(
            "ctrl+up,shift+tab",
            "browse",
            "Messages",
            key_display="^↑",
            id="chat.browse",
            tooltip="Go to the messages above",
        ),
        Binding("ctrl+r", "again", "Again", id="chat.again", show=False, tooltip="Another answer to the last question"),
        Binding("f2,ctrl+t", "models", "Models", id="chat.models", tooltip="What is here, what fits, and getting it"),
        Binding("f3,ctrl+o", "chats", "Chats", id="chat.chats", tooltip="All chats, and searching them"),
        Binding("ctrl+g", "search", "Search", id="chat.search", show=False, tooltip="Search all chats"),
        Binding(
            "f4",
            "settings",
            "Settings",
            id="chat.settings",
            show=False,
            tooltip="System prompt and sampling of this chat",
        ),
        Binding("f5,ctrl+b", "panel", "Status", id="chat.panel", show=False, tooltip="Model, memory and latency"),
        Binding(
            "ctrl+l",
            "context",
            "Context",
            id="chat.context",
            show=False,
            tooltip="What to do when the context gets full",
        ),
        Binding(
            "ctrl+f", "attach", "Attach", id="chat.attach", show=False, tooltip="Attach a text, a source file or a PDF"
        ),
        Binding("f8,ctrl+s", "export", "Export", id="chat.export", show=False, tooltip="Write the chat into a file"),
        Binding("f9", "rename", "Rename", id="chat.rename", show=False, tooltip="Give the chat another title"),
        Binding("ctrl+n", "new", "New", id="chat.new", tooltip="Begin another chat"),
    ]

    def __init__(self, choice: ModelChoice, load: Load | None = None) -> None:
        super().__init__(choice, load)
        self._editing: Message | None = None

    def compose(self) -> ComposeResult:
        yield Static("", id="title")
        with Horizontal(id="middle"):
            yield Transcript(id="transcript")
            yield StatusPanel(id="panel")
        with Vertical(id="bottom"):
            yield Composer(id="composer")
            yield StatusLine(id="status")
        yield Footer(show_command_palette=False)

    @property
    def composer(self) -> Composer:
        return self.query_one(Composer)

    @property
    def prompt(self) -> Prompt:
        return self.composer.prompt

    def begin(self, talk: OpenChat) -> None:
        super().begin(talk)
        try:
            self.prompt.asked = talk.history.questions(_ASKED)
        except Phi4LocalError as error:
            self.complain(error)
        self.show_title()

    def on_mount(self) -> None:
        self.query_one("#panel").display = False
        self.prompt.placeholder = "Ask something"

    def show_title(self) -> None:
        self.query_one("#title", Static).update(shown(self.talk.chat.title or "New chat"))

    def show_chat(self, at: int | None = None) -> None:
        """The open branch; what was begun about another one is given up."""
        self._stop_editing()
        super().show_chat(at)
        if not self.talk.branch:
            self.prompt.focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        if action == "stop":
            busy = self.waiting is not None or self._editing is not None or self.composer.can_be_stopped
            return busy or not self.prompt.has_focus
        return True

    # ---- asking ----

    @on(Composer.Asked)
    def _ask(self, event: Composer.Asked) -> None:
        if self._is_busy():
            return
        try:
            message = self._put(event)
        except Phi4LocalError as error:
            self.complain(
                error, title="Not sent: it could not be put on disk", hint="The text stays: Enter tries again"
            )
            return
        self._editing = None
        self.composer.sent(event.typed)
        self.show_chat()
        if message.role == "user":
            self.ask_model()
        else:
            self.recount()

    def _put(self, event: Composer.Asked) -> Message:
        """The message on disk (Phi4LocalError)."""
        text, edited = event.typed.strip(), self._editing
        if edited:
            if edited.role == "assistant":
                return self.talk.reply(text, edited.parent)
            return self.talk.ask(text, event.files, edited.parent)
        try:
            return self.talk.ask(text, event.files, self.talk.end)
        except NotFound:
            self.talk.keep_anew()
            self.notify("This chat was deleted in another window; it is kept as a new one")
            return self.talk.ask(text, event.files, self.talk.end)

    def action_stop(self) -> None:
        if self.composer.close_choices():
            return
        if self.composer.give_up_asking():
            self.notify("Not sent")
        elif self.waiting is not None:
            self.stop_answer()
        elif self._editing is not None:
            self._stop_editing()
        else:
            self.prompt.focus()

    def action_interrupt(self) -> None:
        """Ctrl-C: the nearest thing that it may mean."""
        if text := self.prompt.selected_text or self.get_selected_text():
            self.app.copy_to_clipboard(text)
            self.clear_selection()
        elif self.waiting is not None:
            self.stop_answer()
        elif self.prompt.text or self.composer.files:
            self._editing = None
            self.composer.sent(self.prompt.text)
        else:
            self.call_next(self.run_action, "app.leave_at_second")

    # ---- wishes about a message ----

    @on(Transcript.Wanted)
    def _wanted(self, event: Transcript.Wanted) -> None:
        if event.wish == "back":
            self.prompt.focus()
        elif event.message is not None and (event.wish == "quote" or not self._is_busy()):
            message = next((one for one in self.talk.branch if one.id == event.message), None)
            if message:
                self._fulfil(event.wish, message)

    def _fulfil(self, wish: Wish, message: Message) -> None:
        try:
            if wish in ("earlier", "later"):
                self._walk(message, -1 if wish == "earlier" else 1)
            elif wish == "edit":
                self._edit(message)
            elif wish == "regenerate":
                self._regenerate(message)
            elif wish == "quote":
                self.prompt.add("".join(f"> {line}\n" for line in message.text.splitlines()) + "\n")
                self.prompt.focus()
            elif wish == "fork":
                self.talk.fork()
                self.show_chat()
                self.notify("This branch is a chat of its own now")
            elif wish == "delete":
                self._ask_to_delete(message)
        except Phi4LocalError as error:
            self.complain(error)

    def _walk(self, message: Message, step: int) -> None:
        found = self.talk.walk(message.id, step)
        if found is None:
            self.notify("There is no other version on this side")
            return
        self.show_chat(at=found)
        self.recount()

    def _edit(self, message: Message) -> None:
        self._editing = message
        self.composer.begin(message.text, message.attachments, "Another version; the present one stays. Esc gives up")
        self.prompt.focus()

    def _stop_editing(self) -> None:
        if self._editing is not None:
            self._editing = None
            self.composer.begin("", ())

    def _regenerate(self, message: Message) -> None:
        before = len(self.talk.branch)
        if self.talk.ask_again(message.id):
            self.show_chat()
            self.ask_model(again=len(self.talk.branch) < before)

    def action_again(self) -> None:
        if self.talk.branch:
            self._wanted(Transcript.Wanted("regenerate", self.talk.branch[-1].id))

    def _ask_to_delete(self, message: Message) -> None:
        count = self.talk.below(message.id)
        what = "this message" if count == 1 else f"this message and the {count - 1} that follow on it"

        def confirmed(yes: bool | None) -> None:
            if yes and self._try(lambda: self.talk.delete(message.id)):
                self.show_chat()
                self.recount()

        self.app.push_screen(Confirm(f"Delete {what}?", yes="Delete"), confirmed)

    @on(StatusLine.Pressed)
    @on(StatusPanel.Closed)
    def action_panel(self) -> None:
        """Show or hide the panel."""
        panel = self.query_one("#panel")
        panel.display = not panel.display

    def action_browse(self) -> None:
        """To the messages; where there are none their keys would swallow what is typed."""
        if self.transcript.turns:
            self.transcript.focus()

    # ---- files ----

    def action_attach(self) -> None:
        def chosen(path: str | None) -> None:
            if path and path.strip():
                # not Path.expanduser, which raises for a user that there is not
                self.composer.attach_path(Path(os.path.expanduser(path.strip())))  # noqa: PTH111

        self.app.push_screen(Ask("Attach a file", placeholder="text, source code or PDF"), chosen)

    @on(Composer.Uncounted)
    def _count_file(self, event: Composer.Uncounted) -> None:
        self.model.count_attachment(event.file)

    @on(told.AttachmentCounted)
    def _attachment_counted(self, event: told.AttachmentCounted) -> None:
        self.composer.counted(event.attachment, event.tokens)

    @on(Composer.Trouble)
    def _file_trouble(self, event: Composer.Trouble) -> None:
        severity: SeverityLevel = "error" if event.failed else "information"
        self.notify(event.text, title=event.title, severity=severity, markup=False)
