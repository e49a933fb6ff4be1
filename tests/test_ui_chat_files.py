"""Export and import in the screen of all chats: names, paths, what is replaced, and damaged files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.pilot import Pilot

from phi4local.errors import Phi4LocalError, UsageError
from phi4local.exchange import file_name, from_json
from phi4local.history import History
from phi4local.settings import history_file
from tests.listing import HOSTILE, Host, ask, play, until, write
from ui.chat_files import FORMATS, read_chat, target, write_chat
from ui.dialogs import Ask, Confirm, Line, Pick

MARKDOWN, JSON = FORMATS


@pytest.fixture
def history() -> Iterator[History]:
    with contextlib.closing(History(history_file())) as opened:
        yield opened


async def export(host: Host, pilot: Pilot[None], *choice: str) -> Line:
    """Go as far as the question for the path."""
    await pilot.press("e")
    await until(pilot, lambda: isinstance(host.screen, Pick))
    await pilot.press(*choice, "enter")
    await until(pilot, lambda: isinstance(host.screen, Ask) and host.screen.query(Line))
    return host.screen.query_one(Line)


def test_a_chat_goes_out_in_both_formats_and_comes_back(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    chat = ask(history, "Fourier/../series: [b]", "Question [red]", f"Answer {HOSTILE}", folder="Physics")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        line = await export(host, pilot)
        assert line.value == "Fourier series b.md"
        await pilot.press("enter")
        await until(pilot, lambda: Path("Fourier series b.md").exists())
        await export(host, pilot, "down")
        await write(pilot, "~/out.json")
        await until(pilot, lambda: (tmp_path / "out.json").exists())
        await pilot.press("i")
        await until(pilot, lambda: isinstance(host.screen, Ask))
        await write(pilot, "~/out.json")
        await until(pilot, lambda: host.shows("2 chats"))
        assert host.finder.place == (2, None)

    play(scene, history)
    assert f"Answer {HOSTILE}" in (tmp_path / "Fourier series b.md").read_text()
    assert json.loads((tmp_path / "out.json").read_text())["folder"] == "Physics"
    (about, messages), (again, copies) = history.tree(chat), history.tree(2)
    assert (about.title, about.folder) == (again.title, again.folder)
    assert [message.text for message in messages] == [message.text for message in copies]


def test_a_file_is_replaced_only_after_a_question(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask(history, "chat", "text")
    there = tmp_path / "chat.md"
    there.write_text("kept")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        for answer in ("enter", "y"):
            assert there.read_text() == "kept"
            await export(host, pilot)
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(host.screen, Confirm))
            assert host.shows("Replace `chat.md`?")
            await pilot.press(answer)
            await until(pilot, lambda: host.screen is host.chats)
        await until(pilot, lambda: there.read_text().startswith("# chat"))

    play(scene, history)
    assert [path.name for path in tmp_path.glob("*.md")] == ["chat.md"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [("nowhere/chat.md", "No folder"), ("", "No path was given"), ("x" * 300, "name too long"), ("/dev/null", "not a")],
)
def test_a_path_that_leads_nowhere_is_said(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ask(history, "chat", "text")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        line = await export(host, pilot)
        line.value = typed
        await pilot.press("enter")
        await until(pilot, lambda: host.screen is host.chats and said.casefold() in " ".join(host.lines()).casefold())

    play(scene, history)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x1b[31m not JSON", "The file is not JSON"),
        (b'{"phi4local_chat": 1, "messages": [{"id": "\\u001b[31m"}]}', "cannot be read"),
        (b'{"phi4local_chat": 9}', "is 9, not 1"),
        (None, "No file"),
    ],
)
def test_a_damaged_file_is_refused_in_the_screen(
    history: History, tmp_path: Path, data: bytes | None, said: str
) -> None:
    path = tmp_path / "[b]chat.json"
    if data is not None:
        path.write_bytes(data)
    ask(history, "kept", "a")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        await pilot.press("i")
        await until(pilot, lambda: isinstance(host.screen, Ask))
        host.screen.query_one(Line).value = str(path)
        await pilot.press("enter")
        await until(pilot, lambda: host.shows(said))
        assert host.shows("1 chat")

    play(scene, history)
    assert len(history.chats()) == 1


def test_a_full_disk_is_said_and_nothing_is_half_imported(history: History, tmp_path: Path) -> None:
    ask(history, "big", *(f"{number} " * 20_000 for number in range(20)))
    write_chat(history, 1, JSON, tmp_path / "big.json")

    async def scene(host: Host, pilot: Pilot[None]) -> None:
        pages = host.history._file._db.execute("PRAGMA page_count").fetchone()[0]
        host.history._file._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        await pilot.press("i")
        await until(pilot, lambda: isinstance(host.screen, Ask))
        host.screen.query_one(Line).value = str(tmp_path / "big.json")
        await pilot.press("enter")
        await until(pilot, lambda: host.shows("is too full"))
        assert host.shows("Make room")

    play(scene, history)
    assert [one.chat.title for one in history.chats()] == ["big"]


def test_a_chat_without_an_open_branch_is_written_from_its_newest(history: History, tmp_path: Path) -> None:
    chat = ask(history, "t", "said")
    history.open_at(chat, None)
    write_chat(history, chat, MARKDOWN, tmp_path / "a.md")
    assert "said" in (tmp_path / "a.md").read_text()
    empty = history.new_chat("empty").id
    write_chat(history, empty, MARKDOWN, tmp_path / "a.md")
    assert (tmp_path / "a.md").read_text().startswith("# empty")


def test_a_folder_takes_the_file_under_its_name(tmp_path: Path) -> None:
    assert target(f" {tmp_path} ", "chat.md") == tmp_path / "chat.md"
    assert target(str(tmp_path / "other"), "chat.md") == tmp_path / "other"
    (tmp_path / "chat.md").mkdir()
    with pytest.raises(UsageError, match="not a file"):
        target(str(tmp_path), "chat.md")


def test_what_cannot_be_written_or_read_is_said(history: History, tmp_path: Path) -> None:
    chat = ask(history, "t", "said")
    with pytest.raises(Phi4LocalError, match="cannot be written"):
        write_chat(history, chat, JSON, tmp_path / ("x" * 300))
    with pytest.raises(Phi4LocalError):
        read_chat(history, str(tmp_path / ("x" * 300)))
    with pytest.raises(Phi4LocalError, match="not a file"):
        read_chat(history, str(tmp_path))
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Fourier series", "Fourier series.md"),
        ("../../etc/passwd", "etc passwd.md"),
        ("C:\\x|y?*<z>", "C x y z.md"),
        ("-rf ~", "rf.md"),
        ("-:0", "0.md"),
        ("...", "chat.md"),
        ("", "chat.md"),
        ("NUL", "chat NUL.md"),
        ("com1", "chat com1.md"),
        ("日本語 हिन्दी e\u0301", "日本語 हिन्दी é.md"),
        ("a\x1b[31m\u202eb\nc", "a 31m b c.md"),
    ],
)
def test_a_title_makes_a_name_for_a_file(title: str, name: str) -> None:
    assert file_name(title, ".md") == name


@given(st.text(max_size=300))
def test_any_title_makes_a_name_that_a_file_system_takes(title: str) -> None:
    name = file_name(title, ".json")
    assert name == name.strip()
    assert len(name.encode()) <= 140
    assert not set(name) & set('/\\:*?"<>|\0\n')
    assert not name.startswith((".", "-"))
    assert Path(name).name == name


def test_json_of_the_screen_is_what_import_reads(history: History, tmp_path: Path) -> None:
    chat = ask(history, "t", "said \ud83d half")
    write_chat(history, chat, JSON, tmp_path / "t.json")
    assert from_json(history, (tmp_path / "t.json").read_bytes()).title == "t"
