"""The screen of models in an application of its own: playing a scene, and what stands on the terminal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Label

from ui.build_list import BuildList
from ui.models import ModelsScreen


class Host(App[None]):
    """An application that has nothing but the screen."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.models = ModelsScreen(*arguments, **options)
        self.chosen: list[str | None] = []

    def on_mount(self) -> None:
        self.push_screen(self.models, self.chosen.append)


async def until(pilot: Pilot[None], condition: Callable[[], object], seconds: float = 60) -> None:
    """Let the application go on until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await pilot.pause(0.05)


def play(scene: Callable[[Pilot[None], Host], Awaitable[None]], *arguments: Any, **options: Any) -> Host:
    """Run a scene in the application, and give back what is left of it."""
    size = options.pop("size", (100, 40))
    app = Host(*arguments, **options)

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await scene(pilot, app)

    asyncio.run(run())
    return app


def said(app: Host, label: str = "#models-notice") -> str:
    return str(app.models.query_one(label, Label).content)


def drawn(app: Host) -> str:
    """What stands on the terminal."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


def is_drawn(app: Host, text: str) -> bool:
    return text in drawn(app)


def rows(app: Host) -> BuildList:
    return app.models.query_one(BuildList)


def is_idle(app: Host) -> Callable[[], bool]:
    return lambda: not app.models._work.is_busy
