"""What is asked before something is fetched or made: the facts of it, or where the official weights are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Footer, Input, Label, Select

from phi4local.printing import printable, printable_lines
from quant import mlx
from quant.ggml import BUILDS
from ui.acquiring import Offered
from ui.dialogs import Line

_USUAL_BUILD = "Q4_K_M"
_BUILDS = (*BUILDS, *mlx.BUILDS)
_WIDTHS = [(0, "-narrow"), (76, "-wide")]
_HEIGHTS = [(0, "-low"), (20, "-high")]


class Offer(ModalScreen[str | None]):
    """`yes`, `other`, or None for neither; Enter says yes, because nothing is lost by it."""

    CSS_PATH = "models.tcss"
    AUTO_FOCUS = "#yes"
    HORIZONTAL_BREAKPOINTS = _WIDTHS
    VERTICAL_BREAKPOINTS = _HEIGHTS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer('yes')", "Yes", id="offer.yes", tooltip="Do it"),
        Binding("o", "answer('other')", "Other source", id="offer.other", tooltip="Look at the other way to get it"),
        Binding("n,escape", "answer('')", "No", id="offer.no", tooltip="Leave it"),
        Binding("left", "app.focus_previous", "Left", id="offer.left", tooltip="The other button", show=False),
        Binding("right", "app.focus_next", "Right", id="offer.right", tooltip="The other button", show=False),
        Binding("up", "scroll(-1)", "Up", id="offer.up", tooltip="See more of what is above", show=False),
        Binding("down", "scroll(1)", "Down", id="offer.down", tooltip="See more of what is below", show=False),
    ]

    def __init__(self, offered: Offered) -> None:
        super().__init__()
        self._offered = offered

    def compose(self) -> ComposeResult:
        offered = self._offered
        with Vertical(classes="offer"):
            yield Label(Content(printable(offered.question)), classes="question")
            with VerticalScroll(classes="facts", can_focus=False):
                for name, value in offered.facts:
                    with Horizontal(classes="fact"):
                        yield Label(Content(name), classes="fact-name")
                        yield Label(Content(printable(value, limit=400)), classes="fact-value")
                if offered.warning:
                    yield Label(Content(printable_lines(offered.warning)), classes="warning")
                for note in filter(None, offered.notes):
                    yield Label(Content(printable_lines(note)), classes="note")
            with Horizontal(classes="answers"):
                yield Button(Content(offered.yes), variant="primary", id="yes", compact=True)
                if offered.other:
                    yield Button(Content(offered.other), id="other", compact=True)
                yield Button("Not now", id="no", compact=True)
        yield Footer(show_command_palette=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        return bool(self._offered.other) if parameters == ("other",) else True

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        self.action_answer(event.button.id if event.button.id != "no" else "")

    def action_scroll(self, lines: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_answer(self, answer: str | None) -> None:
        self.dismiss(answer or None)


class FolderForm(ModalScreen[tuple[Path, str] | None]):
    """Which folder of official weights, and which build of it."""

    CSS_PATH = "models.tcss"
    AUTO_FOCUS = "Line"
    HORIZONTAL_BREAKPOINTS = _WIDTHS
    VERTICAL_BREAKPOINTS = _HEIGHTS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "accept", "Make it", id="folder.accept", tooltip="Look at the folder and plan the build"),
        Binding("escape", "cancel", "Cancel", id="folder.cancel", tooltip="Make nothing", priority=True),
    ]

    def compose(self) -> ComposeResult:
        with Vertical(classes="offer"):
            yield Label("Make a build from official weights on this disk", classes="question")
            with VerticalScroll(classes="facts", can_focus=False):
                yield Label("The folder with config.json, the tokenizer's files and *.safetensors", classes="note")
                yield Line(placeholder="/path/to/phi-4", compact=True)
                yield Label("The build", classes="note")
                yield Select([(build, build) for build in _BUILDS], value=_USUAL_BUILD, allow_blank=False, compact=True)
            with Horizontal(classes="answers"):
                yield Button("Make it", variant="primary", id="yes", compact=True)
                yield Button("Cancel", id="no", compact=True)
        yield Footer(show_command_palette=False)

    @on(Input.Submitted)
    def action_accept(self) -> None:
        """Give the answer back, once there is a folder in it."""
        text = self.query_one(Line).value.strip()
        if text:
            self.dismiss((Path(os.path.expanduser(text)), str(self.query_one(Select).value)))  # noqa: PTH111

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "yes":
            self.action_accept()
        else:
            self.action_cancel()

    def action_cancel(self) -> None:
        self.dismiss(None)
