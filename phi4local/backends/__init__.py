"""What runs models. `open_engine` is the way in; the runtimes are imported only when one is opened."""

from __future__ import annotations

from pathlib import Path

from phi4local.engine import Engine


def open_engine(
    path: Path,
    *,
    state_folder: Path,
    context_tokens: int | None = None,
    threads: int | None = None,
) -> Engine:
    """Load the GGUF file `path` (NotFound, UsageError, InsufficientResources, BackendError).

    `state_folder` keeps the engine's log and what was learnt about this machine.
    """
    from phi4local.backends.llamacpp import Host, LlamaCppEngine
    from phi4local.backends.load_settings import LoadSettings

    return LlamaCppEngine(LoadSettings(str(path), context_tokens, threads), Host(state_folder))
