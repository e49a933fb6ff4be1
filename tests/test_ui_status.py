"""The status line and panel: what is told of a model, of the machine and of the answers, and what gives way."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from textual import on
from textual.app import App, ComposeResult
from textual.containers import Horizontal
from textual.pilot import Pilot
from textual.screen import ModalScreen
from textual.widgets import Label

from phi4local.actions.chat import Located, Opened
from phi4local.engine import Engine, EngineInfo, GenerationOptions, Load
from phi4local.fit import Use
from ui.context import Budget
from ui.latency import Latency, latency_of, percentile
from ui.status import Facts, Gauge, Said, State, StatusLine, StatusPanel, Times, fitting

GIB = 1 << 30
STATS = {
    "prompt_tokens": 1500,
    "cached_tokens": 1000,
    "generation_tokens": 512,
    "prompt_tps": 345.0,
    "generation_tps": 31.2,
    "ttft_seconds": 0.42,
    "reason": "stop",
}
Deeds = Callable[[Pilot[None]], Awaitable[None]]


class Loaded:
    """An engine of which only what it says of itself is asked."""

    def __init__(self, info: EngineInfo) -> None:
        self.info = info


def opened(path: Path, label: str = "phi-4:Q4_K_M", notes: tuple[str, ...] = ()) -> Opened:
    took = {"CPU": Use(2 * GIB, GIB // 2, 0), "CUDA0": Use(6 * GIB, GIB, GIB // 2)}
    predicted = {"CPU": Use(2 * GIB, GIB // 2, 0), "CUDA0": Use(6 * GIB, GIB, 0)}
    load = Load("split", 30, 40, "q8_0", 16_384, predicted, took, resident_bytes=3 * GIB)
    info = EngineInfo("llama.cpp", "phi3 14B", 16_384, bool(notes), load, notes)
    engine: Any = Loaded(info)
    return Opened(Located(label, "phi-4", "Q4_K_M", path), cast(Engine, engine), GenerationOptions())


class Host(App[None]):
    """An app with both."""

    CSS_PATH = Path(__file__).parents[1] / "ui" / "status.tcss"
    CSS = "Screen { layers: base panel; } #chat { width: 1fr; }"

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Label("What was said", id="chat")
            yield StatusPanel()
        yield StatusLine()

    @property
    def panel(self) -> StatusPanel:
        return self.query_one(StatusPanel)

    @property
    def line(self) -> StatusLine:
        return self.query_one(StatusLine)

    @on(StatusPanel.Closed)
    @on(StatusLine.Pressed)
    @on(Budget.Pressed)
    def _tell(self, message: Any) -> None:
        self.told.append(type(message).__qualname__)


def run(deeds: Callable[[Pilot[None], Host], Awaitable[None]], size: tuple[int, int] = (80, 24)) -> None:
    async def inner() -> None:
        app = Host()
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await deeds(pilot, app)

    asyncio.run(inner())


async def until(pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await pilot.pause(0.05)
    raise AssertionError("it never came true")


def facts(app: Host, name: str) -> dict[str, str]:
    return dict(app.query_one(f"#{name}", Facts).facts)


# ---- the panel ----


def test_what_is_told_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x" * 9_050)

    async def deeds(pilot: Pilot[None], app: Host) -> None:
        app.panel.show_model(opened(tmp_path / "model.gguf"))
        assert facts(app, "model") == {
            "model": "phi-4:Q4_K_M",
            "file": "9.05 kB",
            "engine": "llama.cpp, phi3 14B",
            "layers": "30 of 41 on the card",
            "context": "16,384 tokens, q8_0",
        }
        assert facts(app, "memory") == {
            "taken": "10.0 GiB",
            "predicted": "9.50 GiB (+5.3%)",
            "CPU": "2.50 GiB",
            "CUDA0": "7.50 GiB",
            "process": "grew by 3.00 GiB",
        }
        assert not app.query_one("#notes").display
        app.panel.show_model(None)
        assert facts(app, "model") == {"": "No model is open"}
        assert facts(app, "memory") == {}

    run(deeds)


def test_foreign_text_is_shown_as_it_is(tmp_path: Path) -> None:
    async def deeds(pilot: Pilot[None], app: Host) -> None:
        model = opened(tmp_path / "gone", "[red]a[/] \x1b]52;c;x\x07\ud800", ("note [bold]b[/bold]\x1b[2J",))
        app.panel.show_model(model)
        app.line.show_model(model)
        await pilot.pause()
        assert facts(app, "model")["file"] == "removed"
        assert app.query_one("#notes").display
        shown = [app.query_one(Said).render().plain, facts(app, "model")["model"]]
        shown.append(str(app.query_one("#notes", Label).content))
        assert all("[red]a[/]" in text for text in shown[:2])
        assert "[bold]b[/bold]" in shown[2]
        assert "\x1b" not in "".join(shown)

    run(deeds)


def test_the_machines_memory_is_looked_at_only_while_it_is_shown() -> None:
    async def deeds(pilot: Pilot[None], app: Host) -> None:
        gauge = app.query_one(Gauge)
        assert gauge._timer is not None
        await until(pilot, lambda: gauge.used_bytes is not None)
        assert "GiB used" in gauge.render().plain
        before = len(gauge._past)
        await until(pilot, lambda: len(gauge._past) > before)
        app.panel.display = False
        await until(pilot, lambda: not gauge._timer._active.is_set())  # type: ignore[union-attr]
        app.panel.display = True
        await until(pilot, lambda: gauge._timer._active.is_set())  # type: ignore[union-attr]

    run(deeds, (120, 40))


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
@pytest.mark.parametrize("theme", ["textual-dark", "textual-light"])
def test_the_panel_leaves_room_and_scrolls_by_key(tmp_path: Path, size: tuple[int, int], theme: str) -> None:
    async def deeds(pilot: Pilot[None], app: Host) -> None:
        app.theme = theme
        app.panel.show_model(opened(tmp_path, notes=("A note of the engine that is rather long",)))
        app.panel.show_answers([STATS] * 3)
        app.panel.focus()
        await pilot.pause()
        assert app.panel.region.width <= size[0] // 2
        assert app.panel.region.right == size[0]
        assert app.query_one(Times).region.height == 5
        await pilot.press("end")
        notes = app.query_one("#notes")
        await until(pilot, lambda: notes.region.bottom <= app.panel.region.bottom)
        await pilot.press("escape")
        await until(pilot, lambda: app.told == ["StatusPanel.Closed"])

    run(deeds, size)


@pytest.mark.parametrize(
    ("size", "chat", "panel"), [((120, 40), 84, 36), ((99, 30), 99, 36), ((40, 12), 40, 36), ((30, 12), 30, 30)]
)
def test_the_panel_covers_the_chat_where_there_is_no_room(size: tuple[int, int], chat: int, panel: int) -> None:
    async def deeds(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: app.query_one("#chat").region.width == chat)
        assert app.panel.region.width == panel
        assert app.panel.region.right == size[0]
        await pilot.click(StatusPanel, offset=(5, 1))  # it is in front
        app.push_screen(ModalScreen())
        await pilot.resize_terminal(120, 40)
        app.pop_screen()
        await until(pilot, lambda: app.query_one("#chat").region.width == 84)

    run(deeds, size)


# ---- answers ----


def test_answers_and_their_percentiles() -> None:
    async def deeds(pilot: Pilot[None], app: Host) -> None:
        app.panel.show_answers([STATS | {"ttft_seconds": n / 10, "generation_tps": float(n)} for n in range(1, 101)])
        assert [line.split() for line in app.query_one(Times).render().plain.splitlines()] == [
            ["first", "token", "tok/s"],
            ["last", "10.0", "s", "100.0"],
            ["p50", "5.00", "s", "51.0"],
            ["p90", "9.00", "s", "11.0"],
            ["p99", "9.90", "s", "2.0"],
        ]
        assert facts(app, "answers") == {
            "answers": "100",
            "written": "512 tokens",
            "read": "500 tokens at 345/s",
            "known": "1,000 tokens before",
        }
        app.panel.show_answers([])
        assert app.query_one(Times).render().plain == "No answer yet"
        assert facts(app, "answers") == {}

    run(deeds)


def test_nearest_rank() -> None:
    assert percentile([], 50) is None
    assert [percentile([3.0], percent) for percent in (50, 90, 99)] == [3.0, 3.0, 3.0]
    assert [percentile([15, 20, 35, 40, 50], percent) for percent in (5, 30, 40, 50, 100)] == [15, 20, 20, 35, 50]
    assert [percentile([1.0, 2.0, 3.0], percent, best_first=False) for percent in (50, 90)] == [2.0, 1.0]


@pytest.mark.parametrize("value", [None, "1", True, -1.0, 0, math.nan, math.inf, 10**400, [1], {}])
@pytest.mark.parametrize("name", [name for name in STATS if name != "reason"])
def test_damaged_statistics_are_left_out(name: str, value: object) -> None:
    latency = latency_of([STATS, STATS | {name: value}, None, {}])
    assert latency.answers == (1 if name == "ttft_seconds" else 2)
    assert set(latency.ttft_seconds) == {0.42}
    assert set(latency.generation_tps) == {31.2}
    assert latency.prompt_tps in (345.0, 0.0)


def test_no_statistics() -> None:
    assert latency_of([]) == latency_of([None, {}]) == Latency()


# ---- the line ----


def test_parts_give_way_from_the_right() -> None:
    parts = ("phi-4:Q4_K_M", "● ready", "31.2 tok/s", "first token 0.42 s")
    assert fitting(parts, 80) == "phi-4:Q4_K_M · ● ready · 31.2 tok/s · first token 0.42 s"
    assert fitting(parts, 40) == "phi-4:Q4_K_M · ● ready · 31.2 tok/s"
    assert fitting(parts, 22) == "phi-4:Q4_K_M · ● ready"
    assert fitting(parts, 21) == "phi-4:Q4_K… · ● ready"
    assert fitting(parts, 8) == "● ready "
    assert fitting(("○ no model",), 80) == fitting(("○ no model",), 10) == "○ no model"
    assert fitting((), 80) == ""


@pytest.mark.parametrize("width", range(1, 70))
def test_no_line_is_too_long(width: int) -> None:
    from rich.cells import cell_len

    assert cell_len(fitting(("模型" * 10, "▸ reading 1,234 tokens", "31.2 tok/s"), width)) <= width


@pytest.mark.parametrize(
    ("size", "said", "budget"),
    [
        ((80, 24), "phi-4:Q4_K_M · ● ready · 31.2 tok/s", "1,234 of 16,384 ▰▱▱▱"),
        (
            (120, 40),
            "phi-4:Q4_K_M · ● ready · 31.2 tok/s · first token 0.42 s",
            "1,234 of 16,384 ▰▱▱▱ 15,150 left",
        ),
        (
            (200, 60),
            "phi-4:Q4_K_M · ● ready · 31.2 tok/s · first token 0.42 s · 10.0 GiB, 9.50 GiB predicted",
            "1,234 of 16,384 tokens  ▰▱▱▱▱▱▱▱▱▱  15,150 left",
        ),
    ],
)
def test_the_line_at_every_width(tmp_path: Path, size: tuple[int, int], said: str, budget: str) -> None:
    async def deeds(pilot: Pilot[None], app: Host) -> None:
        app.line.show_model(opened(tmp_path))
        app.line.show_state("ready")
        app.line.show_speed(31.21, 0.42)
        app.line.budget.show(1_234, 16_384)
        await until(pilot, lambda: app.query_one(Budget).render().plain == budget)
        await until(pilot, lambda: app.query_one(Said).render().plain.startswith(said))

    run(deeds, size)


@pytest.mark.parametrize(
    ("state", "tokens", "text"),
    [
        ("none", 0, "○ no model"),
        ("loading", 0, "◌ loading"),
        ("ready", 0, "● ready"),
        ("reading", 1_234, "▸ reading 1,234 tokens"),
        ("reading", 1, "▸ reading 1 token"),
        ("reading", 0, "▸ reading"),
        ("answering", 0, "▸ answering"),
        ("stopped", 0, "✗ the engine stopped"),
    ],
)
def test_states(state: State, tokens: int, text: str) -> None:
    async def deeds(pilot: Pilot[None], app: Host) -> None:
        app.line.show_state(state, tokens)
        assert app.query_one(Said).render().plain == text
        assert app.line.has_class(f"-{state}")

    run(deeds)


def test_a_click_asks_for_more() -> None:
    async def deeds(pilot: Pilot[None], app: Host) -> None:
        app.line.budget.show(1_234, 16_384)
        await pilot.pause()
        await pilot.click(Said)
        await pilot.click(Budget)
        await until(pilot, lambda: app.told == ["StatusLine.Pressed", "Budget.Pressed"])

    run(deeds)
