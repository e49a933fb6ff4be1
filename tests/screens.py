"""The chat's screen in a test: opened over an engine that says what the test wants, waited for by conditions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from textual.pilot import Pilot

from tests.fakes import FakeEngine, loads
from ui.app import ChatApp
from ui.chat import ChatScreen
from ui.told import ModelChoice

Scene = Callable[[Pilot[None], ChatScreen], Awaitable[None]]


async def until(pilot: Pilot[Any], condition: Callable[[], object], seconds: float = 60) -> None:
    """Let the application go on until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await pilot.pause(0.01)


def play(
    scene: Scene,
    engine: FakeEngine | None = None,
    *,
    size: tuple[int, int] = (80, 24),
    system: str = "",
    sampling: Mapping[str, Any] | None = None,
) -> None:
    """Open the chat with a model in it, and let the scene happen."""

    async def run() -> None:
        app = ChatApp(ModelChoice("phi-4:Q4_K_M"), system, sampling, load=loads(engine or FakeEngine()))
        try:
            async with app.run_test(size=size) as pilot:
                await until(pilot, lambda: app.chat.model.opened and app.chat.status.budget.used_tokens is not None)
                await scene(pilot, app.chat)
        finally:
            if app.history:
                app.history.close()

    asyncio.run(run())


async def ask(pilot: Pilot[None], chat: ChatScreen, text: str) -> None:
    """Type a question, send it and wait for the end of its answer."""
    await send(pilot, chat, text)
    await until(pilot, lambda: chat.waiting is None)


async def send(pilot: Pilot[None], chat: ChatScreen, text: str) -> None:
    """Type a question and send it; the answer has not begun."""
    chat.prompt.focus()
    chat.prompt.insert(text)
    await pilot.press("enter")
    await until(pilot, lambda: chat.waiting is not None or not chat.prompt.text)


def texts(chat: ChatScreen) -> list[str]:
    """What the transcript shows, message by message."""
    return [turn.message.text for turn in chat.transcript.turns]


def drawn(chat: ChatScreen) -> str:
    """The transcript's lines as they are on the screen."""
    transcript = chat.transcript
    return "\n".join(transcript.render_line(y).text.rstrip() for y in range(transcript.size.height))


def notices(pilot: Pilot[None]) -> list[str]:
    """What is being told in the corner."""
    return [one.message for one in pilot.app._notifications]
