"""How one chat is answered: its system prompt, and how tokens are chosen where that differs from the model's own.

    self.app.push_screen(SettingsScreen(Settings(chat.system, chat.sampling), defaults, context_tokens), self.changed)

An empty field is the model's own value. Whatever else the sampling holds goes through as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Footer, Input, Label, TextArea
from textual.widgets.text_area import Edit, EditResult

from phi4local.chats import clean
from phi4local.engine import GenerationOptions
from phi4local.presets import PRESETS, SAMPLING, Preset, sampling_of
from phi4local.printing import printable_lines

_Number = int | float


@dataclass(frozen=True, slots=True)
class Settings:
    """What a chat says of its answers; `sampling` is `Chat.sampling`, with the name of the preset."""

    system: str
    sampling: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """A number that may be set, and what it does; `most` None: the context."""

    name: str
    title: str
    kind: type[int] | type[float]
    least: int
    most: int | None
    meaning: str
    unset: str = ""  # what holds where nothing is set, if that is not the model's own value

    def range(self, context_tokens: int) -> str:
        most = context_tokens if self.most is None else self.most
        kind = "a whole number" if self.kind is int else "a number"
        return f"{kind}, {self.least:,} to {most:,}"

    def read(self, text: str, context_tokens: int) -> _Number | None:
        """The value of a text, None of an empty one (ValueError)."""
        text = text.strip()
        if not text:
            return None
        value = self.kind(text.replace(",", ".") if self.kind is float else text)
        if not self.least <= value <= (context_tokens if self.most is None else self.most):
            raise ValueError(text)
        return value


FIELDS = (
    Field("temperature", "Temperature", float, 0, 10, "0 always takes the likeliest word"),
    Field("top_k", "Top-k", int, 0, 1 << 20, "among so many words, 0: among all"),
    Field("top_p", "Top-p", float, 0, 1, "among words of this share, 1: all"),
    Field("seed", "Seed", int, 0, (1 << 32) - 1, "the same seed gives the same answer", "drawn anew"),
    Field("max_tokens", "Longest answer", int, 1, None, "in tokens", "no limit"),
)
_OF_PRESETS = ("temperature", "top_k", "top_p")  # the fields that a preset decides
_MOST_TEXT = 1_000_000  # characters of a paste, more than any context holds
_NUMERIC = r"[\w.,+\- ]*"  # what may stand in a field; whether it is a number is said beside it
_CIRCLES = "greedy: it may think in circles"


def shown_value(value: object) -> str:
    """A value as it stands in its field; nothing for what is none."""
    return f"{value:.12g}" if isinstance(value, float) else str(value) if type(value) is int else ""


class SystemPrompt(TextArea):
    """A text that holds no control, even where one is pasted."""

    def edit(self, edit: Edit) -> EditResult:
        text = clean(edit.text[:_MOST_TEXT]).replace("\r\n", "\n").replace("\r", "\n")
        edit.text = printable_lines(text)
        return super().edit(edit)


class Row(Horizontal):
    """One field: its name, what is typed, and beside it what that means or what is wrong with it."""

    def __init__(self, field: Field, text: str, defaults: GenerationOptions, context_tokens: int) -> None:
        super().__init__()
        self.field = field
        self._text = text
        self._defaults = defaults
        self._context_tokens = context_tokens

    def compose(self) -> ComposeResult:
        default = self.field.unset or shown_value(getattr(self._defaults, self.field.name))
        yield Label(self.field.title, classes="title")
        yield Input(self._text, placeholder=default, max_length=24, restrict=_NUMERIC, compact=True)
        yield Label(classes="meaning", markup=False)

    def on_mount(self) -> None:
        self._judge()

    @property
    def input(self) -> Input:
        return self.query_one(Input)

    @property
    def value(self) -> _Number | None:
        """What is set, None where that is left to the model (ValueError)."""
        return self.field.read(self.input.value, self._context_tokens)

    @property
    def is_wrong(self) -> bool:
        """Asked of the text itself: what is said beside it may be one key behind."""
        try:
            _ = self.value
        except ValueError:
            return True
        return False

    @on(Input.Changed)
    def _judge(self) -> None:
        try:
            value, problem = self.value, ""
        except ValueError:
            value, problem = None, f"✗ {self.field.range(self._context_tokens)}"
        loops = self.field.name == "temperature" and value == 0 and self._defaults.temperature > 0
        self.set_class(bool(problem), "-wrong")
        self.set_class(loops, "-doubtful")
        self.query_one(".meaning", Label).update(problem or (f"▲ {_CIRCLES}" if loops else self.field.meaning))


class SettingsScreen(ModalScreen[Settings | None]):
    """A form over the chat; None: nothing is to change."""

    CSS_PATH = "settings.tcss"
    AUTO_FOCUS = "TextArea"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (76, "-wide")]  # noqa: RUF012  both declared so by Screen
    VERTICAL_BREAKPOINTS = [(0, "-low"), (20, "-high")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "Save", id="settings.save", tooltip="Keep this for the chat", priority=True),
        Binding("escape", "cancel", "Cancel", id="settings.cancel", tooltip="Change nothing", priority=True),
        Binding(
            "ctrl+t",
            "next_preset",
            "Next preset",
            id="settings.preset",
            tooltip="Fill in the next preset",
            priority=True,
        ),
    ]

    def __init__(self, settings: Settings, defaults: GenerationOptions, context_tokens: int) -> None:
        super().__init__()
        self._given = settings
        self._defaults = defaults
        self._context_tokens = context_tokens
        self._shown_system = printable_lines(settings.system)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            with Horizontal(classes="presets"):
                for preset in PRESETS:
                    yield Button(preset.title, id=_button_id(preset), compact=True)
            yield Label(classes="note", markup=False)
            area = SystemPrompt(
                self._shown_system, compact=True, placeholder="The model's own", highlight_cursor_line=False
            )
            area.border_title = "System prompt"
            yield area
            for field in FIELDS:
                yield Row(field, self._text_of(field), self._defaults, self._context_tokens)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one(".dialog").border_title = "Settings of this chat"
        self.query_one(TextArea).move_cursor(self.query_one(TextArea).document.end)
        self._tell()

    def _text_of(self, field: Field) -> str:
        """A value of the chat as text; nothing for one that makes no sense, which is ignored in answers, too."""
        text = shown_value(self._given.sampling.get(field.name))
        try:
            return "" if field.read(text, self._context_tokens) is None else text
        except ValueError:
            return ""

    @property
    def _rows(self) -> list[Row]:
        return list(self.query(Row))

    # ---- presets ----

    @on(Button.Pressed)
    def _preset_pressed(self, event: Button.Pressed) -> None:
        self._fill(next(preset for preset in PRESETS if _button_id(preset) == event.button.id))

    def action_next_preset(self) -> None:
        """The one after that which is filled in; what is the user's own is left for the first with a text."""
        active = self._active()
        self._fill(PRESETS[(PRESETS.index(active) + 1 if active else 1) % len(PRESETS)])

    def _fill(self, preset: Preset) -> None:
        """Put a preset into the fields, where it can be seen, changed and, in the text, undone."""
        area = self.query_one(TextArea)
        area.replace(preset.system, area.document.start, area.document.end, maintain_selection_offset=False)
        wanted = sampling_of(preset, self._defaults.temperature)
        for row in self._rows:
            if row.field.name in _OF_PRESETS:
                row.input.value = shown_value(wanted.get(row.field.name))

    def _active(self) -> Preset | None:
        """The preset that the fields are, None where they are something of the user's own."""
        system = self.query_one(TextArea).text.strip()
        values: dict[str, Any] = {row.field.name: None if row.is_wrong else row.value for row in self._rows}
        for preset in PRESETS:
            wanted = sampling_of(preset, self._defaults.temperature)
            if system == preset.system and all(values[name] == wanted.get(name) for name in _OF_PRESETS):
                return preset
        return None

    @on(TextArea.Changed)
    @on(Input.Changed)
    def _tell(self) -> None:
        """Mark the preset that is filled in, and say what it sets."""
        active = self._active()
        for preset in PRESETS:
            button = self.query_one(f"#{_button_id(preset)}", Button)
            button.label = Content(f"{'●' if preset is active else '○'} {preset.title}")
            button.set_class(preset is active, "-active")
            if preset is active:  # a narrow screen does not hold them all
                self.call_after_refresh(button.scroll_visible, animate=False)
        self.query_one(".note", Label).update(self._sets(active))

    def _sets(self, preset: Preset | None) -> str:
        if preset is None:
            return "Your own settings; a preset fills in the text and the sampling below"
        if not preset.name:
            return "No text of its own, and the sampling that the model comes with"
        wanted = sampling_of(preset, self._defaults.temperature)
        numbers = [
            f"{field.title.lower()} {shown_value(wanted[field.name])}" for field in FIELDS if field.name in wanted
        ]
        return f"Sets the text below{''.join(f', {one}' for one in numbers) or '; the sampling stays as its card asks'}"

    # ---- the end ----

    def action_save(self) -> None:
        wrong = next((row for row in self._rows if row.is_wrong), None)
        if wrong:
            wrong.input.focus()
            return
        self.dismiss(Settings(self._system(), self._sampling()))

    def action_cancel(self) -> None:
        self.dismiss(None)

    def _system(self) -> str:
        text = self.query_one(TextArea).text
        return self._given.system if text == self._shown_system else text.strip()

    def _sampling(self) -> dict[str, Any]:
        kept = {key: value for key, value in self._given.sampling.items() if key not in (*SAMPLING, "preset")}
        kept |= {row.field.name: row.value for row in self._rows if row.value is not None}
        active = self._active()
        return kept | ({"preset": active.name} if active and active.name else {})


def _button_id(preset: Preset) -> str:
    return f"preset-{preset.name or 'own'}"
