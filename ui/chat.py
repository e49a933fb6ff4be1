"""The chat: a transcript, a question, and what a user can do with both. The model's side is in the class above."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Footer, OptionList, Static

from phi4local.chats import Attachment, Message
from phi4local.errors import Phi4LocalError
from phi4local.mentions import completions, mentions
from ui import told
from ui.attachments import Attachments
from ui.dialogs import Ask, Confirm, shown
from ui.model_thread import Load
from ui.navigation import NavigatingScreen
from ui.open_chat import OpenChat
from ui.prompt import Prompt, show_choices
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
        self._named: set[Path] = set()  # files that were named in the question
        self._sending = False  # it goes as soon as the files that it names are read

    def compose(self) -> ComposeResult:
        yield Static("", id="title")
        with Horizontal(id="middle"):
            yield Transcript(id="transcript")
            yield StatusPanel(id="panel")
        with Vertical(id="bottom"):
            files = OptionList(id="files", compact=True)
            files.can_focus = False
            yield files
            yield Attachments(id="attachments")
            yield Prompt(id="prompt")
            yield StatusLine(id="status")
        yield Footer(show_command_palette=False)

    @property
    def prompt(self) -> Prompt:
        return self.query_one(Prompt)

    @property
    def attached(self) -> Attachments:
        return self.query_one(Attachments)

    def begin(self, talk: OpenChat) -> None:
        super().begin(talk)
        try:
            self.prompt.asked = talk.history.questions(_ASKED)
        except Phi4LocalError as error:
            self.complain(error)
        self.show_title()

    def on_mount(self) -> None:
        self.query_one("#panel").display = False
        self.attached.display = False
        self.prompt.choices = self.query_one("#files", OptionList)
        self.prompt.choices.display = False
        self.prompt.placeholder = "Ask something"

    def show_title(self) -> None:
        self.query_one("#title", Static).update(shown(self.talk.chat.title or "New chat"))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        if action == "stop":
            return self.waiting is not None or self._editing is not None or not self.prompt.has_focus
        return True

    # ---- asking ----

    @on(Prompt.Sent)
    def _send(self, event: Prompt.Sent) -> None:
        text, files = event.text.strip(), self.attached.files
        if self.waiting is not None:
            self.notify("The answer is still coming; Esc stops it")
            return
        if not text and not files:
            return
        self._read_mentioned(text)
        if self.attached.reading:
            self._sending = True
            return
        edited = self._editing
        try:
            parent = edited.parent if edited else (self.talk.branch[-1].id if self.talk.branch else None)
            if edited and edited.role == "assistant":
                message = self.talk.reply(text, parent)
            else:
                message = self.talk.ask(text, files, parent)
        except Phi4LocalError as error:
            self.complain(error, title="Not sent: it could not be put on disk")
            return
        self._named, self._sending = set(), False
        self.prompt.sent(event.text)
        self._stop_editing()
        self.attached.show([])
        self.show_chat()
        if message.role == "user":
            self.ask_model()
        else:
            self.recount()

    def action_stop(self) -> None:
        if self.waiting is not None:
            self.model.stop()
        elif self._editing is not None:
            self._stop_editing()
            self.prompt.take("")
        else:
            self.prompt.focus()

    def action_interrupt(self) -> None:
        """Ctrl-C: the nearest thing that it may mean."""
        if text := self.prompt.selected_text or self.get_selected_text():
            self.app.copy_to_clipboard(text)
            self.clear_selection()
        elif self.waiting is not None:
            self.model.stop()
        elif self.prompt.text:
            self.prompt.sent(self.prompt.text)
        else:
            self.call_next(self.run_action, "app.leave_at_second")

    # ---- wishes about a message ----

    @on(Transcript.Wanted)
    def _wanted(self, event: Transcript.Wanted) -> None:
        if event.wish == "back":
            self.prompt.focus()
        elif self.waiting is not None and event.wish != "quote":
            self.notify("The answer is still coming; Esc stops it")
        elif event.message is not None:
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
        self.prompt.take(message.text)
        self.prompt.border_title = "Another version; the present one stays. Esc gives up"
        self.attached.show(message.attachments)
        self.prompt.focus()
        self.refresh_bindings()

    def _stop_editing(self) -> None:
        if self._editing is not None:
            self._editing = None
            self.prompt.border_title = ""
            self.attached.show([])
            self.refresh_bindings()

    def _regenerate(self, message: Message) -> None:
        if self.talk.ask_again(message.id):
            self.show_chat()
            self.ask_model()

    def action_again(self) -> None:
        if self.talk.branch:
            self._wanted(Transcript.Wanted("regenerate", self.talk.branch[-1].id))

    def _ask_to_delete(self, message: Message) -> None:
        count = self.talk.below(message.id)
        what = "this message" if count == 1 else f"this message and the {count - 1} that follow on it"

        def confirmed(yes: bool | None) -> None:
            if yes:
                with contextlib.suppress(Phi4LocalError):
                    self.talk.delete(message.id)
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
        self.transcript.focus()

    # ---- files ----

    @on(Prompt.Typing)
    def _complete(self, event: Prompt.Typing) -> None:
        assert self.prompt.choices is not None
        here = Path.cwd()
        show_choices(self.prompt.choices, completions(event.mention, here) if event.mention is not None else [], here)
        if event.mention is None and "@" in self.prompt.text:
            self._read_mentioned(self.prompt.text)

    def _read_mentioned(self, text: str) -> None:
        """Read the files that the text names, so that what they cost is seen before they are sent."""
        for _, _, path in mentions(text, Path.cwd()):
            if path.is_file() and path not in self._named:
                self._named.add(path)
                self.attached.read(path)

    @on(OptionList.OptionSelected, "#files")
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.prompt.write_mention(str(event.option.id))
        self.prompt.focus()

    def action_attach(self) -> None:
        def chosen(path: str | None) -> None:
            if path:
                self.attached.read(Path(path).expanduser())

        self.app.push_screen(Ask("Attach a file", placeholder="text, source code or PDF"), chosen)

    @on(Prompt.Pasted)
    def _pasted(self, event: Prompt.Pasted) -> None:
        size = len(event.text.encode(errors="replace"))
        self._add_file(Attachment("pasted text", size, 0, event.text))

    @on(Attachments.Added)
    def _added(self, event: Attachments.Added) -> None:
        for note in event.notes:
            self.notify(note, markup=False)
        self._add_file(event.attachment)

    def _add_file(self, attachment: Attachment) -> None:
        self.attached.show([*self.attached.files, attachment])
        self.model.count_attachment(attachment)
        self._send_if_read()

    def _send_if_read(self) -> None:
        if self._sending and not self.attached.reading:
            self._sending = False
            self.prompt.action_send()

    @on(Attachments.Failed)
    def _not_attached(self, event: Attachments.Failed) -> None:
        self._sending = False  # the question may make no sense without it
        self.complain(event.error, title="Not attached")

    @on(told.AttachmentCounted)
    def _attachment_counted(self, event: told.AttachmentCounted) -> None:
        self.attached.counted(event.attachment, event.tokens)
