"""Where a question is written: several lines, a key to send it, the questions before it, and files by `@`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import events, on
from textual.binding import Binding, BindingType
from textual.document._document import EditResult
from textual.document._edit import Edit
from textual.message import Message
from textual.widgets import OptionList, TextArea
from textual.widgets.option_list import Option

from phi4local.chats import clean
from phi4local.printing import printable_lines
from ui.dialogs import shown
from ui.in_order import act_in_turn

_LONG_PASTE = 20_000  # characters: more becomes a file of its own, because an editor of a few lines is no place for it


class Prompt(TextArea):
    """A text of a few lines. Tells when it is to be sent; its owner empties it once it is on disk."""

    @dataclass
    class Sent(Message):
        """The text is to be asked."""

        text: str

    @dataclass
    class Pasted(Message):
        """More was pasted than belongs into a question."""

        text: str

    @dataclass
    class Typing(Message):
        """The text before the cursor ends with `@` and these characters; None: it does not."""

        mention: str | None

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", id="prompt.send", tooltip="Ask what is written"),
        Binding(
            "ctrl+j,shift+enter,alt+enter",
            "new_line",
            "Line",
            id="prompt.newline",
            tooltip="Begin a new line",
        ),
        Binding("up", "up", "Earlier question", id="prompt.up", show=False, tooltip="What was asked before"),
        Binding(
            "down",
            "down",
            "Later question",
            id="prompt.down",
            show=False,
            tooltip="What was asked after",
        ),
        Binding("tab", "complete", "Complete", id="prompt.complete", show=False, tooltip="Complete an @file"),
    ]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, soft_wrap=True, show_line_numbers=False, tab_behavior="focus", compact=True)
        self.asked: list[str] = []  # the newest first
        self._at = -1
        self._draft = ""
        self.choices: OptionList | None = None  # the files that may be meant, while they are shown

    def take(self, text: str) -> None:
        """Put a text in the place of what is there, the cursor behind it."""
        self.load_text(one_kind_of_line(text))
        self.move_cursor(self.document.end)

    def add(self, text: str) -> None:
        """Put a text behind what is there."""
        before = self.text.rstrip()
        self.take(f"{before}\n\n{text}" if before else text)

    def sent(self, text: str) -> None:
        """This is on disk: begin the next one, with what was typed since."""
        if text.strip() and (not self.asked or self.asked[0] != text):
            self.asked.insert(0, text)
        self._at, self._draft = -1, ""
        self.take(self.text.removeprefix(text) if self.text.startswith(text) else "")

    # ---- keys ----

    @on(events.Key)
    async def _act(self, event: events.Key) -> None:
        await act_in_turn(self, event)

    def action_send(self) -> None:
        if self._choosing:
            self.action_complete()
        else:
            self.post_message(self.Sent(self.text))

    def action_new_line(self) -> None:
        self.insert("\n")

    def action_up(self) -> None:
        if self._choosing:
            self._choosing.action_cursor_up()
        elif self.cursor_location[0] == 0 and self._wrapped_row() == 0:
            self._recall(1)
        else:
            self.action_cursor_up()

    def action_down(self) -> None:
        if self._choosing:
            self._choosing.action_cursor_down()
        elif self._at >= 0 and self.cursor_location[0] == self.document.line_count - 1:
            self._recall(-1)
        else:
            self.action_cursor_down()

    def _wrapped_row(self) -> int:
        """Which of the lines on the screen that a line of the text fills has the cursor."""
        return self.wrapped_document.location_to_offset(self.cursor_location).y

    def _recall(self, step: int) -> None:
        """An earlier or a later question; the draft comes back after the newest."""
        at = self._at + step
        if not -1 <= at < len(self.asked):
            return
        if self._at == -1:
            self._draft = self.text
        self._at = at
        self.take(self.asked[at] if at >= 0 else self._draft)

    def edit(self, edit: Edit) -> EditResult:
        """Nothing that acts on a terminal gets into the text, however it comes."""
        edit.text = one_kind_of_line(edit.text)
        return super().edit(edit)

    # ---- files ----

    @property
    def _choosing(self) -> OptionList | None:
        return self.choices if self.choices is not None and self.choices.display else None

    @property
    def is_choosing(self) -> bool:
        return self._choosing is not None

    def close_choices(self) -> bool:
        """Take the list of files away; whether there was one."""
        choices = self._choosing
        if choices is not None:
            choices.display = False
        return choices is not None

    def action_complete(self) -> None:
        """Write the chosen file, or leave the text."""
        choices = self._choosing
        if choices is None:
            self.screen.focus_next()
            return
        if choices.highlighted is not None:
            self.write_mention(str(choices.get_option_at_index(choices.highlighted).id))

    def write_mention(self, path: str) -> None:
        """Put a path in the place of what is typed behind the `@`."""
        row, column = self.cursor_location
        typed = mention_before(self.document.get_line(row)[:column]) or ""
        end = "" if path.rstrip('"').endswith("/") else " "
        self.replace(path + end, (row, column - len(typed)), (row, column))

    def on_text_area_changed(self) -> None:
        row, column = self.cursor_location
        self.post_message(self.Typing(mention_before(self.document.get_line(row)[:column])))

    @on(events.Paste)
    def _keep_out(self, event: events.Paste) -> None:
        if len(event.text) > _LONG_PASTE:
            event.stop()
            event.prevent_default()
            self.post_message(self.Pasted(event.text))


def one_kind_of_line(text: str) -> str:
    """Text that an editor may draw: no controls, and one kind of line break."""
    return printable_lines(clean(text).replace("\r\n", "\n").replace("\r", "\n"))


def mention_before(line: str) -> str | None:
    """What is typed behind an `@` that begins a word; None: the line does not end in one."""
    at = line.rfind("@")
    if at < 0 or (at and not line[at - 1].isspace()):
        return None
    typed = line[at + 1 :]
    if typed.startswith('"'):
        return None if '"' in typed[1:] else typed
    return None if any(c.isspace() for c in typed) else typed


def show_choices(choices: OptionList, paths: Sequence[str], folder: Path | None) -> None:
    """The files that may be meant, or nothing."""
    choices.clear_options()
    choices.add_options([Option(shown(path), id=path) for path in paths])
    choices.display = bool(paths)
    choices.border_title = shown(str(folder or ""))
    if paths:
        choices.highlighted = 0
