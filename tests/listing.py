"""The screen of all chats in an application of its own, played by keys and clicks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from textual.app import App
from textual.pilot import Pilot

from phi4local.history import History
from ui.chats import ChatsScreen, Chosen
from ui.finder import Finder
from ui.rows import Rows

HOSTILE = "[red]no[/red] [@click=app.quit]x[/] \x1b]52;c;aGk=\x07\x1b[31m \u202eback $x {y}"
LEFT_OPEN = object()
Scene = Callable[["Host", Pilot[None]], Awaitable[None]]


class Host(App[None]):
    """Shows the screen, and keeps what it was left with."""

    def __init__(self, history: History, **options: Any) -> None:
        super().__init__()
        self.history = history
        self.chats = ChatsScreen(history, **options)
        self.left: object = LEFT_OPEN

    def on_mount(self) -> None:
        self.push_screen(self.chats, self._leave)

    def _leave(self, chosen: Chosen | None) -> None:
        self.left = chosen

    @property
    def finder(self) -> Finder:
        return self.chats.query_one(Finder)

    @property
    def rows(self) -> Rows:
        return self.finder.rows

    def lines(self) -> list[str]:
        """What is on the terminal."""
        return [strip.text for strip in self.screen._compositor.render_strips()]

    def shows(self, text: str) -> bool:
        """Whether it is there, wherever the lines are broken."""
        return text in " ".join(" ".join(self.lines()).split())


def play(scene: Scene, history: History, *, size: tuple[int, int] = (100, 30), **options: Any) -> Host:
    """Play a scene once the chats are listed, and give back what is left."""
    host = Host(history, **options)

    async def run() -> None:
        async with host.run_test(size=size) as pilot:
            await until(pilot, lambda: host.finder.rows.virtual_size.height or host.chats.has_class("-failed"))
            await scene(host, pilot)

    asyncio.run(run())
    return host


async def until(pilot: Pilot[None], condition: Callable[[], object], seconds: float = 20) -> None:
    """Let the application go on until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await pilot.pause(0.01)


async def write(pilot: Pilot[None], text: str) -> None:
    """Type over what an open question holds, and accept it."""
    await pilot.press("end", "ctrl+u", *(("space" if letter == " " else letter) for letter in text), "enter")


def ask(history: History, title: str, *texts: str, **about: Any) -> int:
    """A chat of these messages."""
    chat = history.new_chat(title, **about)
    parent = None
    for index, text in enumerate(texts):
        parent = history.add(chat.id, parent, "assistant" if index % 2 else "user", text).id
    return chat.id
