"""Every test has a home of its own, and no setting of the machine reaches it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import shapes
from tests.checkpoints import write_checkpoint
from tests.hub import Hub
from tests.pulling import Client, client, publish_nano


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PHI4LOCAL_HOME; variables that change our output or the Hub client's are gone."""
    for name in list(os.environ):
        if name.startswith(("PHI4LOCAL_", "HF_")) or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    monkeypatch.setenv("PHI4LOCAL_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Phi-4-shaped checkpoint of the first release, two shards, random weights. Not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "phi-4-tiny", shapes.PHI4_RELEASE_TINY)


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mini-shaped checkpoint: longrope, partial rotary, tied. Not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("mini") / "phi-4-mini-tiny", shapes.MINI_TINY)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a hub holds: the built-in checkpoint and a GGUF of it. Not to be changed."""
    return publish_nano(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(root: Path) -> Iterator[Hub]:
    """A hub on loopback that misbehaves on command."""
    with Hub(root) as running:
        yield running


@pytest.fixture
def user(hub: Hub, home: Path) -> Client:
    """Somebody who runs the command line against that hub."""
    return client(hub, home)
