"""A pull that is killed at any moment: nothing half-done is listed, little is sent twice, and in the end it is whole.

PHI4LOCAL_KILLS sets how often each is killed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from phi4local.store import builds
from quant.gguf import read_header
from quant.journal import Journal
from quant.mend import VERSION
from tests import shapes
from tests.checkpoints import write_checkpoint
from tests.hub import Hub
from tests.pulling import (
    FILE,
    MIB,
    OFFICIAL,
    READY,
    Client,
    catalog,
    client,
    grown,
    kill,
    sha256,
    wait_for,
    walk,
    write_flawed,
    write_large,
)
from tests.running import json_of, make

KILLS = int(os.environ.get("PHI4LOCAL_KILLS", "20"))
FLAWED = "acme/flawed-gguf"
Arrived = Callable[[Client], int]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 MB ready-made, the same with a header that grows by its repair, and 28 MB of official weights in 8 shards."""
    folder = tmp_path_factory.mktemp("hub")
    write_large(folder / READY / FILE)
    (folder / FLAWED).mkdir()
    write_flawed(folder / READY / FILE, folder / FLAWED / FILE, template=None)
    shape = dataclasses.replace(shapes.PHI4_TINY, hidden=512, intermediate=1536, layers=4, heads=8, vocab=864)
    write_checkpoint(folder / OFFICIAL, shape, shards=8)
    return folder


@dataclass
class Killing:
    """What happened: kills that met a running pull, and how many bytes each made the hub send in vain."""

    landed: int
    wasted: list[int]


def kill_often(user: Client, hub: Hub, source: str, arrived: Arrived, size: int) -> Killing:
    """Kill pulls at random moments, most of them while bytes arrive."""
    moments = random.Random(5)
    result = Killing(0, [])
    hub.rate = 15e6
    pace = 1.6 * size / hub.rate / KILLS
    for _ in range(KILLS):
        before, sent = arrived(user), hub.sent_bytes()
        child = user.start(source)
        if moments.random() < 0.9:
            _wait_for_progress(user, child, arrived, before)
        time.sleep(moments.uniform(0, pace))
        result.landed += kill(child, hub)
        result.wasted.append(hub.sent_bytes() - sent - (arrived(user) - before))
        check_listed(user)
    hub.rate = None
    return result


def _wait_for_progress(user: Client, child: object, arrived: Arrived, before: int) -> None:
    until = time.monotonic() + 3
    while arrived(user) <= before and child.poll() is None and time.monotonic() < until:  # type: ignore[attr-defined]
        time.sleep(0.003)


def check_listed(user: Client) -> None:
    """What is listed is whole."""
    for build in builds():
        assert build.path.stat().st_size == build.manifest.bytes
        assert sha256(build.path) == build.manifest.sha256
        read_header(build.path)


def _length(user: Client) -> int:
    """How much of a ready-made file is here."""
    path = user.partial if user.partial.exists() else user.target
    return path.stat().st_size if path.exists() else 0


def _shards(root: Path) -> Arrived:
    """How much of the official weights is here, or has been and is quantized."""
    sizes = {path.name: path.stat().st_size for path in (root / OFFICIAL).glob("*.safetensors")}

    def arrived(user: Client) -> int:
        if user.target.exists():
            return sum(sizes.values())
        journal = user.target.with_name(FILE + ".journal")
        lines = journal.read_text(errors="replace").splitlines()[1:] if journal.exists() else []
        done = {fact.get("file") for fact in map(_fact, lines)}
        found = {path.name: grown_bytes(path) for path in user.target.parent.glob("*.source/*/*/*.safetensors")}
        return sum(size if name in done else found.get(name, 0) for name, size in sizes.items())

    return arrived


def grown_bytes(path: Path) -> int:
    """The size of a file that may be dropped at this moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _fact(line: str) -> dict[str, str]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}


def check_end(user: Client, hub: Hub, killing: Killing, size: int) -> None:
    """After all: little was sent twice, nothing is left over, the build is listed and sound."""
    assert killing.landed >= KILLS // 2, killing
    assert max(killing.wasted) <= MIB, killing
    assert hub.sent_bytes() <= 1.05 * size + MIB * KILLS
    assert {path.name for path in walk(user.home / "models")} == {FILE, FILE + ".manifest.json"}
    assert user.listed() == ["nano:Q4_K_M"]
    assert json_of(user.run("verify", "--json"))["damaged"] == []


@pytest.mark.slow
def test_killed_while_a_ready_made_arrives(root: Path, hub: Hub, home: Path) -> None:
    published = root / READY / FILE
    user, size = client(hub, home), published.stat().st_size
    killing = kill_often(user, hub, "ready", _length, size)
    assert json_of(user.pull())["sha256"] == sha256(published) == sha256(user.target)
    check_end(user, hub, killing, size)


@pytest.mark.slow
def test_killed_while_a_flawed_one_arrives(root: Path, hub: Hub, home: Path) -> None:
    published = root / FLAWED / FILE
    user, size = client(hub, home, catalog(repository=FLAWED)), published.stat().st_size
    killing = kill_often(user, hub, "ready", _length, size)
    found = json_of(user.pull())
    before, after = read_header(published), read_header(user.target)
    assert after.data_offset > before.data_offset
    assert [repair["key"] for repair in found["repairs"]]
    assert found["source"]["files"][0]["sha256"] == sha256(published)
    assert user.target.read_bytes()[after.data_offset :] == published.read_bytes()[before.data_offset :]
    check_end(user, hub, killing, size)


@pytest.mark.slow
def test_killed_while_official_weights_arrive(root: Path, hub: Hub, home: Path, tmp_path: Path) -> None:
    undisturbed = make(root / OFFICIAL, "Q4_K_M", tmp_path / "own.gguf").sha256
    size = sum(path.stat().st_size for path in (root / OFFICIAL).iterdir())
    user = client(hub, home, catalog(shape=root / OFFICIAL))
    killing = kill_often(user, hub, "official", _shards(root), size)
    assert json_of(user.pull(source="official"))["sha256"] == undisturbed == sha256(user.target)
    check_end(user, hub, killing, size)


@pytest.mark.parametrize("repository", [READY, FLAWED], ids=["sound", "flawed"])
def test_a_killed_pull_goes_on(repository: str, root: Path, hub: Hub, home: Path) -> None:
    user = client(hub, home, catalog(repository=repository))
    hub.rate = 20e6
    child = user.start()
    wait_for(grown(user.partial, 12_000_000))
    assert kill(child, hub)
    assert user.listed() == []
    hub.rate = None
    found = json_of(user.pull())
    assert found["resumed_bytes"] >= 11_900_000
    assert found["downloaded_bytes"] + found["resumed_bytes"] == (root / repository / FILE).stat().st_size
    assert json_of(user.run("verify", "--json"))["damaged"] == []


def test_the_power_fails_before_the_last_bytes_are_on_the_disk(root: Path, hub: Hub, home: Path) -> None:
    """A file of the right length whose end was never written: its hash tells, and it is fetched again."""
    user = client(hub, home)
    hub.rate = 20e6
    child = user.start()
    wait_for(grown(user.partial, 8_000_000))
    assert kill(child, hub)
    hub.rate = None
    with user.partial.open("r+b") as file:
        file.truncate(6_000_000)
        file.truncate(9_000_000)
    assert json_of(user.pull())["sha256"] == sha256(root / READY / FILE) == sha256(user.target)


@pytest.mark.parametrize("lost", [".journal", ".partial"])
@pytest.mark.parametrize("repository", [READY, FLAWED], ids=["sound", "flawed"])
def test_a_lost_piece_costs_time_only(lost: str, repository: str, root: Path, hub: Hub, home: Path) -> None:
    user = client(hub, home, catalog(repository=repository))
    hub.rate = 20e6
    child = user.start()
    wait_for(grown(user.partial, 5_000_000))
    assert kill(child, hub)
    hub.rate = None
    user.target.with_name(FILE + lost).unlink()
    found = json_of(user.pull())
    assert found["source"]["files"][0]["sha256"] == sha256(root / repository / FILE)
    assert json_of(user.run("verify", "--json"))["damaged"] == []


def test_killed_when_only_the_name_was_missing(root: Path, hub: Hub, home: Path) -> None:
    """Mended and noted, and then the end: the repaired header over the published one is written again."""
    user = client(hub, home, catalog(repository=FLAWED))
    expected = json_of(user.pull())
    published, done = (root / FLAWED / FILE).read_bytes(), user.target.read_bytes()
    header = read_header(root / FLAWED / FILE)
    shift = len(done) - len(published)
    user.target.rename(user.partial)
    user.target.with_name(FILE + ".header").write_bytes(published[: header.data_offset])
    file = expected["source"]["files"][0]
    identity = f"{FLAWED}/{FILE} {file['sha256']} {file['bytes']} {VERSION}"
    journal = Journal(user.target.with_name(FILE + ".journal"), identity)
    for name, value in (("begun", FILE), ("shift", f"{header.data_offset} {shift}"), ("whole", file["sha256"])):
        journal.note(name, value)
    journal.close()
    with user.partial.open("r+b") as out:
        out.write(b"torn in the middle of the header" * 50)
    sent = hub.sent_bytes()
    again = json_of(user.pull())
    assert again["sha256"] == expected["sha256"] == sha256(user.target)
    assert hub.sent_bytes() == sent
    assert {path.name for path in walk(user.home / "models")} == {FILE, FILE + ".manifest.json"}
