"""The files that go along with the next question: their names and what they cost, above the text."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Button

from phi4local.chats import Attachment
from phi4local.documents import read_document
from phi4local.errors import Phi4LocalError
from phi4local.units import file_size
from ui.dialogs import shown


class Attachments(Horizontal):
    """Reads files and shows them; their tokens are counted by its owner, because the model's tokenizer is asked."""

    @dataclass
    class Added(Message):
        """A file was read."""

        attachment: Attachment
        notes: tuple[str, ...]

    @dataclass
    class Failed(Message):
        """A file cannot be attached."""

        error: Phi4LocalError

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "app.focus_previous", "Previous", id="attachments.left", show=False, tooltip="The file before"),
        Binding("right", "app.focus_next", "Next", id="attachments.right", show=False, tooltip="The file after"),
        Binding("delete,backspace", "remove", "Remove", id="attachments.remove", tooltip="Take the file out again"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.files: list[Attachment] = []
        self.reading = 0  # files that are being read

    def compose(self) -> ComposeResult:
        for index, file in enumerate(self.files):
            cost = f", {file.tokens:,} tokens" if file.tokens else ", …"
            label = shown(f"{file.name} ({file_size(file.bytes)}{cost}) ×", 80)
            yield Button(label, name=str(index), compact=True, tooltip="Take the file out again")

    def read(self, path: Path) -> None:
        """Read a file without keeping the screen waiting; a PDF may take seconds."""
        self.reading += 1
        threading.Thread(target=self._read, args=(path,), daemon=True).start()

    def _read(self, path: Path) -> None:
        try:
            document = read_document(path)
        except Phi4LocalError as error:
            self.post_message(self.Failed(error))
            return
        attachment = Attachment(document.name, document.bytes, 0, document.text)
        self.post_message(self.Added(attachment, document.notes))

    @on(Added)
    @on(Failed)
    def _was_read(self) -> None:
        self.reading -= 1

    def show(self, files: Sequence[Attachment]) -> None:
        """These and no others."""
        self.files = list(files)
        self.display = bool(files)
        self.refresh(recompose=True)

    def counted(self, file: Attachment, tokens: int) -> None:
        """What a file costs is known."""
        self.show([dataclasses.replace(one, tokens=tokens) if one is file else one for one in self.files])

    def action_remove(self) -> None:
        if isinstance(self.screen.focused, Button):
            self._remove(self.screen.focused)

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self._remove(event.button)

    def _remove(self, button: Button) -> None:
        index = int(button.name or 0)
        self.show([file for number, file in enumerate(self.files) if number != index])
        if not self.files:
            self.screen.focus_previous()
