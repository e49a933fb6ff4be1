"""Dialogs and screens on a terminal of 40 columns and 12 rows: what is chosen and typed comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.binding import Binding
from textual.geometry import Spacing
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Button, Footer, Input, OptionList, Select, TextArea

from phi4local.actions.longer import Longer
from phi4local.engine import GenerationOptions
from phi4local.errors import NotFound
from tests.models_screen import until
from ui import acquiring
from ui.acquiring import Offered
from ui.build_list import BuildList, BuildRow
from ui.context import Choice, ContextScreen, Drop
from ui.dialogs import Line
from ui.keys import bindings_of
from ui.models import ModelsScreen
from ui.offers import FolderForm, Offer
from ui.settings import Row, Settings, SettingsScreen
from ui.status import StatusPanel

SMALL = (40, 12)
SIZES = (SMALL, (80, 12), (40, 24), (60, 19), (80, 24))
REASON = "The model was trained for a context of 16,384 tokens " + "and so on " * 50
OFFERED = Offered(
    "Get phi-4:Q4_K_M?",
    [("To fetch", "9.05 GB, a published file"), ("From", "somebody/phi-4-GGUF-of-a-long-name"), ("On disk", "9.05 GB")],
    ("Made from official weights, because nobody has published one.", "It can be stopped at any time."),
    "It needs more memory than can be used here now.",
    other="Official weights (29 GB)",
)
Deeds = Callable[[Pilot[None]], Awaitable[None]]


class Host(App[None]):
    """An app that shows a screen and keeps what came of it; `keys` are the user's own."""

    def __init__(self, screen: Screen[Any], keys: dict[str, str] | None = None) -> None:
        super().__init__()
        self.shown, self.keys, self.results = screen, keys or {}, list[Any]()

    def on_mount(self) -> None:
        self.set_keymap(self.keys)
        self.push_screen(self.shown, self.results.append)


def play(screen: Screen[Any], deeds: Deeds, size: tuple[int, int], keys: dict[str, str] | None = None) -> list[Any]:
    async def run() -> list[Any]:
        app = Host(screen, keys)
        async with app.run_test(size=size) as pilot:
            await pilot.pause(0.1)
            await deeds(pilot)
            await pilot.pause()
            return app.results

    return asyncio.run(run())


def is_seen(widget: Widget, aside: int = 0) -> bool:
    """Whether all of it, but for some cells on each side, is on the screen, and not behind the keys."""
    screen = widget.screen
    free = screen.region.grow((0, 0, -1, 0)) if screen.query(Footer) else screen.region
    shown, region = screen._compositor.visible_widgets, widget.region.shrink(Spacing(0, aside, 0, aside))
    return widget in shown and region in free and shown[widget][1].intersection(region) == region


def context(drop: Drop | None = None, longer: Longer | str | None = None) -> ContextScreen:
    return ContextScreen(16_900, 16_384, drop, longer, True)


# ---- the context ----


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "make",
    [
        context,
        lambda: context(Drop(3, 5_200), Longer(32_768, 13 << 30)),
        lambda: context(Drop(0, 0), REASON),
        lambda: context(Drop(3, 5_200), REASON),
    ],
)
def test_every_choice_is_seen(size: tuple[int, int], make: Callable[[], ContextScreen]) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        options = pilot.app.screen.query_one(OptionList)
        await until(pilot, lambda: options.virtual_size.height <= options.size.height, 5)
        await until(pilot, lambda: is_seen(options), 5)

    play(make(), deeds, size)


def test_a_choice_is_made_with_the_mouse_and_the_window_may_change() -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        await pilot.resize_terminal(*SMALL)
        options = pilot.app.screen.query_one(OptionList)
        await until(pilot, lambda: options.size.height == 9, 5)
        await until(pilot, lambda: str(options.options[-1].prompt) == "5  Tell the model everything again", 5)
        await pilot.resize_terminal(100, 30)
        await until(pilot, lambda: "dropped before" in str(options.options[-1].prompt), 5)
        await pilot.resize_terminal(*SMALL)
        await until(pilot, lambda: "dropped before" not in str(options.options[-1].prompt), 5)
        await until(pilot, lambda: options.virtual_size.height == 6, 5)
        await pilot.click(OptionList, offset=(6, 4))

    assert play(context(Drop(3, 5_200), Longer(32_768, 13 << 30)), deeds, (80, 24)) == [Choice.NEW]


# ---- settings ----


@pytest.mark.parametrize("size", SIZES)
def test_every_field_is_seen(size: tuple[int, int]) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        screen = pilot.app.screen
        for widget in (screen.query_one(TextArea), *screen.query(Row), *screen.query(Input)):
            assert is_seen(widget), widget
        assert screen.query_one(TextArea).content_size.height >= 2
        await pilot.press(*"Hi", "tab", *"0.7", "tab", *"40", "ctrl+s")

    screen = SettingsScreen(Settings("", {}), GenerationOptions(), 16_384)
    (result,) = play(screen, deeds, size)
    assert result == Settings("Hi", {"temperature": 0.7, "top_k": 40})


@pytest.mark.parametrize("size", SIZES)
def test_what_is_wrong_is_told(size: tuple[int, int]) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        seed = next(row for row in pilot.app.screen.query(Row) if row.field.name == "seed")
        seed.input.value = "never"
        await until(pilot, lambda: seed.is_wrong and is_seen(seed.query_one(".meaning")), 5)
        await until(pilot, lambda: seed.query_one(".meaning").content_size.width >= 36, 5)
        assert is_seen(seed.input)
        await pilot.press("ctrl+s")
        assert pilot.app.focused is seed.input

    assert play(SettingsScreen(Settings("", {}), GenerationOptions(), 16_384), deeds, size) == []


@pytest.mark.parametrize("size", SIZES)
def test_the_preset_that_is_filled_in_is_seen(size: tuple[int, int]) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        for name in ("talk", "mathematics", "code", "own"):
            await pilot.press("ctrl+t")
            button = pilot.app.screen.query_one(f"#preset-{name}", Button)
            await until(pilot, lambda button=button: button.has_class("-active") and is_seen(button, 1), 5)

    play(SettingsScreen(Settings("", {}), GenerationOptions(), 16_384), deeds, size)


# ---- models ----


@pytest.mark.parametrize("size", SIZES)
def test_builds_are_seen(size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquiring, "ask", lambda name, _: NotFound(f"Nothing is known of {name}"))
    path = tmp_path / "a-rather-long-name-Q4_K_M.gguf"
    path.write_bytes(b"GGUF")

    async def deeds(pilot: Pilot[None]) -> None:
        screen = pilot.app.screen
        rows = screen.query_one(BuildList)
        await until(pilot, lambda: rows.entry and rows.entry.label == str(path))
        await until(pilot, lambda: rows.size.height >= (4 if size[1] < 20 else 8), 5)
        shown = [row for row in screen.query(BuildRow) if row.display]
        assert all(is_seen(row) for row in shown)
        assert "a-rather-long-name" in shown[1].render().plain
        await pilot.click(shown[1], times=2)

    assert play(ModelsScreen(files=[path]), deeds, size) == [str(path)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("answer", ["yes", "other", "no"])
def test_an_offer_can_be_answered(size: tuple[int, int], answer: str) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        buttons = pilot.app.screen.query(Button)
        assert all(is_seen(button) for button in buttons)
        facts = pilot.app.screen.query_one(".facts")
        await pilot.press(*["down"] * facts.max_scroll_y)
        await until(pilot, lambda: facts.scroll_offset.y == facts.max_scroll_y, 5)
        await pilot.click(f"#{answer}")

    assert play(Offer(OFFERED), deeds, size) == [None if answer == "no" else answer]


@pytest.mark.parametrize("size", SIZES)
def test_a_folder_can_be_typed(size: tuple[int, int]) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        screen = pilot.app.screen
        for widget in (screen.query_one(Line), screen.query_one(Select), *screen.query(Button)):
            assert is_seen(widget), widget
        await pilot.press(*"/tmp")
        await pilot.click("#yes")

    assert play(FolderForm(), deeds, size) == [(Path("/tmp"), "Q4_K_M")]


# ---- keys ----


@pytest.mark.parametrize(
    "place", [ModelsScreen, BuildList, Offer, FolderForm, ContextScreen, SettingsScreen, StatusPanel]
)
def test_every_key_has_a_name_and_says_what_it_does(place: type) -> None:
    declared = list(bindings_of(place))
    assert len(declared) == len(vars(place)["BINDINGS"]) > 0
    assert all(binding.id and binding.description and binding.tooltip for binding in declared)
    ids = [binding.id for binding in declared]
    assert len({*ids}) == len(ids)
    assert all(isinstance(binding, Binding) for binding in declared)


def test_other_keys_do_the_same() -> None:
    async def choose(pilot: Pilot[None]) -> None:
        await pilot.press("4", "escape")
        assert pilot.app.screen.query(OptionList)
        await pilot.press("x")

    assert play(context(Drop(1, 9), REASON), choose, SMALL, {
        "context.4": "x", "context.cancel": "f7", "context.take": "f8",
    }) == [Choice.NEW]  # fmt: skip

    async def save(pilot: Pilot[None]) -> None:
        await pilot.press("ctrl+s", "escape", "f6")

    screen = SettingsScreen(Settings("a", {}), GenerationOptions(), 16_384)
    keys = {"settings.save": "f6", "settings.cancel": "f7", "settings.preset": "f8"}
    assert play(screen, save, SMALL, keys) == [Settings("a", {})]
