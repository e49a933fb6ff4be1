"""GGUFs of the user's own in the screen of models: listed, opened by their path, and what is said of what cannot be."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import pytest
from textual.pilot import Pilot

from phi4local.errors import NotFound
from phi4local.settings import nano_folder
from phi4local.store import builds
from tests.gguf_models import Geometry, write_random
from tests.models_screen import Host, drawn, is_drawn, is_idle, play, rows, said, until
from tests.running import json_of, phi4local
from ui import acquiring
from ui.build_list import column_widths
from ui.builds import COLUMNS, NANO, Entry
from ui.dialogs import Ask, Confirm, Line


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine is asked."""
    monkeypatch.setattr(acquiring, "ask", lambda name, _: NotFound(f"Nothing is known of {name}"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "sound.gguf"
    write_random(path, Geometry())
    return path


@pytest.fixture
def model(written: Path, tmp_path: Path) -> Path:
    """A model that can be loaded, under a name that is no markup."""
    return Path(shutil.copy(written, tmp_path / "my [red]own.gguf"))


def labels(app: Host) -> list[str]:
    return [entry.label for entry in rows(app)._entries]


async def type_path(pilot: Pilot[None], app: Host, text: str) -> None:
    """Ask for a file by its path."""
    await pilot.press("o")
    await until(pilot, lambda: isinstance(app.screen, Ask))
    app.screen.query_one(Line).value = text
    await pilot.press("enter")
    await until(pilot, lambda: not isinstance(app.screen, Ask))


# -- what is listed


def test_files_are_listed_by_their_names_and_given_back_by_their_paths(model: Path, tmp_path: Path) -> None:
    folder, gone = tmp_path / "folder.gguf", tmp_path / "gone.gguf"
    folder.mkdir()
    (tmp_path / "again.gguf").symlink_to(model)

    async def scene(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: str(model) in labels(app))
        assert labels(app) == [str(model), NANO]
        for text in ("my [red]own.gguf", "1 file on this disk", "A file of your own"):
            await until(pilot, functools.partial(is_drawn, app, text), 10)
        await pilot.press("home", "enter")

    files = (gone, model, folder, tmp_path / "again.gguf", model, Path("/dev/null"), Path("a\0b"))
    assert play(scene, files=files).chosen == [str(model)]


def test_a_file_is_not_ours_to_remove(model: Path) -> None:
    async def scene(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: rows(app).entry and rows(app).entry.is_file)  # type: ignore[union-attr]
        await pilot.press("d", "delete")
        assert not isinstance(app.screen, Confirm)
        await pilot.press("escape")

    assert play(scene, files=[model]).chosen == [None]
    assert model.exists()


def test_the_file_in_use_is_under_the_cursor(model: Path, written: Path) -> None:
    async def scene(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: rows(app).entry and rows(app).entry.is_used)  # type: ignore[union-attr]
        assert rows(app).entry.label == str(model)  # type: ignore[union-attr]
        assert sorted(labels(app)) == sorted([str(model), str(written), NANO])
        await until(pilot, lambda: "in use" in drawn(app), 10)
        await pilot.press("escape")

    play(scene, str(model), files=[written])


def test_a_file_of_the_store_is_listed_once(home: Path) -> None:
    json_of(phi4local("quantize", nano_folder(), "--to", "Q8_0", "--json", env={"PHI4LOCAL_HOME": str(home)}))
    (build,) = builds()

    async def as_build(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: labels(app) == [build.label])

    async def in_use_by_its_path(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: labels(app) == [build.label, str(build.path)])
        assert rows(app).entry.is_used  # type: ignore[union-attr]

    play(as_build, files=[build.path])
    play(in_use_by_its_path, str(build.path), files=[build.path])


def test_a_name_that_is_no_text_is_shown(written: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a\udcff\x1b[31m.gguf"
    try:
        shutil.copy(written, odd)
    except (OSError, UnicodeError):
        pytest.skip("this disk has no such names")

    async def scene(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: str(odd) in labels(app))
        await pilot.pause()
        drawn(app).encode()
        assert "\x1b" not in drawn(app)
        await pilot.press("enter")

    assert play(scene, files=[odd]).chosen == [str(odd)]


def test_a_name_outlives_the_other_columns() -> None:
    entry = Entry("", ("a-name-of-24-characters.x", "400 B", "8.5", "10.0 GiB", "memory", "~12.5", "here", "/tmp"))
    for width, kept in (
        (40, {"name", "goes to", ""}),
        (60, {"name", "memory", "goes to", "token/s", ""}),
        (120, {*COLUMNS}),
    ):
        widths, _ = column_widths([entry], width)
        assert {name for name, cells in zip(COLUMNS, widths, strict=True) if cells} == kept
        assert widths[0] >= 20


# -- what is opened


@pytest.mark.parametrize("how", ["whole", "home", "here"])
def test_a_path_is_typed(how: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    monkeypatch.chdir(model.parent)
    typed = {"whole": str(model), "home": f"~/{model.name}", "here": f"  {model.name} "}[how]

    async def scene(pilot: Pilot[None], app: Host) -> None:
        await pilot.pause()
        await type_path(pilot, app, typed)
        await until(pilot, lambda: app.chosen)

    assert play(scene).chosen == [str(model)]


@pytest.mark.parametrize(
    ("typed", "said_of_it"),
    [
        ("{0}/no [red]where.gguf", "No file `"),
        ("~nobody-of-that-name/x.gguf", "No file `"),
        ("{0}", "is a folder"),
        ("{0}/text.gguf", "is not a sound GGUF: it does not begin with `GGUF`"),
        ("{0}/short.gguf", "is not a sound GGUF"),
        ("{0}/pipe.gguf", "No file `"),
        ("{0}/" + "x" * 5000, "No file `"),
    ],
)
def test_what_cannot_be_opened_is_told(typed: str, said_of_it: str, written: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("a text")
    (tmp_path / "short.gguf").write_bytes(written.read_bytes()[:5000])
    os.mkfifo(tmp_path / "pipe.gguf")
    text = typed.format(tmp_path)

    async def scene(pilot: Pilot[None], app: Host) -> None:
        await pilot.pause()
        await type_path(pilot, app, text)
        await until(pilot, lambda: app.models.query_one("#models-notice").has_class("-error"), 20)
        assert said_of_it in said(app)
        assert "phi4local" not in said(app).splitlines()[-1]  # a hint for the screen, not for a command line
        await until(pilot, is_idle(app), 10)
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        assert app.screen.query_one(Line).value == text  # to be mended
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.models)
        await pilot.press("escape")

    assert play(scene).chosen == [None]


def test_a_folder_that_was_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    with pytest.raises(NotFound, match="is gone"):
        acquiring.model_file("x.gguf", lambda _: None)


@pytest.mark.parametrize("answer", ["", "   ", None])
def test_no_path_is_no_wish(answer: str | None) -> None:
    async def scene(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: not app.models._asking and said(app))
        before = said(app)
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        app.screen.query_one(Line).value = answer or ""
        await pilot.press("escape" if answer is None else "enter")
        await until(pilot, lambda: app.screen is app.models)
        assert not app.models._work.is_busy
        assert said(app) == before
        await pilot.press("escape")

    assert play(scene).chosen == [None]


def test_a_file_that_was_found_under_another_screen_is_listed(model: Path) -> None:
    async def scene(pilot: Pilot[None], app: Host) -> None:
        from textual.screen import ModalScreen

        await pilot.pause()
        help_screen: ModalScreen[None] = ModalScreen()
        app.push_screen(help_screen)
        await until(pilot, lambda: app.screen is help_screen)
        app.models._look_at_file(str(model))
        await until(pilot, lambda: str(model) in labels(app))
        assert app.screen is help_screen
        assert app.chosen == []
        help_screen.dismiss(None)
        await until(pilot, lambda: app.screen is app.models)
        await until(pilot, lambda: rows(app).entry and rows(app).entry.label == str(model))  # type: ignore[union-attr]
        await pilot.press("enter")

    assert play(scene).chosen == [str(model)]
