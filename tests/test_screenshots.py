"""The pictures of `docs/`: the screens as they are drawn now, on a machine that does not exist."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime, tzinfo
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input, Tabs, TextArea

from phi4local.actions.longer import Longer
from phi4local.actions.talk import prompt_of
from phi4local.engine import EngineInfo, Load
from phi4local.fit import Use
from phi4local.store import Manifest, build_path, write_manifest
from tests.fakes import FakeEngine, loads
from tests.machines import read_machine, recommended
from tests.pictures import keep, picture, weak_texts
from tests.screens import Scene, until
from tests.tales import (
    BRANCHES,
    FORMULAS,
    LABEL,
    NEWTON,
    NEWTON_THOUGHT,
    REPORT,
    STATS,
    keep_chat,
    keep_list,
    message,
)
from ui import acquiring
from ui.app import ChatApp
from ui.chat import ChatScreen
from ui.chats import ChatsScreen
from ui.context import ContextScreen, Drop
from ui.keys import bindings_of, keys_of, sections
from ui.models import ModelsScreen
from ui.status import Gauge
from ui.told import ModelChoice

GIB = 1 << 30
DARK, LIGHT = "textual-dark", "textual-light"
Stage = Pilot[None]


class Storyteller(FakeEngine):
    """A model of the family on a card, as far as a screen asks."""

    def __init__(self, context_tokens: int) -> None:
        super().__init__(context_tokens=context_tokens)
        took = {"CPU": Use(300 << 20, 0, 30 << 20), "CUDA0": Use(8_300 << 20, 3_200 << 20, 360 << 20)}
        predicted = took | {"CUDA0": Use(8_300 << 20, 3_200 << 20, 340 << 20)}
        load = Load("gpu", 41, 40, "f16", context_tokens, predicted, took, 612 << 20, 11_868 << 20)
        self.info = EngineInfo("llama.cpp", "phi3 14B Q4_K - Medium", context_tokens, False, load)

    def count(self, messages: Any) -> int:
        return sum(len(one.content) // 3 + 4 for one in messages)


class Today(datetime):
    """A day that does not end."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Today:  # noqa: ARG003  as the base class has it
        return cls(2026, 3, 14, 15, 9, tzinfo=UTC)

    def astimezone(self, tz: tzinfo | None = None) -> Today:
        return self


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a picture would else show of this machine and of this day."""

    def look(gauge: Gauge) -> None:
        gauge.total_bytes, gauge.used_bytes = 32 * GIB, 19 * GIB
        gauge._past = deque(min(19, max(7, second - 30)) / 32 for second in range(60))
        gauge.refresh()

    monkeypatch.setattr(Gauge, "_look", look)
    monkeypatch.setattr("ui.finder.datetime", Today)
    monkeypatch.setattr("ui.status.file_text", lambda _: "9.05 GB")
    answers = {name: recommended(read_machine("desktop-24gb-card"), name) for name in ("phi-4", "phi-4-reasoning")}
    monkeypatch.setattr(acquiring, "ask", lambda name, _: answers[name])


def shoot(
    name: str,
    title: str,
    scene: Scene,
    *,
    size: tuple[int, int] = (100, 30),
    theme: str = DARK,
    context: int = 16_384,
    readable: bool = True,
) -> None:
    """Play a scene, compare what is seen at its end with a picture, and see whether it can be read in both themes."""
    engine = Storyteller(context)

    async def run() -> None:
        app = ChatApp(ModelChoice(LABEL), load=loads(engine, LABEL))
        try:
            async with app.run_test(size=size) as pilot:
                app.theme = theme
                await until(pilot, lambda: app.chat.model.opened and app.chat.status.budget.used_tokens is not None)
                await scene(pilot, app.chat)
                keep(name, await settled(pilot, app, title))
                for one in (DARK, LIGHT) if readable else ():
                    app.theme = one
                    await settled(pilot, app, title)
                    assert weak_texts(app) == [], one
        finally:
            if app.history:
                app.history.close()

    asyncio.run(run())


async def settled(pilot: Stage, app: App[Any], title: str) -> str:
    """The picture, once nothing moves any more."""
    for widget in app.screen.query("TextArea, Input"):
        if isinstance(widget, TextArea | Input):
            widget.cursor_blink = False
    seen: list[str] = []
    while len(seen) < 3 or len({*seen[-3:]}) > 1:
        await pilot.pause(0.1)
        seen.append(picture(app, title))
    return seen[-1]


async def open_chat(pilot: Stage, chat: ChatScreen, number: int) -> None:
    """A chat that is kept, as it is after its last answer."""
    chat.talk.open(number)
    chat.show_chat()
    chat.recount()
    turns, engine = chat.transcript.turns, chat.model.opened
    assert engine
    tokens = engine.engine.count(prompt_of(chat.talk.chat, chat.talk.branch))
    await until(pilot, lambda: chat.status.budget.used_tokens == tokens)
    await until(pilot, lambda: all(turn.is_made(*chat.transcript._known) for turn in turns))  # type: ignore[misc]
    chat.status.show_speed(STATS["generation_tps"], STATS["ttft_seconds"])  # type: ignore[arg-type]


async def newton(pilot: Stage, chat: ChatScreen) -> None:
    said = [message(1, None, NEWTON[0])]
    said += [message(2, 1, NEWTON[1], thinking=NEWTON_THOUGHT, thinking_seconds=18.0)]
    await open_chat(pilot, chat, keep_chat(chat.talk.history, "Newton's method for square roots", said))


def test_chat() -> None:
    shoot("chat.svg", "An answer with a formula and a listing", newton)


def test_light() -> None:
    shoot("light.svg", "The same in the light theme, on 80 columns", newton, size=(80, 24), theme=LIGHT)


def test_formulas() -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        said = [message(1, None, "Thirty formulas, please"), message(2, 1, FORMULAS)]
        await open_chat(pilot, chat, keep_chat(chat.talk.history, "Formulas", said))
        assert chat.transcript.max_scroll_y == 0

    shoot("formulas.svg", "Thirty formulas", scene, size=(100, 60))


def test_branches() -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        first, second, third = BRANCHES
        said = [message(1, None, first[0], attachments=(REPORT,)), message(2, 1, first[1])]
        said += [message(3, 2, second[0]), message(4, 3, second[1]), message(5, 2, third[0]), message(6, 5, third[1])]
        await open_chat(pilot, chat, keep_chat(chat.talk.history, "The coldest week", said))
        await pilot.press("ctrl+up", "up")
        assert chat.transcript.current == 2

    shoot("branches.svg", "A question that was asked otherwise, and the keys for messages", scene)


def test_context() -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        await newton(pilot, chat)
        chat.status.budget.show(8_311, 8_192)
        longer = Longer(16_384, round(11.6 * GIB))
        pilot.app.push_screen(ContextScreen(8_311, 8_192, Drop(6, 3_120), longer, False))
        await until(pilot, lambda: isinstance(pilot.app.screen, ContextScreen))

    shoot("context.svg", "What can be done when the context is full", scene, context=8_192)


def test_models() -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        name, build = LABEL.split(":")
        path = build_path(name, build)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"GGUF")
        source: dict[str, Any] = {
            "repo": "microsoft/Phi-4-reasoning",
            "revision": None,
            "files": [],
            "from": "official",
        }
        write_manifest(path, Manifest(name, build, "gguf", 9_053_116_224, "", 4.94, {}, [], source, "", {}, ""))
        screen = ModelsScreen(LABEL)
        pilot.app.push_screen(screen)
        await until(pilot, lambda: screen._models and screen.query_one(Tabs).active)
        names = [model.name for model in screen._models]
        screen.query_one(Tabs).active = f"tab-{names.index('phi-4-reasoning')}"
        await until(pilot, lambda: "phi-4-reasoning" in screen._answers and not screen._asking)

    shoot("models.svg", "The builds of a model on a machine with a card of 24 GB", scene)


def test_chats() -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        keep_list(chat.talk.history)
        await open_chat(pilot, chat, 2)
        await pilot.press("ctrl+g")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChatsScreen))
        screen = pilot.app.screen
        assert isinstance(screen, ChatsScreen)
        await until(pilot, lambda: screen._finder._chats)
        await pilot.press(*"matrix")
        await until(pilot, lambda: screen._finder._found.text == "matrix")

    shoot("chats.svg", "Searching all chats", scene)


def test_status() -> None:
    async def scene(pilot: Stage, chat: ChatScreen) -> None:
        times = ((0.34, 31.9), (0.41, 31.2), (1.9, 30.4), (0.38, 31.6), (0.34, 31.9))
        told = [STATS | {"ttft_seconds": first, "generation_tps": rate} for first, rate in times]
        said = [message(1, None, NEWTON[0])]
        said += [message(2, 1, NEWTON[1], thinking=NEWTON_THOUGHT, thinking_seconds=18.0)]
        for at, one in enumerate(told[1:], 2):
            texts = (f"And the first {2**at} digits of √2?", f"{2**0.5:.{2**at}f}")
            said += [message(2 * at - 1, 2 * at - 2, texts[0]), message(2 * at, 2 * at - 1, texts[1], stats=one)]
        await open_chat(pilot, chat, keep_chat(chat.talk.history, "Newton's method for square roots", said))
        await pilot.press("f5")
        await until(pilot, lambda: chat.query_one(Gauge).used_bytes)

    shoot("status.svg", "The panel beside the chat", scene, size=(120, 40))


def test_the_table_of_keys() -> None:
    parts = ["# Keys\n", _KEYS]
    for title, place in sections().items():
        parts += [f"## {title}\n", "| key | does | in `keys.toml` |\n|---|---|---|"]
        for key in keys_of(place, {}):
            names = next(one.key for one in bindings_of(place) if one.id == key.id)
            parts += [f"| {names.replace(',', ', ')} | {key.tooltip} | `{key.id}` |"]
        parts += [""]
    keep("keys.md", "\n".join(parts))


_KEYS = """\
Made from the program's own bindings; F1 shows the same on the screen.

`keys.toml` in the folder of the program's data (`PHI4LOCAL_HOME`, where that is set) gives other keys to what is named
there: a line for each, keys by the names in these tables, several with commas between them. All the rest stays as it
is. A file that is no TOML, or that names what does not exist, changes nothing, and the chat says so when it opens.

```toml
"prompt.newline" = "ctrl+j"
"prompt.send" = "f12"
```
"""
