"""What runs models. `open_engine` is the way in; the runtimes are imported only when one is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from phi4local.backends.load_settings import Budget, LoadSettings
from phi4local.engine import Engine


def open_engine(
    path: Path,
    *,
    state_folder: Path,
    context_tokens: int | None = None,
    threads: int | None = None,
    kv_type: str = "f16",
    budget: Callable[[], Budget] = Budget,
) -> Engine:
    """Load the GGUF file or the MLX folder `path` where it fits best (NotFound, UsageError, DoesNotFit, BackendError).

    `state_folder` keeps the engine's log and what was learnt about this machine; `budget` tells the free main memory.
    """
    from phi4local.backends.child import ChildEngine, Host

    settings = LoadSettings(str(path), context_tokens, threads, kv_type=kv_type)
    if not path.is_dir():
        return ChildEngine(settings, Host(state_folder), budget)
    from phi4local.backends.mlx_ask import INSTALL, check_installed
    from phi4local.backends.process import python_module

    check_installed()
    command = python_module("phi4local.backends.mlx_worker")
    host = Host(state_folder, command, backend="MLX", has_safe_mode=False, reinstall=INSTALL)
    return ChildEngine(settings, host, budget)
