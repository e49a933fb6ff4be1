"""The files that go along with the next question: their names and what they cost, above the text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Button

from phi4local.chats import Attachment
from phi4local.units import file_size
from ui.dialogs import shown


@dataclass(frozen=True, slots=True)
class File:
    """A file by its name; None: it is being read."""

    name: str
    attachment: Attachment | None


class Attachments(Horizontal):
    """One button a file; pressing it takes the file out."""

    @dataclass
    class Removed(Message):
        """The user wants to do without one."""

        index: int

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "app.focus_previous", "Previous", id="attachments.left", show=False, tooltip="The file before"),
        Binding("right", "app.focus_next", "Next", id="attachments.right", show=False, tooltip="The file after"),
        Binding("delete,backspace", "remove", "Remove", id="attachments.remove", tooltip="Take the file out again"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._files: list[File] = []

    def compose(self) -> ComposeResult:
        for index, file in enumerate(self._files):
            yield Button(_label(file), name=str(index), compact=True, tooltip="Take the file out again")

    def show(self, files: Iterable[File]) -> None:
        """These and no others."""
        before, self._files = self._files, list(files)
        self.display = bool(self._files)
        if before != self._files:
            self.refresh(recompose=True)

    def action_remove(self) -> None:
        if isinstance(self.screen.focused, Button):
            self.post_message(self.Removed(int(self.screen.focused.name or 0)))

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Removed(int(event.button.name or 0)))


def _label(file: File) -> Content:
    if file.attachment is None:
        return shown(f"reading {file.name}… ×", 80)
    cost = f", {file.attachment.tokens:,} tokens" if file.attachment.tokens else ""
    return shown(f"{file.name} ({file_size(file.attachment.bytes)}{cost}) ×", 80)
