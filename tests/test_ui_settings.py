"""The settings of a chat: what is typed, what is wrong with it, presets, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual import events
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Button, Input, Label, TextArea

from phi4local.actions.talk import options_of
from phi4local.engine import GenerationOptions
from phi4local.presets import PRESETS, SAMPLING, sampling_of
from ui.settings import FIELDS, Row, Settings, SettingsScreen

GREEDY, REASONING = GenerationOptions(), GenerationOptions(0.8, 50, 0.95)
CONTEXT = 16_384
EMPTY = Settings("", {})
MATHEMATICS = next(preset for preset in PRESETS if preset.name == "mathematics")
Deeds = Callable[[Pilot[None]], Awaitable[None]]


class Host(App[None]):
    """An app that shows the screen and keeps what came of it."""

    def __init__(self, screen: SettingsScreen) -> None:
        super().__init__()
        self.shown = screen
        self.results: list[Settings | None] = []

    def on_mount(self) -> None:
        self.push_screen(self.shown, self.results.append)


def changed(
    deeds: Deeds,
    settings: Settings = EMPTY,
    defaults: GenerationOptions = GREEDY,
    size: tuple[int, int] = (80, 24),
) -> list[Settings | None]:
    """What the screen gave back after the deeds."""

    async def run() -> list[Settings | None]:
        app = Host(SettingsScreen(settings, defaults, CONTEXT))
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await deeds(pilot)
            await pilot.pause()
            return app.results

    return asyncio.run(run())


def row(pilot: Pilot[None], name: str) -> Row:
    return next(one for one in pilot.app.screen.query(Row) if one.field.name == name)


def said(pilot: Pilot[None], name: str) -> str:
    return str(row(pilot, name).query_one(".meaning", Label).content)


async def put(pilot: Pilot[None], name: str, text: str) -> None:
    row(pilot, name).query_one(Input).value = text
    await pilot.pause()


def test_what_is_typed_comes_back_and_the_rest_goes_through() -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        await pilot.press(*"Hi", "tab", *"0.7", "tab", *"40", "tab", *"0,9", "tab", *"7", "tab", *"100", "ctrl+s")

    given = Settings("", {"start": 12, "summary": "before", "temperature": 1})
    (result,) = changed(lambda pilot: _emptied(pilot, deeds), given)
    assert result == Settings(
        "Hi",
        {"start": 12, "summary": "before", "temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 7, "max_tokens": 100},
    )


async def _emptied(pilot: Pilot[None], deeds: Deeds) -> None:
    assert row(pilot, "temperature").input.value == "1"
    await put(pilot, "temperature", "")
    await deeds(pilot)


@pytest.mark.parametrize("key", ["escape", "ctrl+s"])
def test_nothing_is_changed_by_looking(key: str) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        await pilot.press(key)

    given = Settings("a\n\x1b[31mb", {"temperature": 0.5, "seed": 3, "other": [1]})
    (result,) = changed(deeds, given)
    assert result == (None if key == "escape" else given)


def test_a_paste_brings_no_controls() -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        for widget in (pilot.app.screen.query_one(TextArea), row(pilot, "seed").input):
            widget.focus()
            await pilot.pause()
            pilot.app.post_message(events.Paste("a\x1b[31m\r\nb\ud800"))
            await pilot.pause()
        await pilot.press("ctrl+s")

    assert changed(deeds) == [Settings("a\ufffd[31m\nb\ufffd", {})]


def test_values_that_make_no_sense_are_not_shown() -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        assert all(one.input.value == "" and not one.is_wrong for one in pilot.app.screen.query(Row))
        await pilot.press("ctrl+s")

    damaged = {"temperature": float("nan"), "top_k": 1.5, "top_p": "0.5", "seed": True, "max_tokens": 1 << 40}
    assert changed(deeds, Settings("", damaged)) == [EMPTY]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "x"),
        ("temperature", "10.1"),
        ("temperature", "nan"),
        ("top_k", "1.5"),
        ("top_k", "-1"),
        ("top_p", "1.01"),
        ("top_p", "inf"),
        ("seed", "4294967296"),
        ("seed", "9" * 24),
        ("max_tokens", "0"),
        ("max_tokens", str(CONTEXT + 1)),
    ],
)
def test_a_wrong_value_is_said_beside_its_field_and_not_saved(name: str, text: str) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        await put(pilot, name, text)
        assert row(pilot, name).is_wrong
        assert said(pilot, name).startswith("✗")
        await pilot.press("ctrl+s")
        assert row(pilot, name).input.has_focus
        assert isinstance(pilot.app.screen, SettingsScreen)
        await put(pilot, name, "")
        assert not row(pilot, name).is_wrong
        await pilot.press("ctrl+s")

    assert changed(deeds) == [EMPTY]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_the_limits_are_those_of_an_answer(field: Any) -> None:
    assert {one.name for one in FIELDS} == set(SAMPLING)
    most = 1 << 24 if field.most is None else field.most
    for value in (field.least, most):
        assert field.read(str(value), most) == value
        assert getattr(options_of(GREEDY, {field.name: value}), field.name) == value
    for value in (field.least - 1, most + 1):
        with pytest.raises(ValueError, match=str(value)):
            field.read(str(value), most)
        assert options_of(GREEDY, {field.name: value}) == GREEDY


def test_the_models_own_values_stand_in_the_empty_fields() -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        shown = {one.field.name: one.input.placeholder for one in pilot.app.screen.query(Row)}
        numbers = {"temperature": "0.8", "top_k": "50", "top_p": "0.95"}
        assert shown == numbers | {"seed": "drawn anew", "max_tokens": "no limit"}

    changed(deeds, defaults=REASONING)


@pytest.mark.parametrize("by", ["mouse", "key"])
def test_a_preset_is_seen_before_it_is_saved(by: str) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        if by == "mouse":
            await pilot.click("#preset-mathematics")
        else:
            await pilot.press("ctrl+t", "ctrl+t")
        await pilot.pause()
        assert pilot.app.screen.query_one(TextArea).text == MATHEMATICS.system
        assert row(pilot, "temperature").input.value == "0"
        assert "temperature 0" in str(pilot.app.screen.query_one(".note", Label).content)
        assert str(pilot.app.screen.query_one("#preset-mathematics", Button).label).startswith("●")
        await pilot.press("ctrl+s")

    (result,) = changed(deeds, Settings("mine", {"top_p": 0.5, "seed": 4}))
    assert result == Settings(MATHEMATICS.system, {"seed": 4, "temperature": 0.0, "preset": "mathematics"})


def test_a_changed_preset_is_none_any_more_and_the_text_can_be_taken_back() -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        await pilot.click("#preset-code")
        area = pilot.app.screen.query_one(TextArea)
        area.focus()
        await pilot.press("ctrl+z")
        assert area.text == "mine"
        await pilot.press("ctrl+s")

    assert changed(deeds, Settings("mine", {"preset": "talk"})) == [Settings("mine", {"temperature": 0.0})]


def test_a_reasoning_model_keeps_its_sampling() -> None:
    assert all(not sampling_of(preset, 0.8) for preset in PRESETS)

    async def deeds(pilot: Pilot[None]) -> None:
        await put(pilot, "temperature", "0")
        assert "circles" in said(pilot, "temperature")
        assert not row(pilot, "temperature").is_wrong
        await pilot.click("#preset-mathematics")
        await pilot.pause()
        assert row(pilot, "temperature").input.value == ""
        assert "its card asks" in str(pilot.app.screen.query_one(".note", Label).content)
        await pilot.press("ctrl+s")

    (result,) = changed(deeds, defaults=REASONING)
    assert result == Settings(MATHEMATICS.system, {"preset": "mathematics"})


def test_presets_make_sense() -> None:
    assert len({preset.name for preset in PRESETS}) == len(PRESETS)
    for preset in PRESETS:
        changes = {name: getattr(options_of(GREEDY, preset.sampling), name) for name in preset.sampling}
        assert changes == preset.sampling


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
@pytest.mark.parametrize("theme", ["textual-dark", "textual-light"])
def test_everything_is_on_the_screen_and_can_be_clicked(size: tuple[int, int], theme: str) -> None:
    async def deeds(pilot: Pilot[None]) -> None:
        pilot.app.theme = theme
        await pilot.pause()
        whole = pilot.app.screen.region
        for widget in (
            *pilot.app.screen.query(Row),
            *pilot.app.screen.query(Button),
            pilot.app.screen.query_one(TextArea),
        ):
            assert widget.region.area
            assert widget.region in whole
        await pilot.click(f"#{'preset-talk'}")
        await pilot.click("FooterKey")  # Save

    (result,) = changed(deeds, size=size)
    assert result
    assert result.sampling["preset"] == "talk"
