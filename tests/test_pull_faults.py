"""What goes wrong on the way: what may pass is healed, and bytes that are not the published ones are never kept."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from quant.gguf import read_header
from quant.journal import Journal
from tests.hub import Fault, Hub
from tests.pulling import (
    BUILD,
    FILE,
    OFFICIAL,
    READY,
    Client,
    client,
    grown,
    kill,
    sha256,
    wait_for,
    walk,
)
from tests.running import json_of

SHARD = "model-00002-of-00002.safetensors"


@dataclass(frozen=True)
class Case:
    """A fault, or three in a row, and the way on which it is met."""

    kind: str
    origin: str = "cdn"
    match: str = ""
    after: int = 0
    value: Any = None
    source: str = "ready"
    times: int | None = 3

    def fault(self) -> Fault:
        return Fault(self.kind, self.origin, self.match, self.times, self.after, self.value)


@dataclass
class Outcome:
    """What became of a disturbed pull."""

    result: CompletedProcess[str]
    user: Client
    left: list[Fault]
    listed: list[str]


def _disturbed(root: Path, folder: Path, case: Case, environ: dict[str, str]) -> Outcome:
    with Hub(root) as hub:
        user = client(hub, folder / "home")
        user.environ = environ
        hub.faults.append(case.fault())
        result = user.pull(source=case.source)
        listed = user.listed() if any(user.home.rglob("*.manifest.json")) else []
        return Outcome(result, user, list(hub.faults), listed)


Outcomes = Mapping[str, Future[Outcome]]


@pytest.fixture(scope="module")
def outcomes(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """All cases, a few at a time: they wait more than they work."""
    header, folder = read_header(root / READY / FILE), tmp_path_factory.mktemp("outcomes")
    places = FLIPS | {"flip in the padding": header.data_offset - 1, "flip in the last byte": header.size_bytes - 1}
    cases = OTHERS | HEALED | {name: Case("flip", value=place, times=None) for name, place in places.items()}
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PHI4LOCAL_"))}
    pool = ThreadPoolExecutor(8)
    yield {name: pool.submit(_disturbed, root, folder / str(i), cases[name], environ) for i, name in enumerate(cases)}
    pool.shutdown(cancel_futures=True)


# -- faults that pass

STATUS = {"408": 408, "429": (429, {"Retry-After": "1"}), "500": 500, "502": 502, "503": 503, "504": 504}
_HUB = {"api": "/api/models/", "tree": "/tree/", "resolve": "/resolve/"}
HEALED = {
    **{f"cdn {name}": Case("status", value=value) for name, value in STATUS.items()},
    **{f"{at} {name}": Case("status", "hub", _HUB[at], value=STATUS[name]) for at in _HUB for name in ("408", "503")},
    **{f"{at} 429": Case("status", "hub", _HUB[at], value=STATUS["429"]) for at in ("api", "resolve")},
    **{f"{at} {kind}": Case(kind, "hub", _HUB[at], after=-1) for at in _HUB for kind in ("close", "stall")},
    "api reset": Case("reset", "hub", "/api/", after=-1),
    "tree cut in the middle": Case("cut", "hub", "/tree/", after=50),
    "cdn close": Case("close"),
    "cdn expired signature": Case("status", value=403),
    "cdn cut before the first byte": Case("cut"),
    "cdn cut in the header": Case("cut", after=30_000),
    "cdn cut in the middle": Case("cut", after=700_000),
    "cdn reset in the middle": Case("reset", after=700_000),
    "cdn stall before the first byte": Case("stall"),
    "cdn stall in the middle": Case("stall", after=500_000),
    "cdn short": Case("short", value=1000),
    "cdn long": Case("long", value=1000),
    "official cut": Case("cut", match="safetensors", after=900_000, source="official"),
    "official stall": Case("stall", match=SHARD, after=500_000, source="official"),
    "official 503": Case("status", match=SHARD, value=503, source="official"),
    "official expired signature": Case("status", match="safetensors", value=403, source="official"),
    "official small file 503": Case("status", "hub", "tokenizer.json", value=503, source="official"),
    "official small file cut": Case("cut", "hub", "resolve-cache", after=100, source="official"),
}


@pytest.mark.parametrize("name", HEALED)
def test_three_in_a_row_are_healed(name: str, outcomes: Outcomes, root: Path) -> None:
    outcome = outcomes[name].result()
    found = json_of(outcome.result)
    assert outcome.left == []
    assert found["sha256"] == sha256(outcome.user.target) == sha256(root / READY / FILE)
    assert outcome.listed == [BUILD]


@pytest.mark.parametrize(("source", "repository"), [("ready", READY), ("official", OFFICIAL)])
def test_a_link_that_drops_every_mebibyte(source: str, repository: str, root: Path, hub: Hub, user: Client) -> None:
    hub.drop_every = 1 << 20
    assert json_of(user.pull(source=source))["sha256"] == sha256(root / READY / FILE)
    large = sum(path.stat().st_size for path in (root / repository).iterdir() if path.stat().st_size > 1 << 20)
    assert hub.sent_bytes() <= 1.3 * large


@pytest.mark.parametrize(("origin", "match"), [("cdn", ""), ("hub", "/api/"), ("hub", "/resolve/")])
def test_a_wait_that_is_too_long_is_told(origin: str, match: str, hub: Hub, user: Client) -> None:
    hub.faults.append(Fault("status", origin, match, value=(429, {"Retry-After": "1234"})))
    result = user.pull(timeout=5)
    assert result.returncode == 4
    assert "1234" in result.stderr
    assert "hint:" in result.stderr


# -- wrong bytes

_RNG = random.Random(3)
FLIPS = {
    "flip in the magic": 1,
    "flip in the version": 4,
    "flip in the count of tensors": 15,
    "flip in the count of keys": 16,
    "flip in a key": 40,
    "flip in a token": 20_000,
    "flip in the padding": 0,
    "flip in the last byte": 0,
    **{f"flip at random {i}": _RNG.randrange(2_339_264) for i in range(4)},
}


@pytest.mark.parametrize("name", FLIPS)
def test_a_flipped_byte_is_refused(name: str, outcomes: Outcomes, root: Path) -> None:
    outcome = outcomes[name].result()
    check_wrong_bytes(outcome.result, FILE, sha256(root / READY / FILE))
    assert outcome.listed == []
    assert not outcome.user.partial.exists()
    assert not outcome.user.target.exists()


def check_wrong_bytes(result: CompletedProcess[str], name: str, expected: str) -> None:
    """The message says which file, what was expected and what came."""
    assert result.returncode == 5, result.stderr
    assert name in result.stderr
    assert expected in result.stderr
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", result.stderr))) == 2
    assert "hint:" in result.stderr


OTHERS = {
    "always short": Case("short", value=1000, times=None),
    "always long": Case("long", value=1000, times=None),
    "portal at the file": Case("html", times=None),
    "portal at the hub's file": Case("html", "hub", "/resolve/", times=None),
    "packed": Case("headers", value={"Content-Encoding": "gzip"}, times=None),
    "a length that is none": Case("headers", value={"Content-Length": "-5"}, times=None),
    "gone": Case("status", value=404, times=None),
    "nothing there": Case("status", value=204, times=None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_the_file_is_refused(name: str, outcomes: Outcomes) -> None:
    outcome = outcomes[name].result()
    assert outcome.result.returncode == 4, outcome.result.stderr
    assert FILE in outcome.result.stderr
    assert "hint:" in outcome.result.stderr
    assert "Traceback" not in outcome.result.stderr
    assert outcome.listed == []


@pytest.mark.parametrize("match", ["/revision/", "/tree/"])
def test_a_web_page_in_the_place_of_the_list(match: str, hub: Hub, user: Client) -> None:
    hub.faults.append(Fault("html", "hub", match, times=None))
    result = user.pull(timeout=5)
    assert result.returncode == 4
    assert "web page" in result.stderr
    assert user.listed() == []


# -- a resumed pull


@pytest.fixture
def half(hub: Hub, user: Client) -> Client:
    """A pull that was killed in the middle."""
    hub.rate = 4e6
    child = user.start()
    wait_for(grown(user.partial, 900_000))
    assert kill(child, hub)
    hub.rate = None
    return user


@pytest.mark.parametrize("kind", ["ignore_range", "wrong_range"])
def test_a_range_that_is_not_the_asked_one(kind: str, root: Path, hub: Hub, half: Client) -> None:
    hub.faults.append(Fault(kind, times=3))
    assert json_of(half.pull())["sha256"] == sha256(root / READY / FILE) == sha256(half.target)


def _journal(user: Client, identity: str) -> None:
    journal = Journal(user.target.with_name(FILE + ".journal"), identity)
    journal.note("begun", FILE)
    journal.close()


def _stale(user: Client, root: Path) -> None:
    _journal(user, "acme/another file")


def _lying(user: Client, root: Path) -> None:
    data = user.partial.read_bytes()
    user.partial.write_bytes(data[:400_000] + b"lies" + data[400_004:])


def _lying_header(user: Client, root: Path) -> None:
    user.partial.write_bytes(b"lies" + user.partial.read_bytes()[4:])


def _larger(user: Client, root: Path) -> None:
    user.partial.write_bytes(bytes((root / READY / FILE).stat().st_size + 1))


def _as_large(user: Client, root: Path) -> None:
    user.partial.write_bytes(bytes((root / READY / FILE).stat().st_size))


@pytest.mark.parametrize("disturb", [_stale, _lying, _lying_header, _larger, _as_large], ids=lambda f: f.__name__)
def test_a_partial_file_that_is_not_ours(disturb: Callable[[Client, Path], None], root: Path, half: Client) -> None:
    disturb(half, root)
    assert json_of(half.pull())["sha256"] == sha256(root / READY / FILE) == sha256(half.target)


def test_a_byte_that_was_flipped_before_the_kill(root: Path, hub: Hub, user: Client) -> None:
    hub.faults.append(Fault("flip", value=300_000))
    hub.rate = 4e6
    child = user.start()
    wait_for(grown(user.partial, 900_000))
    assert kill(child, hub)
    hub.rate = None
    assert json_of(user.pull())["sha256"] == sha256(root / READY / FILE) == sha256(user.target)


# -- official weights


@pytest.mark.parametrize("place", [5, 300, 500_000, 3_673_471])
def test_a_flipped_byte_in_a_shard(place: int, root: Path, hub: Hub, user: Client) -> None:
    hub.faults.append(Fault("flip", match=SHARD, value=place, times=None))
    result = user.pull(source="official")
    assert result.returncode == 5, result.stderr
    assert SHARD in result.stderr
    assert user.listed() == []
    hub.faults.clear()
    assert json_of(user.pull(source="official"))["sha256"] == sha256(root / READY / FILE) == sha256(user.target)
    if place > 1000:  # of a header that makes no sense the rest is not fetched
        check_wrong_bytes(result, SHARD, sha256(root / OFFICIAL / SHARD))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_flipped_byte_in_a_small_file(name: str, root: Path, hub: Hub, user: Client) -> None:
    """Of those the hub knows git's sha1."""
    hub.faults.append(Fault("flip", "hub", f"/{name}", value=100, times=None))
    result = user.pull(source="official")
    assert result.returncode == 5, result.stderr
    assert name in result.stderr
    assert len(set(re.findall(r"\b[0-9a-f]{40}\b", result.stderr))) == 2
    assert user.listed() == []
    hub.faults.clear()
    assert json_of(user.pull(source="official"))["sha256"] == sha256(root / READY / FILE)


def test_a_small_file_that_was_changed_here(root: Path, hub: Hub, user: Client) -> None:
    json_of(user.pull("--dry-run", source="official"))
    [path] = user.home.rglob("tokenizer.json")
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    assert json_of(user.pull(source="official"))["sha256"] == sha256(root / READY / FILE)


@pytest.mark.parametrize("source", ["ready", "official"])
def test_a_refused_pull_leaves_the_build_that_is_here(source: str, hub: Hub, user: Client) -> None:
    before = json_of(user.pull(source="official" if source == "ready" else "ready"))
    hub.faults.append(Fault("flip", match=SHARD if source == "official" else "", value=500_000, times=None))
    assert user.pull(source=source).returncode == 5
    assert user.listed() == [BUILD]
    assert json_of(user.run("show", BUILD, "--json"))["source"] == before["source"]


# -- main moves


@pytest.mark.parametrize("source", ["ready", "official"])
def test_one_commit_for_the_whole_pull(source: str, root: Path, hub: Hub, user: Client, tmp_path: Path) -> None:
    repository = READY if source == "ready" else OFFICIAL
    first, suffix = hub.sha(repository), ".gguf" if source == "ready" else "00001-of-00002.safetensors"
    newer = shutil.copytree(root / repository, tmp_path / "newer" / "phi4-nano")
    for path in walk(newer):
        path.write_bytes(path.read_bytes()[:-1] + b"\n")
    hub.rate = 3e6
    child = user.start(source)
    wait_for(lambda: any(path.stat().st_size > 300_000 for path in _arriving(user, suffix)))
    hub.publish(repository, newer)
    hub.rate = None
    assert child.wait(20) == 0
    assert sha256(user.target) == sha256(root / READY / FILE)
    resolved = {one.path.split("/")[4] for one in hub.requests if "/resolve/" in one.path}
    assert resolved == {first}
    assert first in user.run("show", BUILD, "--json").stdout


def _arriving(user: Client, suffix: str) -> list[Path]:
    return [path for path in walk(user.home) if path.name.removesuffix(".partial").endswith(suffix)]
