"""What runs models. `open_engine` is the way in; the runtimes are imported only when one is opened."""

from __future__ import annotations

from pathlib import Path

from phi4local.engine import Engine
from phi4local.errors import UsageError


def open_engine(
    path: Path,
    *,
    state_folder: Path,
    context_tokens: int | None = None,
    threads: int | None = None,
    gpu_layers: int = -1,
    kv_type: str = "f16",
) -> Engine:
    """Load the GGUF file `path` (NotFound, UsageError, InsufficientResources, BackendError).

    `state_folder` keeps the engine's log and what was learnt about this machine. `gpu_layers` -1 means all of them.
    """
    from phi4local.backends.llamacpp import Host, LlamaCppEngine
    from phi4local.backends.load_settings import KV_TYPES, LoadSettings

    if kv_type not in KV_TYPES:
        raise UsageError(f"A KV cache cannot have the type `{kv_type}`", hint=f"Choose one of {', '.join(KV_TYPES)}")
    settings = LoadSettings(str(path), context_tokens, threads, gpu_layers, kv_type)
    return LlamaCppEngine(settings, Host(state_folder))
