"""Small questions over a screen: one line of text, one of several, yes or no. They know nothing of chats.

    self.app.push_screen(Ask("Rename the chat", text=title), self.renamed)      None: given up
    self.app.push_screen(Pick("Write as", ["Markdown", "JSON"]), self.picked)   the index; None: given up
    self.app.push_screen(Confirm("Delete it?", yes="Delete"), self.confirmed)   False: no, or given up

Questions, choices and texts may be foreign: they are shown as text, and no control reaches the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Footer, Input, Label, OptionList

from phi4local.chats import clean
from phi4local.printing import printable, printable_lines
from ui.in_order import act_in_turn

_MOST_SHOWN = 2_000


def shown(text: str, limit: int = 200) -> Content:
    """Foreign text as one line of plain text, whatever markup, controls or halves of characters it holds."""
    return Content(printable(clean(text[:limit]), limit=limit))


class Line(Input):
    """An Input that holds no control, even where one is pasted or given; characters keep their places."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # The Input's own, named for the Footer.
        Binding("enter", "submit", "OK", id="ask.accept", tooltip="Take this text"),
    ]

    @on(events.Key)
    async def _act(self, event: events.Key) -> None:
        await act_in_turn(self, event)

    def validate_value(self, value: str) -> str:
        return printable_lines(clean(value)).translate({ord("\n"): " ", ord("\t"): " "})


class Ask(ModalScreen[str | None]):
    """One line of text; the arrow keys go through `choices`, which may be typed over."""

    CSS_PATH = "dialogs.tcss"
    AUTO_FOCUS = "Line"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel", id="ask.cancel", tooltip="Change nothing", priority=True),
        Binding(
            "down", "choose(1)", "Choose", key_display="↑↓", id="ask.next", tooltip="The next choice", priority=True
        ),
        Binding(
            "up", "choose(-1)", "Previous", show=False, id="ask.previous", tooltip="The choice before", priority=True
        ),
    ]

    def __init__(
        self,
        question: str,
        *,
        text: str = "",
        placeholder: str = "",
        choices: Sequence[str] = (),
        note: str = "",
    ) -> None:
        super().__init__()
        self._question = question
        self._text = text
        self._placeholder = placeholder
        self._choices = list(choices)
        self._note = note

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label(shown(self._question), classes="question")
            yield Line(self._text, placeholder=self._placeholder, compact=True)
            if self._choices:
                choices = OptionList(*(shown(choice) for choice in self._choices), compact=True)
                choices.can_focus = False  # the keys stay with the text
                choices.highlighted = None
                yield choices
            if self._note:
                yield Label(shown(self._note, _MOST_SHOWN), classes="note")
        yield Footer(show_command_palette=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        return bool(self._choices) if action == "choose" else True

    def action_choose(self, step: int) -> None:
        choices = self.query_one(OptionList)
        beyond = 0 if step > 0 else len(self._choices) - 1
        index = beyond if choices.highlighted is None else (choices.highlighted + step) % len(self._choices)
        choices.highlighted = index
        self._take(index)

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self._take(event.option_index)

    def _take(self, index: int) -> None:
        line = self.query_one(Line)
        line.value = self._choices[index]
        line.cursor_position = len(line.value)

    @on(Line.Submitted)
    def _accept(self, event: Line.Submitted) -> None:
        self.dismiss(event.value)

    def action_cancel(self) -> None:
        self.dismiss(None)


class Pick(ModalScreen[int | None]):
    """One of several choices, by its index."""

    CSS_PATH = "dialogs.tcss"
    AUTO_FOCUS = "OptionList"
    BINDINGS: ClassVar[list[BindingType]] = [
        # The list's own Enter is not in the Footer.
        Binding("enter", "accept", "OK", id="pick.accept", tooltip="Take this one", priority=True),
        Binding("escape", "cancel", "Cancel", id="pick.cancel", tooltip="Change nothing"),
    ]

    def __init__(self, question: str, choices: Sequence[str], *, chosen: int = 0) -> None:
        super().__init__()
        self._question = question
        self._choices = choices
        self._chosen = chosen

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Label(shown(self._question), classes="question")
            choices = OptionList(*(shown(choice) for choice in self._choices), compact=True)
            choices.highlighted = self._chosen
            yield choices
        yield Footer(show_command_palette=False)

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_index)

    def action_accept(self) -> None:
        self.dismiss(self.query_one(OptionList).highlighted)

    def action_cancel(self) -> None:
        self.dismiss(None)


class Confirm(ModalScreen[bool]):
    """Yes or no; Enter alone says no, because what asks for this cannot be taken back."""

    CSS_PATH = "dialogs.tcss"
    AUTO_FOCUS = "#no"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", id="confirm.yes", tooltip="Do it"),
        Binding("n,escape", "answer(False)", "No", id="confirm.no", tooltip="Change nothing"),
        Binding("left", "app.focus_previous", "Left", id="confirm.left", tooltip="The other button", show=False),
        Binding("right", "app.focus_next", "Right", id="confirm.right", tooltip="The other button", show=False),
    ]

    def __init__(self, question: str, *, note: str = "", yes: str = "Yes", no: str = "Cancel") -> None:
        super().__init__()
        self._question = question
        self._note = note
        self._labels = (yes, no)

    def compose(self) -> ComposeResult:
        yes, no = self._labels
        with Vertical(classes="dialog"):
            yield Label(shown(self._question, _MOST_SHOWN), classes="question")
            if self._note:
                yield Label(shown(self._note, _MOST_SHOWN), classes="note")
            with Horizontal(classes="answers"):
                yield Button(Content(yes), variant="error", id="yes", compact=True)
                yield Button(Content(no), id="no", compact=True)
        yield Footer(show_command_palette=False)

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)
