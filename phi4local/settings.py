"""Where the tool keeps things."""

from __future__ import annotations

import os
from pathlib import Path


def home_folder() -> Path:
    """`PHI4LOCAL_HOME`, else the platform's folder for user data."""
    if home := os.environ.get("PHI4LOCAL_HOME"):
        return Path(os.path.expanduser(home))  # noqa: PTH111  Path.expanduser raises for an unknown user
    import platformdirs

    return Path(platformdirs.user_data_dir("phi4local", appauthor=False))


def models_folder() -> Path:
    """Builds and their manifests."""
    return home_folder() / "models"


def sources_folder() -> Path:
    """Official weights that the user wants to keep."""
    return home_folder() / "sources"


def state_folder() -> Path:
    """What the tool has learnt about this machine, and the engine's log."""
    return home_folder() / "state"


def history_file() -> Path:
    """The chats of the terminal."""
    return home_folder() / "history.sqlite3"


def nano_folder() -> Path:
    """The built-in checkpoint, in the layout of official weights."""
    return Path(__file__).parent / "data" / "phi4-nano"
