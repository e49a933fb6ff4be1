"""Every key and what it does, from the bindings themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from ui.keys import keys_file, keys_of, sections


class HelpScreen(ModalScreen[None]):
    """A page over the screen that asked for it."""

    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,q", "dismiss", "Close", id="help.close", tooltip="Back"),
    ]

    def __init__(self, changed: Mapping[str, str]) -> None:
        super().__init__()
        self._changed = changed

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="page"):
            for title, place in sections().items():
                yield Static(Text(title), classes="title")
                table = Table.grid(padding=(0, 2))
                table.add_column(style="bold", width=24)
                table.add_column(ratio=1)
                for key in keys_of(place, self._changed):
                    table.add_row(Text(key.keys), Text(key.tooltip))
                yield Static(table)
            yield Static(Text(f"{keys_file()} can give anything another key, for example"), classes="title")
            yield Static(Text('"prompt.newline" = "ctrl+j"\n"prompt.send" = "f12"'))
            for place in sections().values():
                names = ", ".join(key.id for key in keys_of(place, self._changed))
                yield Static(Text(names), classes="names")
        yield Footer(show_command_palette=False)
