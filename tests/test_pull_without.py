"""Pulls without a network and pulls without room: what is here goes on working, and what cannot be is told at once."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import shapes
from tests.checkpoints import write_checkpoint
from tests.hub import Hub
from tests.pulling import (
    BUILD,
    FILE,
    OFFICIAL,
    READY,
    Client,
    catalog,
    client,
    grown,
    sha256,
    wait_for,
    walk,
    witness,
    write_large,
)
from tests.running import json_of, make

# -- no network


@pytest.fixture
def here(root: Path, home: Path) -> Client:
    """A user who has pulled a build and left the hub."""
    with Hub(root) as hub:
        user = client(hub, home)
        json_of(user.pull())
    return user


def _closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


OFFLINE = {"HF_HUB_OFFLINE": "1"}
WORKS = [
    (["list", "--json"], OFFLINE),
    (["show", BUILD, "--json"], OFFLINE),
    (["verify", "--json"], OFFLINE),
    (["chat", BUILD, "-p", "What is 17 + 25?", "--json"], OFFLINE),
    (["pull", BUILD, "--json"], OFFLINE),
    (["pull", BUILD, "--offline", "--json"], {}),
    (["pull", BUILD, "--json"], {}),
    (["chat", BUILD, "-p", "What is 17 + 25?", "--json"], {}),
]


def test_what_is_here_works_without_a_socket(here: Client, tmp_path: Path) -> None:
    for number, (arguments, env) in enumerate(WORKS):
        seen = witness(tmp_path / f"witness{number}")
        found = json_of(here.run(*arguments, **env, **seen.env, HF_ENDPOINT=_closed_port()))
        assert found
        assert seen.sockets == [], arguments
        if arguments[0] == "chat":
            assert found["text"].strip().endswith("42.")


MISSING = [
    (["nano:Q8_0"], OFFLINE, False),
    (["nano:Q8_0", "--offline"], {}, False),
    (["phi-4", "--offline"], {}, False),
    (["phi-4"], OFFLINE, False),
    (["nano:Q4_K_M", "--from", "official", "--offline"], {}, False),
    (["nano:Q8_0", "--dry-run", "--offline"], {}, False),
    (["nano:Q8_0", "--dry-run"], OFFLINE, False),
    (["nano:Q8_0"], {}, True),
    (["nano"], {}, True),
    (["nano:Q8_0", "--dry-run"], {}, True),
    (["nano:Q4_K_M", "--from", "official"], {}, True),
]


@pytest.mark.parametrize(("arguments", "env", "may_ask"), MISSING, ids=lambda value: str(value))
def test_what_is_not_here_is_told_at_once(
    arguments: list[str], env: dict[str, str], may_ask: bool, here: Client, tmp_path: Path
) -> None:
    """In less than a second; on a busy machine, which starts Python slowly, in less than two more."""
    seen, start = witness(tmp_path / "witness"), time.monotonic()
    result = here.run("pull", *arguments, **env, **seen.env, HF_ENDPOINT=_closed_port())
    assert time.monotonic() - start < 3
    assert result.returncode == 4, result.stderr
    assert "hint: " in result.stderr
    assert "phi4local" in result.stderr.partition("hint: ")[2]
    assert may_ask or seen.sockets == []
    assert here.listed() == [BUILD]


@pytest.mark.parametrize("source", ["ready", "official"])
def test_the_hub_leaves_in_the_middle(source: str, root: Path, home: Path) -> None:
    """What has arrived is not lost."""
    with Hub(root, rate=2e6) as hub:
        user = client(hub, home)
        child = user.start(source)
        wait_for(lambda: sum(path.stat().st_size for path in _arriving(user, source)) > 1_500_000)
        child.kill()
        child.wait()
    with Hub(root) as hub:
        user = client(hub, home)
        assert json_of(user.pull(source=source))["sha256"] == sha256(root / READY / FILE)
        large = sum(path.stat().st_size for path in (root / OFFICIAL).glob("*.safetensors"))
        assert hub.sent_bytes() <= (large if source == "official" else (root / READY / FILE).stat().st_size) - 700_000


def _arriving(user: Client, source: str) -> list[Path]:
    return [path for path in walk(user.home) if path.suffix == (".partial" if source == "ready" else ".safetensors")]


# -- no room


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 MB ready-made, and 28 MB of official weights in 8 shards."""
    folder = tmp_path_factory.mktemp("large")
    write_large(folder / READY / FILE)
    shape = dataclasses.replace(shapes.PHI4_TINY, hidden=512, intermediate=1536, layers=4, heads=8, vocab=864)
    write_checkpoint(folder / OFFICIAL, shape, shards=8)
    return folder


Disk = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a file system of so many MB."""
    folder = tmp_path / "disk"

    def mount(megabytes: int) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system needs root")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave no room."""
    path = folder / "other"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return path


def check_full(code: int, stderr: str) -> None:
    """What is needed and what is free."""
    assert code == 6, stderr
    assert "needed" in stderr
    assert "free" in stderr
    assert "hint: " in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(("source", "megabytes"), [("ready", 29), ("official", 12)])
def test_a_disk_that_is_too_small_is_told_before_the_first_byte(
    source: str, megabytes: int, large: Path, disk: Disk
) -> None:
    with Hub(large) as hub:
        user = client(hub, disk(megabytes) / "home", catalog(shape=large / OFFICIAL))
        result = user.pull(source=source)
        check_full(result.returncode, result.stderr)
        headers = sum(min(path.stat().st_size, 1 << 16) for path in (large / OFFICIAL).glob("*.safetensors"))
        assert sum(path.stat().st_size for path in walk(user.home)) < headers + 300_000
        assert user.listed() == []


@pytest.mark.parametrize("source", ["ready", "official"])
def test_a_disk_that_is_full_in_the_middle(source: str, large: Path, disk: Disk, tmp_path: Path) -> None:
    expected = make(large / OFFICIAL, "Q4_K_M", tmp_path / "own.gguf").sha256
    with Hub(large, rate=8e6) as hub:
        folder = disk(42)
        user = client(hub, folder / "home", catalog(shape=large / OFFICIAL))
        child = user.start(source)
        wait_for(grown(user.partial, 4_000_000) if source == "ready" else lambda: _has_read_a_shard(user))
        other = fill(folder)
        assert child.wait(20) == 6
        assert user.listed() == []
        result = user.pull(source=source)
        check_full(result.returncode, result.stderr)
        assert user.listed() == []
        other.unlink()
        hub.rate = None
        found = json_of(user.pull(source=source))
    assert found["resumed_bytes"] > 0
    assert found["sha256"] == (sha256(large / READY / FILE) if source == "ready" else expected) == sha256(user.target)
    assert json_of(user.run("verify", "--json"))["damaged"] == []


def _has_read_a_shard(user: Client) -> bool:
    journal = user.target.with_name(FILE + ".journal")
    return journal.exists() and '"file"' in journal.read_text()


def test_a_limit_on_file_sizes_is_a_full_disk(large: Path, home: Path) -> None:
    with Hub(large) as hub:
        user = client(hub, home)
        pull = [sys.executable, "-m", "phi4local", "pull", BUILD, "--from", "ready"]
        result = subprocess.run(
            ["bash", "-c", 'ulimit -f 10000; exec "$@"', "bash", *pull],
            env=user.env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    check_full(result.returncode, result.stderr)
    assert json.loads(user.run("list", "--json").stdout) == []
