"""Every test has a home of its own, and no setting of the machine reaches it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import shapes
from tests.checkpoints import write_checkpoint


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
