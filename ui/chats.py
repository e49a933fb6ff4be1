"""The screen of all chats: find, open, rename, pin, move, delete, export and import them. Knows no engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer, Label

from phi4local.chats import Chat
from phi4local.errors import Phi4LocalError
from phi4local.history import History
from ui.chat_files import FORMATS, Format, current_folder, read_chat, target, write_chat
from ui.dialogs import Ask, Confirm, Pick, shown
from ui.errands import Errands
from ui.finder import Finder, SearchBox
from ui.listing import counted, named
from ui.rows import Rows

_NEEDING_A_CHAT = frozenset({"open", "rename", "pin", "move", "delete", "export"})


@dataclass(frozen=True, slots=True)
class Chosen:
    """The chat to go on with, 0 for a new one, and the found message that is to be seen."""

    chat: int
    message: int | None = None


NEW = Chosen(0)


class KeyRows(Footer):
    """A Footer with as many columns as the style sheet says; Textual's puts all keys into one row."""

    def compose(self) -> ComposeResult:
        yield from super().compose()
        self.styles.clear_rule("grid_size_columns")


class ChatsScreen(Screen[Chosen | None]):
    """All chats; leaves with the chosen one, or with None where nothing changes for the open chat.

    `on_delete` is told each chat that was deleted, in a thread of this screen: what else is kept of it can go.
    """

    CSS_PATH = "chats.tcss"
    AUTO_FOCUS = "Rows"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012  declared by Textual as an instance's
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", id="chats.open", tooltip="Go on with this chat"),
        Binding("slash", "search", "Search", key_display="/", id="chats.search", tooltip="Search all messages"),
        Binding("n", "new", "New", id="chats.new", tooltip="Begin a chat"),
        Binding("r,f2", "rename", "Rename", id="chats.rename", tooltip="Give this chat another title"),
        Binding("p", "pin", "Pin", id="chats.pin", tooltip="Keep this chat above the others, or no longer"),
        Binding("m", "move", "Move", id="chats.move", tooltip="Put this chat into a folder"),
        Binding("f", "folder", "Folder", id="chats.folder", tooltip="List the chats of one folder"),
        Binding("d,delete", "delete", "Delete", id="chats.delete", tooltip="Delete this chat, after a question"),
        Binding("e", "export", "Export", id="chats.export", tooltip="Write this chat to a file"),
        Binding("i", "import", "Import", id="chats.import", tooltip="Read a chat from a JSON file"),
        Binding("escape", "back", "Back", id="chats.back", tooltip="Leave the search, then the list"),
        Binding("ctrl+f", "search", "Search", show=False, id="chats.find", tooltip="Search all messages"),
        # While the search box has the focus.
        Binding("up", "list('step', -1)", "Up", show=False, id="chats.up", tooltip="The row above"),
        Binding("down", "list('step', 1)", "Down", show=False, id="chats.down", tooltip="The row below"),
        Binding("pageup", "list('page', -1)", "Page up", show=False, id="chats.page_up", tooltip="A page up"),
        Binding("pagedown", "list('page', 1)", "Page down", show=False, id="chats.page_down", tooltip="A page down"),
    ]

    def __init__(
        self,
        history: History,
        current: int | None = None,
        searching: bool = False,
        *,
        on_delete: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self._history = history
        self._current = current
        if searching:  # from the first key on: a letter that meant the search must not act on a chat
            self.AUTO_FOCUS = "SearchBox"  # type: ignore[misc]  # Textual asks the instance
        self._on_delete = on_delete
        self._errands = Errands(self)
        self._is_on_chat = True  # until the list is read, so that the keys are shown once
        self._is_current_deleted = False

    def compose(self) -> ComposeResult:
        yield Finder(self._history, self._errands, self._current)
        yield Label(id="trouble", markup=False)
        yield KeyRows(show_command_palette=False)

    def on_mount(self) -> None:
        self._errands.start()
        self._finder.load(self._current)

    def on_unmount(self) -> None:
        self._errands.close()

    @property
    def _finder(self) -> Finder:
        return self.query_one(Finder)

    @on(Errands.Done)
    def _done(self, event: Errands.Done) -> None:
        try:
            event.finish()
        except Phi4LocalError as error:
            self._fail(error)
        else:
            self.remove_class("-failed")

    def _fail(self, error: Phi4LocalError) -> None:
        message = shown(error.message, 1_000)
        self.query_one("#trouble", Label).update(message + "\n" + shown(error.hint, 1_000) if error.hint else message)
        self.add_class("-failed")

    def _change(self, work: Callable[[], object]) -> None:
        """Do it, then show what became of the chats."""
        self._errands.run(work, lambda _: self._finder.load())

    @on(Rows.Moved)
    def _moved(self) -> None:
        if (is_on_chat := self._finder.here is not None) != self._is_on_chat:
            self._is_on_chat = is_on_chat
            self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        if action == "search":
            return not isinstance(self.focused, SearchBox)
        return self._is_on_chat or action not in _NEEDING_A_CHAT

    # Leaving, and going about

    def action_open(self) -> None:
        self._finder.open()

    @on(Finder.Opened)
    def _opened(self) -> None:
        if (place := self._finder.place) is not None:
            self.dismiss(Chosen(*place))

    def action_new(self) -> None:
        self.dismiss(NEW)

    def action_back(self) -> None:
        if not self._finder.leave():
            self.dismiss(NEW if self._is_current_deleted else None)

    def action_search(self) -> None:
        self._finder.box.focus()

    def action_list(self, what: str, step: int) -> None:
        moves = {"step": self._finder.rows.action_step, "page": self._finder.rows.action_page}
        moves[what](step)

    def action_folder(self) -> None:
        folders = self._finder.folders()
        choices = [f"All {counted(sum(size for _, size in folders), 'chat')}"]
        choices += [f"{folder or 'No folder'} ({size:,})" for folder, size in folders]
        values = [None, *(folder for folder, _ in folders)]
        chosen = values.index(self._finder.folder)

        def picked(index: int | None) -> None:
            if index is not None:
                self._finder.filter(values[index])

        self.app.push_screen(Pick("List the chats of a folder", choices, chosen=chosen), picked)

    # Changes

    def action_rename(self) -> None:
        if self._finder.here is not None:
            chat = self._finder.here.chat
            rename = partial(self._history.rename, chat.id)
            self.app.push_screen(Ask("Rename the chat", text=chat.title), self._with_text(rename))

    def action_move(self) -> None:
        if self._finder.here is not None:
            chat = self._finder.here.chat
            folders = [folder for folder, _ in self._finder.folders() if folder]
            ask = Ask(f"Move {named(chat)} to a folder", text=chat.folder, choices=folders, note="Empty: no folder")
            self.app.push_screen(ask, self._with_text(partial(self._history.move, chat.id)))

    def _with_text(self, change: Callable[[str], None]) -> Callable[[str | None], None]:
        """What to do with an answer: change something, unless it was given up."""
        return lambda text: None if text is None else self._change(partial(change, text.strip()))

    def action_pin(self) -> None:
        if self._finder.here is not None:
            chat = self._finder.here.chat
            self._change(partial(self._history.pin, chat.id, not chat.pinned))

    def action_delete(self) -> None:
        if (here := self._finder.here) is None:
            return
        chat = here.chat.id

        def confirmed(yes: bool | None) -> None:
            if yes:
                self._errands.run(partial(self._delete, chat), self._deleted)

        note = f"{counted(here.messages, 'message')}, which cannot be brought back"
        self.app.push_screen(Confirm(f"Delete {named(here.chat)}?", note=note, yes="Delete"), confirmed)

    def _delete(self, chat: int) -> int:
        self._history.delete_chat(chat)
        if self._on_delete is not None:
            self._on_delete(chat)
        return chat

    def _deleted(self, chat: int) -> None:
        self._is_current_deleted |= chat == self._current
        self._finder.load()

    # Files

    def action_export(self) -> None:
        if (here := self._finder.here) is None:
            return

        def picked(index: int | None) -> None:
            if index is not None:
                form = FORMATS[index]
                ask = Ask("Write the chat to", text=form.file_name(here.chat.title), note=current_folder())
                self.app.push_screen(ask, partial(self._to_path, here.chat, form))

        self.app.push_screen(Pick(f"Export {named(here.chat)} as", [form.name for form in FORMATS]), picked)

    def _to_path(self, chat: Chat, form: Format, typed: str | None) -> None:
        if typed is None:
            return
        try:
            path = target(typed, form.file_name(chat.title))
        except Phi4LocalError as error:
            self._fail(error)
            return
        write = partial(self._write, chat, form, path)
        if path.exists():
            confirm = Confirm(f"Replace `{path.name}`?", note=f"There is such a file in {path.parent}", yes="Replace")
            self.app.push_screen(confirm, lambda yes: write() if yes else None)
        else:
            write()

    def _write(self, chat: Chat, form: Format, path: Path) -> None:
        def written(_: None) -> None:
            self.notify(f"{named(chat)} is in `{shown(str(path))}`", title="Exported", markup=False)

        self._errands.run(partial(write_chat, self._history, chat.id, form, path), written)

    def action_import(self) -> None:
        def given(typed: str | None) -> None:
            if typed is not None:
                self._errands.run(partial(read_chat, self._history, typed), self._imported)

        self.app.push_screen(
            Ask("Import a chat from", placeholder="~/chat.json", note="A file exported as JSON"), given
        )

    def _imported(self, chat: Chat) -> None:
        self.notify(named(chat), title="Imported", markup=False)
        self._finder.filter(None)
        self._finder.load(chat.id)
