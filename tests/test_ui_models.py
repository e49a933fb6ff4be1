"""The screen of models: what it shows, getting builds from a loopback hub, stopping, removing, quitting."""

from __future__ import annotations

import functools
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from textual.pilot import Pilot
from textual.widgets import Button, Tabs

from phi4local.actions.fit import fit
from phi4local.files import take_lock
from phi4local.settings import nano_folder
from phi4local.store import build_path, builds, manifest_path
from quant.journal import lock_path, partial_path
from tests.hub import Hub
from tests.models_screen import Host, drawn, is_drawn, is_idle, play, rows, said, until
from tests.pulling import FILE, READY, Client, catalog, controls, sha256
from ui.build_list import BuildRow
from ui.builds import NANO
from ui.dialogs import Confirm
from ui.offers import FolderForm, Offer
from ui.work_panel import WorkPanel

BUILD = "nano:Q4_K_M"
SLOW = 400_000  # bytes per second: a build takes some seconds


async def open_nano(pilot: Pilot[None], app: Host) -> None:
    """The tab of the model `nano`, with its build under the cursor."""
    names = [model.name for model in app.models._models]
    app.models.query_one(Tabs).active = f"tab-{names.index('nano')}"
    await until(pilot, lambda: any(entry.label == BUILD for entry in rows(app)._entries))
    while rows(app).entry.label != BUILD:  # type: ignore[union-attr]
        moved = [entry.label for entry in rows(app)._entries].index(BUILD) - rows(app).cursor
        await pilot.press("down" if moved > 0 else "up")


async def get_nano(pilot: Pilot[None], app: Host) -> None:
    """Ask for it and say yes."""
    await open_nano(pilot, app)
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(app.screen, Offer))
    await pilot.press("enter")
    await until(pilot, lambda: app.screen is app.models)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a first question to the engine has measured, so that not every test has to."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHI4LOCAL_HOME", str(folder))
        fit("phi-4-mini:Q4_K_M")
    return folder / "state"


@pytest.fixture(autouse=True)
def state(measured: Path, home: Path) -> None:
    """A machine that has been measured."""
    shutil.copytree(measured, home / "state")


@pytest.fixture
def network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub, where this process looks for it."""
    for name, value in (("ENDPOINT", hub.endpoint), ("HF_HUB_DOWNLOAD_TIMEOUT", 1), ("HF_HUB_ETAG_TIMEOUT", 1)):
        monkeypatch.setattr(constants, name, value)
    return hub


@pytest.fixture
def verified(network: Hub, user: Client) -> Hub:
    """A catalogue that knows the published build to the byte, so that it is preferred."""
    file = network.root / READY / FILE
    known = catalog(revision=network.sha(READY), size=file.stat().st_size, sha256=sha256(file))
    (user.home / "catalog.toml").write_text(known)
    return network


# -- what is shown


def test_it_is_drawn_before_the_engine_has_answered_and_leads_to_the_best() -> None:
    async def scene(pilot: Pilot[None], app: Host) -> None:
        await pilot.pause()
        assert "asking the engine" in drawn(app)
        await until(pilot, lambda: "phi-4" in app.models._answers)
        await pilot.pause()
        best = rows(app).entry
        assert best
        assert "-best" in best.marks
        assert best.label.startswith("phi-4:")
        assert "Recommended: " in best.detail
        await pilot.press("escape")

    assert play(scene).chosen == [None]


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
def test_first_run_names_the_machine_the_price_and_the_second_choice(size: tuple[int, int]) -> None:
    async def scene(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: "phi-4-mini" in app.models._answers)
        await until(pilot, lambda: rows(app).entry and "-best" in rows(app).entry.marks)  # type: ignore[union-attr]
        assert rows(app).entry.label in said(app, "#models-welcome")  # type: ignore[union-attr]
        for text in ("Welcome to phi4local", " core", "to fetch", "Or with t", "esc"):
            await until(pilot, functools.partial(is_drawn, app, text), 5)

    play(scene, first_run=True, size=size)


def test_tabs_and_rows_answer_to_the_mouse() -> None:
    async def scene(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: "phi-4" in app.models._answers)
        await pilot.click("#tab-3")
        await until(pilot, lambda: "phi-4-mini" in app.models._answers)
        await until(pilot, lambda: len(rows(app)._entries) > 10)
        await pilot.pause()
        second = [row for row in app.models.query(BuildRow) if row.display and "-head" not in row.entry.marks][1]
        await pilot.click(second)
        assert rows(app).entry is second.entry
        await pilot.click("#models-act")
        await until(pilot, is_idle(app))
        assert "network" in said(app) or "reached" in said(app) or app.models.query_one("#models-notice.-error")

    play(scene)


def test_foreign_text_is_shown_as_text(home: Path) -> None:
    names = ("[red]x[/red]", "\x1b[31mescape", "[@click=app.quit]q[/]")
    for number, name in enumerate(names):
        path = build_path("hostile", f"Q{number}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF")
        source: dict[str, Any] = {"repo": "[bold]r\x1b]0;t\x07", "revision": None, "files": []}
        facts = {"name": name, "build": "[b]\u202eB", "format": "gguf", "bytes": 4, "sha256": "", "bpw": 4.5}
        more = {"types": {}, "repairs": [], "source": source, "fingerprint": "", "versions": {}, "created": ""}
        manifest_path(path).write_text(json.dumps(facts | more))

    async def scene(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: not app.models._asking and not app.models._questions)
        await pilot.pause()
        shown = drawn(app)
        assert "[red]x[/red]" in shown
        assert "\\x1b[31mescape" in shown
        assert "[bold]r" in shown
        assert not controls(shown)
        assert "\u202e" not in shown
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        assert not controls(drawn(app))
        await pilot.press("escape", "enter")

    chosen = play(scene).chosen
    assert len(chosen) == 1
    assert chosen[0] in {f"{name}:[b]\u202eB" for name in names}


# -- getting


@pytest.mark.parametrize("source", ["ready", "official"])
def test_a_pull_shows_how_far_it_is_and_ends_in_a_chat(source: str, request: pytest.FixtureRequest) -> None:
    hub: Hub = request.getfixturevalue("verified" if source == "ready" else "network")
    request.getfixturevalue("user")
    hub.rate = 4 * SLOW
    seen: set[str] = set()

    async def scene(pilot: Pilot[None], app: Host) -> None:
        await get_nano(pilot, app)
        while app.models._work.is_busy:
            seen.add(said(app, "#work-numbers"))
            await pilot.pause(0.02)
        assert f"{BUILD} is here" in said(app)
        await until(pilot, lambda: rows(app).entry and rows(app).entry.is_here)  # type: ignore[union-attr]
        await pilot.press("enter")

    assert play(scene).chosen == [BUILD]
    assert any(" MB of " in text and "/s" in text and "left" in text for text in seen), seen
    assert [build.manifest.source["from"] for build in builds()] == [source]


def test_a_pull_that_was_stopped_goes_on(verified: Hub) -> None:
    verified.rate = SLOW
    target = build_path("nano", "Q4_K_M")

    async def scene(pilot: Pilot[None], app: Host) -> None:
        await get_nano(pilot, app)
        await until(pilot, lambda: partial_path(target).exists() and partial_path(target).stat().st_size > SLOW)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, is_idle(app), 10)
        assert "What is done stays" in said(app)
        assert not lock_path(target).exists()
        await pilot.pause()
        assert "begun" in drawn(app)
        verified.rate = None
        verified.settle()
        here = partial_path(target).stat().st_size
        verified.log.ended.clear()
        await get_nano(pilot, app)
        await until(pilot, is_idle(app))
        verified.settle()
        sent = sum(request.sent_bytes for request in verified.log.ended if request.origin == "cdn")
        assert sent == (verified.root / READY / FILE).stat().st_size - here
        await pilot.press("enter")

    assert play(scene).chosen == [BUILD]


def test_the_other_source_can_be_taken(network: Hub, user: Client) -> None:
    async def scene(pilot: Pilot[None], app: Host) -> None:
        await open_nano(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: is_drawn(app, "because nobody has"))
        assert "--from" not in drawn(app)
        await pilot.press("o")
        await until(pilot, lambda: is_drawn(app, "a published file"))
        await pilot.press("y")
        await until(pilot, lambda: f"{BUILD} is here" in said(app))

    play(scene)
    assert [build.manifest.source["repo"] for build in builds()] == [READY]


def test_ctrl_c_stops_at_once(verified: Hub) -> None:
    verified.rate = SLOW

    async def scene(pilot: Pilot[None], app: Host) -> None:
        await get_nano(pilot, app)
        await until(pilot, lambda: "/s" in said(app, "#work-numbers"))
        await pilot.press("enter")  # one work at a time
        assert "Escape stops it" in said(app)
        await pilot.press("ctrl+c")
        await until(pilot, is_idle(app), 10)
        assert said(app).startswith("Stopped. ")
        assert app.models.query_one(WorkPanel).has_class("-idle")
        await pilot.press("escape")

    assert play(scene).chosen == [None]


def test_without_a_network_it_says_so_and_lives(verified: Hub) -> None:
    verified.close()

    async def scene(pilot: Pilot[None], app: Host) -> None:
        await open_nano(pilot, app)
        await pilot.press("enter")
        await until(pilot, is_idle(app), 60)
        assert app.models.query_one("#models-notice").has_class("-error")
        assert said(app)
        await pilot.press("down", "up", "escape")

    assert play(scene).chosen == [None]


def test_a_full_disk_is_told(verified: Hub) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def scene(pilot: Pilot[None], app: Host) -> None:
        await get_nano(pilot, app)
        await until(pilot, is_idle(app))
        assert "too full" in said(app)
        assert "Make room" in said(app)

    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        play(scene)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert builds() == []


# -- making and removing


def test_the_tiny_model_is_made_and_removed() -> None:
    async def make(pilot: Pilot[None], app: Host) -> None:
        await pilot.press("t")
        await until(pilot, lambda: f"{NANO} is here" in said(app))
        await until(pilot, lambda: rows(app).entry and rows(app).entry.label == NANO)  # type: ignore[union-attr]
        await pilot.pause()
        await pilot.click(next(row for row in app.models.query(BuildRow) if row.entry.label == NANO), times=2)

    assert play(make).chosen == [NANO]

    async def remove(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: rows(app).entry and rows(app).entry.is_here)  # type: ignore[union-attr]
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: "is gone" in said(app))

    async def refuse(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: rows(app).entry and rows(app).entry.is_here)  # type: ignore[union-attr]
        await pilot.press("delete")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press("y")
        await until(pilot, lambda: "Another process is at work" in said(app))

    async def keep(pilot: Pilot[None], app: Host) -> None:
        await until(pilot, lambda: rows(app).entry and rows(app).entry.is_here)  # type: ignore[union-attr]
        await pilot.press("d")
        assert "is in use" in said(app)

    play(keep, NANO)
    lock = take_lock(lock_path(builds()[0].path))
    assert lock
    with lock:
        play(refuse)
    assert [build.label for build in builds()] == [NANO]
    play(remove)
    assert builds() == []


def test_a_folder_is_made_into_a_build() -> None:
    async def scene(pilot: Pilot[None], app: Host) -> None:
        await pilot.press("q")
        await until(pilot, lambda: isinstance(app.screen, FolderForm))
        app.screen.query_one("Line").value = str(nano_folder())  # type: ignore[attr-defined]
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Offer))
        await until(pilot, lambda: "phi4-nano:Q4_K_M" in drawn(app))
        app.screen.query_one("#yes", Button).press()
        await until(pilot, lambda: "phi4-nano:Q4_K_M is here" in said(app))

    play(scene)
    assert [build.label for build in builds()] == ["phi4-nano:Q4_K_M"]


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    async def scene(pilot: Pilot[None], app: Host) -> None:
        await pilot.press("q")
        await until(pilot, lambda: isinstance(app.screen, FolderForm))
        app.screen.query_one("Line").value = str(tmp_path / "no [red]where")  # type: ignore[attr-defined]
        await pilot.press("enter")
        await until(pilot, lambda: app.models.query_one("#models-notice").has_class("-error"))
        await pilot.press("escape")

    assert play(scene).chosen == [None]


def test_a_bug_in_a_thread_is_loud() -> None:
    async def scene(pilot: Pilot[None], app: Host) -> None:
        app.models._begin("a bug", lambda _tell: 1 // 0, lambda _result: None)
        await until(pilot, is_idle(app))

    with pytest.raises(ZeroDivisionError):
        play(scene)


# -- quitting

_QUIT = """
import time
from textual.app import App
from phi4local.store import build_path
from quant.journal import partial_path
from ui.acquiring import look
from ui.models import ModelsScreen
class Quitter(App):
    def on_mount(self):
        screen = ModelsScreen()
        self.push_screen(screen)
        self.call_after_refresh(lambda: screen._pull(look("nano:Q4_K_M", None, lambda _: None).choice))
        self.set_interval(0.02, self.check)
    def check(self):
        part = partial_path(build_path("nano", "Q4_K_M"))
        if part.exists() and part.stat().st_size > 200_000:
            print(time.monotonic(), flush=True)
            self.exit()
Quitter().run(headless=True)
"""


def test_quitting_in_the_middle_is_quick_and_leaves_what_resumes(verified: Hub, user: Client) -> None:
    verified.rate = SLOW
    command = [sys.executable, "-c", _QUIT]
    done = subprocess.run(command, env=user.env, capture_output=True, text=True, timeout=60, check=True)
    seconds = time.monotonic() - float(done.stdout.split()[0])
    assert done.stderr == ""
    assert seconds < 2, seconds
    assert user.partial.exists()
    verified.rate = None
    assert json.loads(user.pull().stdout)["resumed_bytes"] >= 200_000
