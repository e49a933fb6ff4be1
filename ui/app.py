"""The terminal chat as a program: its screens, keys, theme, and how it is left."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from textual import events
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.screen import Screen

from phi4local.errors import Phi4LocalError
from phi4local.files import atomic_write, read_bounded
from phi4local.history import History
from phi4local.settings import history_file, state_folder
from ui.chat import ChatScreen
from ui.keys import use_keys
from ui.model_thread import Load
from ui.open_chat import OpenChat
from ui.prompt import one_kind_of_line
from ui.terminal import instead_of, leaving_on_signals
from ui.told import ModelChoice

_DARK, _LIGHT = "textual-dark", "textual-light"
_TWICE_SECONDS = 2.0  # between two Ctrl-C that leave
_LIMIT_BYTES = 10_000


class ChatApp(App[None]):
    """`phi4local`: the chat with a model in the terminal."""

    TITLE = "phi4local"
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", id="app.quit", priority=True, tooltip="Leave; everything is kept"),
        Binding("f1", "keys", "Help", id="app.keys", tooltip="All keys"),
        Binding("f10", "toggle_theme", "Light/dark", id="app.theme", show=False, tooltip="The light or the dark theme"),
        Binding(
            "ctrl+p", "command_palette", "Commands", id="app.palette", show=False, tooltip="Everything by its name"
        ),
    ]

    def __init__(
        self,
        choice: ModelChoice,
        system: str = "",
        sampling: Mapping[str, Any] | None = None,
        load: Load | None = None,
    ) -> None:
        super().__init__()
        self.animation_level = "none"  # nothing moves by itself: over ssh every frame is a screen of text
        self._system, self._sampling = system, sampling or {}
        self._keys: dict[str, str] = {}
        self._wrong_keys: Phi4LocalError | None = None
        self._left_at = 0.0
        self.history: History | None = None
        self.chat = ChatScreen(choice, load)

    def on_mount(self) -> None:
        self.theme = _kept_theme()
        try:
            self._keys = use_keys(self)
        except Phi4LocalError as error:
            self._wrong_keys = error
        self.push_screen(self.chat)
        self.chat.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """What can wait until the screen has been seen."""
        try:
            self.history = History(history_file())
        except Phi4LocalError as error:
            self.chat.complain(error, title="Chats of this session are not kept")
            self.history = History(Path(tempfile.mkdtemp(prefix="phi4local-")) / "history.sqlite3")
        if self._wrong_keys:
            self.chat.complain(self._wrong_keys)
        talk = OpenChat(self.history)
        talk.begin_with(self._system, self._sampling)
        self.chat.begin(talk)
        self.theme_changed_signal.subscribe(self, lambda theme: _keep_theme(theme.name))

    def get_driver_class(self) -> type[Driver]:
        return instead_of(super().get_driver_class())

    async def on_event(self, event: events.Event) -> None:
        """What is pasted is text before anything sees it; Textual's own inputs would write its controls out."""
        if isinstance(event, events.Paste):
            try:
                event.text = one_kind_of_line(event.text)
            except Phi4LocalError as error:  # more than a text may be
                self.chat.complain(error)
                return
        await super().on_event(event)

    # ---- leaving ----

    async def run_async(self, **how: Any) -> None:
        with leaving_on_signals(self):
            await super().run_async(**how)

    async def action_quit(self) -> None:
        """Leave at once, also while an answer comes; what it has said is kept."""
        self.chat.model.close()
        self.chat.try_to_save()
        self.exit()

    def action_help_quit(self) -> None:
        """Ctrl-C where nothing else has a use for it."""
        self.action_leave_at_second()

    def action_leave_at_second(self) -> None:
        """Leave when this is asked for twice."""
        now = time.monotonic()
        if now - self._left_at < _TWICE_SECONDS:
            self.call_next(self.action_quit)
        else:
            self.notify("Ctrl-C again leaves; so does Ctrl-Q", timeout=_TWICE_SECONDS)
        self._left_at = now

    # ---- commands ----

    def action_keys(self) -> None:
        from ui.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self._keys))

    def action_toggle_theme(self) -> None:
        self.theme = _LIGHT if self.current_theme.dark else _DARK

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """What the palette offers: whatever has a key here, then the themes."""
        for active in screen.active_bindings.values():
            binding = active.binding
            if binding.id and active.enabled:
                run = functools.partial(self.run_action, binding.action, active.node)
                yield SystemCommand(binding.description, binding.tooltip, run)
        yield SystemCommand("Choose a theme", "Colours", self.action_change_theme)


def _theme_file() -> Path:
    return state_folder() / "theme.json"


def _kept_theme() -> str:
    from textual.theme import BUILTIN_THEMES

    with contextlib.suppress(Phi4LocalError, OSError, ValueError, RecursionError):
        name = json.loads(read_bounded(_theme_file(), _LIMIT_BYTES))
        if name in BUILTIN_THEMES:
            return str(name)
    return _DARK


def _keep_theme(name: str) -> None:
    with contextlib.suppress(OSError):  # a theme is not worth a complaint
        _theme_file().parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(_theme_file()) as file:
            file.write(json.dumps(name).encode())


def run(choice: ModelChoice, system: str = "", sampling: Mapping[str, Any] | None = None) -> int:
    """Open the chat and stay until it is left; the exit code. New chats begin with that system message and sampling."""
    app = ChatApp(choice, system, sampling)
    try:
        app.run()
    finally:
        app.chat.model.close()
        if app.history:
            app.history.close()
    return app.return_code or 0
