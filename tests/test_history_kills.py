"""The chats' file under what happens to files: kills, a full disk, no permission, damage, another program.

PHI4LOCAL_KILLS sets how often the child is killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phi4local.chats import Message
from phi4local.errors import FormatError, InsufficientResources, Phi4LocalError, UsageError
from phi4local.exchange import to_json
from phi4local.history import History
from tests.test_history import check, talk

KILLS = int(os.environ.get("PHI4LOCAL_KILLS", "20"))

TALKS = """
import sys, itertools
from pathlib import Path
from phi4local.history import History
history = History(Path(sys.argv[1]))
chat = history.new_chat("killed")
last = None
for number in itertools.count():
    asked = history.add(chat.id, last, "user", f"question {number}")
    print("said", asked.id, asked.text, flush=True)
    answer = history.begin_answer(chat.id, asked.id)
    for words in range(1, 6):
        history.grow(answer.id, "word " * words)
        print("grown", answer.id, words, flush=True)
    history.finish(answer.id, f"answer {number}", state="complete")
    print("said", answer.id, f"answer {number}", flush=True)
    last = answer.id
"""


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite3"
    moments = random.Random(5)
    said: dict[int, str] = {}
    cut = 0
    for _ in range(KILLS):
        lines = _killed_after(path, moments.uniform(0, 0.4))
        said |= {number: text for kind, number, text in lines if kind == "said"}
        check(path)
        with contextlib.closing(History(path)) as history:
            kept = {one.id: one for line in history.chats() for one in history.tree(line.chat.id)[1]}
        assert {number: kept[number].text for number in said} == said
        assert all(kept[number].state == "complete" for number in said)
        cut += _check_cut(kept, lines)
    assert len(said) > KILLS
    assert cut  # some of the kills fell into an answer


def _killed_after(path: Path, seconds: float) -> list[tuple[str, int, str]]:
    """What a child acknowledged before it was killed, some time after its first words."""
    command = [sys.executable, "-c", TALKS, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        first = child.stdout.readline()
        threading.Timer(seconds, child.kill).start()
        lines = [first, *child.stdout]
    parts = [line.rstrip("\n").split(" ", 2) for line in lines if line.endswith("\n")]
    return [(kind, int(number), text) for kind, number, text in parts]


def _check_cut(kept: dict[int, Any], lines: list[tuple[str, int, str]]) -> int:
    """Whether the last acknowledged step was within an answer, which then is there as far as it was acknowledged."""
    kind, number, words = lines[-1]
    if kind != "grown":
        return 0
    answer = kept[number]
    if answer.state == "complete":  # it was finished, and killed before it could say so
        return 0
    assert answer.state == "partial"
    assert answer.text.count("word") in (int(words), int(words) + 1)
    return 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "h.sqlite3"
    with contextlib.closing(History(path)) as history:
        chat, said = talk(history, "kept")
        last = _talk_until_full(history, said[0])
        assert history.branch(last.id)[-1] == last
        assert [hit.message for hit in history.search("kept")] == [said[0].id]
    check(path)
    with contextlib.closing(History(path)) as history:
        assert history.chat(chat.id).leaf == last.id
        _fill(small_disk)
        last = _talk_until_full(history, last)
        (small_disk / "other").unlink()
        history.add(chat.id, last.id, "user", "again")
    check(path)


def _talk_until_full(history: History, last: Message) -> Message:
    """What was acknowledged last before there was no room."""
    try:
        while True:
            last = history.add(last.chat, last.id, "user", "x" * 50_000)
    except InsufficientResources as error:
        assert re.search(r"needed, .* free", error.message)
    return last


def test_no_room_for_the_file_itself(small_disk: Path) -> None:
    _fill(small_disk)
    with pytest.raises(InsufficientResources, match="free"):
        History(small_disk / "new" / "h.sqlite3")
    (small_disk / "other").unlink()
    History(small_disk / "new" / "h.sqlite3").close()


def _fill(folder: Path) -> None:
    with (folder / "other").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_disk_that_is_read_only(small_disk: Path) -> None:
    path = small_disk / "h.sqlite3"
    with contextlib.closing(History(path)) as history:
        talk(history, "kept")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for target in (path, small_disk / "other.sqlite3", small_disk / "folder" / "h.sqlite3"):
        with pytest.raises(Phi4LocalError, match="cannot be written") as caught:
            History(target)
        assert "PHI4LOCAL_HOME" in caught.value.hint


def test_without_permission(tmp_path: Path) -> None:
    """Root may write everywhere, so this is asked by somebody else."""
    if os.getuid():
        pytest.skip("needs root to become somebody else")
    path = tmp_path / "h.sqlite3"
    History(path).close()
    path.chmod(0o444)
    code = (
        "import os, sys; from pathlib import Path; from phi4local.history import History; "
        "from phi4local.errors import Phi4LocalError\n"
        "import phi4local.conversation, shutil, sqlite3\n"
        "os.setuid(65534)\n"
        "try: History(Path(sys.argv[1]))\n"
        "except Phi4LocalError as error: print(error.message)"
    )
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if folder.stat().st_uid == 0 and folder.name.startswith(("pytest", tmp_path.name)):
            folder.chmod(0o755)
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert "cannot be written" in result.stdout, result.stderr


def _sample(folder: Path) -> Path:
    path = folder / "sample.sqlite3"
    with contextlib.closing(History(path)) as history:
        for _ in range(5):
            talk(history, *(f"some words {number} " * 20 for number in range(10)))
    return path


def _use(path: Path) -> None:
    """Everything that reads, and some of what writes."""
    with contextlib.closing(History(path)) as history:
        for line in history.chats():
            to_json(history, line.chat.id)
            if line.chat.leaf:
                history.branch(line.chat.leaf)
        history.search("some w")
        chat, _ = talk(history, "new", "words")
        history.delete_chat(chat.id)


def test_damaged_anywhere(tmp_path: Path) -> None:
    """Each damage is survived or told in our words; nothing else comes out."""
    data = _sample(tmp_path).read_bytes()
    path = tmp_path / "h.sqlite3"
    dice = random.Random(3)
    told = 0
    for _ in range(300):
        damaged = bytearray(data)
        start = dice.choice([0, dice.randrange(len(data) // 4096) * 4096, dice.randrange(len(data))])
        for _ in range(dice.choice([1, 8, 64])):
            damaged[min(len(data) - 1, start + dice.randrange(200))] = dice.randrange(256)
        told += _is_told(path, bytes(damaged))
    assert told > 30


@pytest.mark.parametrize("size", [15, 99, 100, 4095, 4096, 10_000, -4096])
def test_cut_short(tmp_path: Path, size: int) -> None:
    data = _sample(tmp_path).read_bytes()
    assert _is_told(tmp_path / "h.sqlite3", data[:size])


def _is_told(path: Path, data: bytes) -> bool:
    for old in path.parent.glob("h.sqlite3*"):
        old.unlink()
    path.write_bytes(data)
    try:
        _use(path)
    except Phi4LocalError as error:
        if isinstance(error, FormatError):
            assert str(path) in error.message
            assert error.hint
        return True
    return False


def test_a_newer_version(tmp_path: Path) -> None:
    path = _sample(tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(FormatError, match="newer") as caught:
        History(path)
    assert "Update" in caught.value.hint
    assert path.read_bytes() == before


def test_what_is_no_history_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE chat (id)")
    (tmp_path / "text").write_text("my notes, which are long enough to be taken for a header of a database " * 9)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("other.sqlite3", "text", "folder", "pipe"):
        with pytest.raises(FormatError, match=name):
            History(tmp_path / name)


def test_another_holds_it_too_long(tmp_path: Path) -> None:
    path = _sample(tmp_path)
    with contextlib.closing(History(path)) as history, contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert len(history.chats()) == 5
        before = time.monotonic()
        with pytest.raises(UsageError, match="held"):
            history.new_chat("x")
        assert 4 < time.monotonic() - before < 10
        other.rollback()
        history.new_chat("x")


def test_several_processes_and_threads(tmp_path: Path) -> None:
    """All of them begin at once, with the file not yet there."""
    path = tmp_path / "h.sqlite3"
    code = (
        "import sys\nfrom pathlib import Path\nfrom phi4local.history import History\n"
        "history = History(Path(sys.argv[1]))\nchat = history.new_chat('p')\nlast = None\n"
        "for number in range(40): last = history.add(chat.id, last, 'user', 'shared').id"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, path]) for _ in range(4)]
    with contextlib.closing(History(path)) as history:
        threads = [threading.Thread(target=talk, args=(history, *["shared"] * 40)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [child.wait() for child in children] == [0] * 4
        assert [line.messages for line in history.chats()] == [40] * 7
        assert len(history.search("shared", limit=1000)) == 280
    check(path)
