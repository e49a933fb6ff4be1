"""Files that a message names with an `@`."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phi4local.mentions import completions, mentions

NAMES = st.text("aAbBß.- \"@~é一)'\t\x1b\u202e", min_size=1, max_size=5).filter(lambda name: name not in (".", ".."))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Some files as people have them."""
    folder = tmp_path / "work"
    for name in ("notes.txt", "Notes two.txt", "my notes.md", ".hidden", "src/main.py", "src/re@d.me", "old src/a.c"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
    return folder


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("", ['"my notes.md"', '"Notes two.txt"', "notes.txt", '"old src/', "src/"]),
        ("NOTES", ['"Notes two.txt"', "notes.txt", '"my notes.md"']),
        ("src", ["src/", '"old src/']),
        ("src/", ["src/main.py", '"src/re@d.me"']),
        ("src/A", ["src/main.py"]),
        ('"old src/', ['"old src/a.c"']),
        ('"notes.t', ['"notes.txt"']),
        (".", [".hidden", '"my notes.md"', '"Notes two.txt"', "notes.txt"]),
        ("./no", ['"./Notes two.txt"', "./notes.txt", '"./my notes.md"']),
        ("../w", ["../work/"]),
        ("absent/", []),
        ("notes.txt/", []),
        ("nul\0/", []),
        ("x" * 5000 + "/", []),
    ],
)
def test_what_can_follow_an_at(folder: Path, typed: str, expected: list[str]) -> None:
    assert completions(typed, folder) == expected


def test_home_and_absolute_paths(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert completions("~", tmp_path) == ["~/"]
    assert completions("~/s", tmp_path) == [
        "~/src/",
        '"~/my notes.md"',
        '"~/Notes two.txt"',
        "~/notes.txt",
        '"~/old src/',
    ]
    assert completions(f"{folder}/src/ma", tmp_path) == [f"{folder}/src/main.py"]
    assert mentions("see @~/notes.txt.", tmp_path) == [(4, 16, folder / "notes.txt")]
    assert mentions(f"@{folder}/.hidden", tmp_path)[0][2] == folder / ".hidden"


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(NAMES, st.booleans(), max_size=8), st.text("abB.", max_size=2))
@example({"~": True, "a b": False, 'a"': False}, "")
def test_a_completed_file_is_mentioned(names: dict[str, bool], typed: str) -> None:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name, is_folder in names.items():
            (folder / name).mkdir() if is_folder else (folder / name).write_text("text")
        found = completions(typed, folder)
        files = [one for one in found if not one.endswith("/")]
        for one in files:
            [(start, end, path)] = mentions(f"say @{one} again", folder)
            assert f"say @{one} again"[start:end] == f"@{one}"
            assert path == folder / one.strip('"')
        expected = {
            name
            for name in names
            if typed.casefold() in name.casefold()
            and name.startswith(".") <= typed.startswith(".")
            and not set(name) & set('"\t\x1b\u202e')
            and name != "~"
        }
        assert {one.strip('"').rstrip("/") for one in found} == expected
        order = [
            (not one.strip('"').casefold().startswith(typed.casefold()), one.strip('"/').casefold()) for one in found
        ]
        assert order == sorted(order)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("look at @notes.txt, please", ["@notes.txt"]),
        ("(@notes.txt) @notes.txt...", ["@notes.txt", "@notes.txt"]),
        ('compare @"my notes.md" with @src/main.py!', ['@"my notes.md"', "@src/main.py"]),
        ("在@notes.txt", ["@notes.txt"]),
        ("@notes.txt,@src/main.py", ["@notes.txt", "@src/main.py"]),
        ("mail me@notes.txt or a.b+c@src/main.py", []),
        ("@property\ndef f(): ...", []),
        ('@"my\nnotes.md"', []),
        ("@src @. @.. @/ @ @@ @nul\0 @\ud800", []),
        ("@" + "x" * 9999, []),
        ("@notes.txt/ @notes.txt/.", ["@notes.txt", "@notes.txt"]),
        ('@"notes.txt/"', []),
    ],
)
def test_mentions(folder: Path, text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end, _ in mentions(text, folder)] == expected


def test_a_decorator_is_a_mention_where_such_a_file_exists(folder: Path) -> None:
    (folder / "property").touch()
    assert mentions("@property\ndef", folder) == [(0, 9, folder / "property")]


def test_only_files_and_folders_are_offered(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).touch()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(tmp_path / "s"))
        assert completions("", tmp_path) == ["file", "link", "locked/"]
    assert mentions("@pipe @gone @s @\udcff", tmp_path) == [(15, 17, tmp_path / "\udcff")]
    (tmp_path / "locked").chmod(0o700)


def test_the_work_is_bounded(tmp_path: Path) -> None:
    for number in range(20_500):
        os.close(os.open(tmp_path / f"file {number}", os.O_CREAT))
    start = time.monotonic()
    assert len(completions("", tmp_path)) == 20
    assert completions("absent", tmp_path) == []
    for text in ("@x.,;" * 50_000, "@" * 250_000, '@"a b ' * 50_000, "@" + "x." * 100_000):
        assert mentions(text, tmp_path) == []
    assert time.monotonic() - start < 10
