"""The folder of kept states stays small, and nothing else in it is touched."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from phi4local.backends.states import LIMIT_BYTES, keep, room_bytes, state_path


def put(folder: Path, name: str, size: int, used: int) -> Path:
    path = state_path(folder, name)
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


def test_names_are_hashes(tmp_path: Path) -> None:
    names = [state_path(tmp_path, name).name for name in ("a", "b", "../x", "\udc80", "a" * 1000)]
    assert len(set(names)) == 5
    assert {len(name) for name in names} == {70}
    assert all(state_path(tmp_path, name).parent == tmp_path for name in ("../x", "/x"))


def test_those_longest_unused_go_first(tmp_path: Path) -> None:
    paths = {name: put(tmp_path, name, 100, used) for used, name in enumerate("cadbe")}
    assert keep(tmp_path, "c", 1000) == 500
    assert all(path.exists() for path in paths.values())
    assert keep(tmp_path, "c", 300) == 300  # the oldest, but used just now
    assert {name for name, path in paths.items() if path.exists()} == {"b", "e", "c"}
    assert keep(tmp_path, "gone", 200) == 200
    assert {name for name, path in paths.items() if path.exists()} == {"e", "c"}
    assert keep(tmp_path, "e", 99) == 0


def test_a_clock_that_was_wrong(tmp_path: Path) -> None:
    later = put(tmp_path, "later", 100, int(time.time()) + 10**6)
    now = put(tmp_path, "now", 100, 0)
    assert keep(tmp_path, "now", 100) == 100
    assert (now.exists(), later.exists()) == (True, False)


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    name = state_path(tmp_path, "one").name
    others = [
        tmp_path / other for other in ("notes.txt", "x.state", f"{name}.old", f".{name}", ".0123456789abcdef.tmp")
    ]
    for path in others:
        path.write_bytes(bytes(1000))
    folder, link = state_path(tmp_path, "folder"), state_path(tmp_path, "link")
    folder.mkdir()
    link.symlink_to(others[0])
    assert keep(tmp_path, "one", 0) == 0
    assert all(path.exists() for path in (*others, folder, link))


def test_what_a_killed_program_left_goes_after_an_hour(tmp_path: Path) -> None:
    old, young = tmp_path / ".0123456789abcdef.tmp", tmp_path / ".0123456789abcdee.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    keep(tmp_path, "one")
    assert (old.exists(), young.exists()) == (False, True)


def test_never_more_than_a_tenth_of_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = tmp_path / "not" / "here"
    assert 0 < room_bytes(absent) <= LIMIT_BYTES
    assert keep(absent, "one") == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 2500))
    assert room_bytes(tmp_path) == 250
    for used, name in enumerate("abc"):
        put(tmp_path, name, 100, used)
    assert keep(tmp_path, "c") == 200
