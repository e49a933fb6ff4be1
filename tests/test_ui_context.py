"""The budget of the context, what can be done when it is full, and which longer one the engine says would fit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from textual import on
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import Label, OptionList

from phi4local.actions.chat import Opened, open_model
from phi4local.actions.longer import Longer, doubled, longer_context
from phi4local.engine import Engine, EngineInfo, Load
from phi4local.settings import nano_folder
from tests.gguf_models import Geometry, write_random
from tests.running import json_of, phi4local
from ui.context import Budget, Choice, ContextScreen, Drop, spellings, thousands

DROP, LONGER = Drop(3, 5_200), Longer(32_768, 13 << 30)
Deeds = Callable[[Pilot[None]], Awaitable[None]]


# ---- the budget ----


class Shelf(App[None]):
    """An app with a budget of a given width."""

    CSS_PATH = Path(__file__).parents[1] / "ui" / "status.tcss"

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self.pressed = 0

    def compose(self) -> ComposeResult:
        yield Budget()

    def on_mount(self) -> None:
        self.query_one(Budget).styles.width = self._width

    @on(Budget.Pressed)
    def _pressed(self) -> None:
        self.pressed += 1


def shown(width: int, used: int | None, context: int | None) -> tuple[str, set[str]]:
    """The line of a budget, and its classes."""

    async def run() -> tuple[str, set[str]]:
        async with Shelf(width).run_test(size=(80, 24)) as pilot:
            budget = pilot.app.query_one(Budget)
            budget.show(used, context)
            await pilot.pause()
            return budget.render().plain, set(budget.classes)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (60, "1,234 of 16,384 tokens  ▰▱▱▱▱▱▱▱▱▱  15,150 left"),
        (45, "1,234 of 16,384  ▰▱▱▱▱▱▱▱▱▱  15,150 left"),
        (36, "1,234 of 16,384 ▰▱▱▱ 15,150 left"),
        (24, "1,234 of 16,384 ▰▱▱▱"),
        (17, "1.2k/16.4k ▰▱▱▱"),
        (12, "1.2k/16.4k"),
        (4, "8%"),
    ],
)
def test_the_line_is_as_long_as_there_is_room(width: int, text: str) -> None:
    assert shown(width, 1_234, 16_384) == (text, {"-calm"})


@pytest.mark.parametrize(
    ("used", "look", "end"),
    [
        (12_287, "-calm", "4,097 left"),
        (12_288, "-warning", "4,096 left"),
        (14_746, "-full", "1,638 left"),
        (16_384, "-full", "0 left"),
        (17_000, "-full", "616 too many"),
    ],
)
def test_the_text_says_what_the_colour_says(used: int, look: str, end: str) -> None:
    text, classes = shown(60, used, 16_384)
    assert text.endswith(end)
    assert classes == {look}


def test_what_is_not_known_yet() -> None:
    assert shown(60, None, 16_384) == ("…/16,384", {"-calm"})
    assert shown(7, None, 16_384)[0] == "…/16.4k"
    assert shown(60, None, None)[0] == ""


def test_a_bar_is_full_only_when_nothing_is_left() -> None:
    bars = [(next(iter(spellings(used, 1000))).filled) for used in (0, 1, 500, 999, 1000, 2000)]
    assert bars == [0, 1, 5, 9, 10, 10]
    assert [thousands(count) for count in (999, 1_000, 131_072, 16_777_216)] == ["999", "1.0k", "131k", "16.8M"]


def test_a_click_asks_for_the_choices() -> None:
    async def run() -> int:
        app = Shelf(30)
        async with app.run_test() as pilot:
            await pilot.click(Budget)
            return app.pressed

    assert asyncio.run(run()) == 1


# ---- the choices ----


class Host(App[None]):
    """An app that shows the screen and keeps what came of it."""

    def __init__(self, screen: ContextScreen) -> None:
        super().__init__()
        self.shown = screen
        self.results: list[Choice | None] = []

    def on_mount(self) -> None:
        self.push_screen(self.shown, self.results.append)


def chosen(deeds: Deeds, screen: ContextScreen, size: tuple[int, int] = (80, 24)) -> list[Choice | None]:
    async def run() -> list[Choice | None]:
        app = Host(screen)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await deeds(pilot)
            await pilot.pause()
            return app.results

    return asyncio.run(run())


def full(drop: Drop | None = DROP, longer: Longer | str | None = LONGER, shortened: bool = True) -> ContextScreen:
    return ContextScreen(16_900, 16_384, drop, longer, shortened)


def text_of(screen: ContextScreen) -> str:
    return "\n".join(str(option.prompt) for option in screen.query_one(OptionList).options)


@pytest.mark.parametrize("choice", list(Choice))
@pytest.mark.parametrize("by", ["number", "arrows", "mouse"])
def test_every_choice_by_number_arrows_and_mouse(choice: Choice, by: str) -> None:
    index = list(Choice).index(choice)

    async def deeds(pilot: Pilot[None]) -> None:
        if by == "number":
            await pilot.press(str(index + 1))
        elif by == "arrows":
            await pilot.press(*["down"] * index, "enter")
        else:
            await pilot.click(OptionList, offset=(6, 2 * index))

    assert chosen(deeds, full()) == [choice]


def test_escape_does_nothing() -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        await pilot.press("escape")

    assert chosen(deeds, full()) == [None]


def test_the_facts_are_told() -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        screen = cast(ContextScreen, pilot.app.screen)
        for text in ("first 3", "5,200 tokens", "as long as an answer", "32,768 tokens", "13.0 GiB"):
            assert text in text_of(screen)

    chosen(deeds, full())


def test_facts_that_come_later() -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        screen = cast(ContextScreen, pilot.app.screen)
        options = screen.query_one(OptionList)
        assert text_of(screen).count("…") == 3
        assert [option.disabled for option in options.options] == [True, True, True, False]
        assert options.highlighted is None
        await pilot.press("enter", "1", "2", "3", "5")
        assert pilot.app.screen is screen
        screen.set_drop(DROP)
        assert options.highlighted == 0
        await pilot.press("down", "down")
        assert options.highlighted == 3
        screen.set_longer("The model was trained for [red]16,384[/] tokens \x1b[31m" + "and so on " * 15)
        assert "…" not in text_of(screen)
        assert "[red]16,384[/]" in text_of(screen)
        assert "\x1b" not in text_of(screen)
        assert all(line.startswith(("   ", "3  ")) for line in str(options.options[2].prompt).splitlines())
        assert [option.disabled for option in options.options] == [False, False, True, False]
        assert options.highlighted == 3  # what was marked stays
        await pilot.press("3", "1")

    assert chosen(deeds, full(None, None, shortened=False)) == [Choice.DROP]


def test_no_model_no_longer_context_and_a_long_reason() -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        screen = cast(ContextScreen, pilot.app.screen)
        options = screen.query_one(OptionList)
        screen.set_drop(Drop(0, 0))
        screen.set_longer("No model is open \x1b[2J" + "and so on " * 200)
        await pilot.pause()
        assert "being counted" not in text_of(screen)
        assert "being asked" not in text_of(screen)
        assert text_of(screen).count("…") == 1  # the end of the reason
        assert [option.disabled for option in options.options] == [True, True, True, False, False]
        assert options.highlighted == 3
        assert options.region in screen.region
        assert options.virtual_size.height == options.region.height
        await pilot.press("1", "2", "3", "enter")

    assert chosen(deeds, full(None, None)) == [Choice.NEW]


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (16_321, "63 tokens left: that is too little for an answer"),
        (16_383, "1 token left: that is too little for an answer"),
        (16_384, "leave no room for an answer"),
        (16_900, "leave no room for an answer"),
        (16_320, "There is room."),
        (None, "What the model is told can be made shorter"),
    ],
)
@pytest.mark.parametrize("size", [(80, 24), (40, 12)])
def test_the_sentence_says_what_the_budget_says(used: int | None, said: str, size: tuple[int, int]) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        text = str(pilot.app.screen.query_one(".note", Label).content)
        if size == (80, 24):
            assert said in text
            assert ("Nothing was sent" in text) == (used is not None and used > 16_320)
        assert not ("no room" in text.lower() and used is not None and used < 16_384)
        budget = pilot.app.screen.query_one(Budget).render().plain
        assert used is None or f"{16_384 - used:,} left" in budget or "too many" in budget

    chosen(deeds, ContextScreen(used, 16_384, DROP, LONGER, True), size)


def test_facts_that_come_too_late_or_too_early() -> None:
    screen = full(None, None)
    screen.set_drop(Drop(0, 0))

    async def deeds(pilot: Pilot[None]) -> None:
        assert "nothing to sum up" in text_of(screen)
        await pilot.press("escape")
        await pilot.pause()
        screen.set_longer(LONGER)

    assert chosen(deeds, screen) == [None]


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
@pytest.mark.parametrize("theme", ["textual-dark", "textual-light"])
def test_everything_is_on_the_screen(size: tuple[int, int], theme: str) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        pilot.app.theme = theme
        await pilot.pause()
        options = pilot.app.screen.query_one(OptionList)
        assert options.region in pilot.app.screen.region
        assert options.virtual_size.height == options.region.height == 10

    chosen(deeds, full(), size)


# ---- a longer context ----


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    json_of(phi4local("quantize", nano_folder(), "--to", "Q8_0", "--json", env={"PHI4LOCAL_HOME": str(folder)}))
    return folder


@pytest.fixture
def opened(nano: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    monkeypatch.setenv("PHI4LOCAL_HOME", str(nano))
    model = open_model("phi4-nano", context_tokens=256)
    yield model
    model.engine.close()


class Asked:
    """An engine of which only what it was loaded with is asked."""

    def __init__(self, load: Load) -> None:
        self.info = EngineInfo("none", "", load.context_tokens, False, load)


def with_context(path: Path, context_tokens: int) -> Opened:
    """A file as if it were open with that context."""
    load = Load("cpu", 0, 1, "f32", context_tokens, {}, {})
    located: Any = SimpleNamespace(label=path.name, build=path.name, path=path, stored=None)
    engine: Any = Asked(load)
    return Opened(located, cast(Engine, engine), cast(Any, None))


def test_a_longer_context_of_the_real_model(opened: Opened) -> None:
    longer = longer_context(opened)
    assert isinstance(longer, Longer)
    assert longer.context_tokens == 4096
    with_more = open_model("phi4-nano", context_tokens=longer.context_tokens)
    took = with_more.engine.info.load.took
    with_more.engine.close()
    assert longer.total_bytes == sum(use.total_bytes for use in took.values())


def test_no_more_than_it_was_trained_for(opened: Opened) -> None:
    info = opened.engine.info
    engine: Any = Asked(replace(info.load, context_tokens=4096))
    assert "trained for a context of 4,096 tokens" in str(longer_context(replace(opened, engine=engine)))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file whose cache at its longest context would be a terabyte."""
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    write_random(path, Geometry(layers=128, kv_heads=4, context=1 << 24))
    return path


def test_the_longest_that_fits(wide: Path) -> None:
    longer = longer_context(with_context(wide, 8192))
    assert isinstance(longer, Longer)
    assert 8192 < longer.context_tokens < 1 << 24


def test_the_reason_why_there_is_none(wide: Path) -> None:
    reason = longer_context(with_context(wide, 1 << 23))
    assert isinstance(reason, str)
    assert reason.startswith("A context of 16,777,216 tokens needs ")


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    assert isinstance(longer_context(with_context(tmp_path / "gone.gguf", 8192)), str)


def test_doubles() -> None:
    assert doubled(8192, 16_384) == [16_384]
    assert doubled(4096, 131_072) == [8192, 16_384, 32_768, 65_536, 131_072]
    assert doubled(10_000, 16_384) == [16_384]
    assert doubled(16_384, 16_384) == doubled(4096, 0) == []
