"""What is said to the engine's process about loading; known on both sides of the pipe."""

from __future__ import annotations

from dataclasses import dataclass

from phi4local.engine import DEFAULT_CONTEXT_TOKENS
from phi4local.errors import UsageError

CONTEXT_STEP = 256  # llama.cpp rounds a context up to this
# The types that a KV cache may have, with ggml's numbers.
KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """What to load and how. `context_tokens` None: what the model was trained for, 8192 at most.

    `gpu_layers` -1: as many as the cards hold, in the proportion of `split` where there are several. Safe mode goes
    without what has crashed on some machines: repacked weights (AMX) and flash attention.
    """

    path: str
    context_tokens: int | None = None
    threads: int | None = None
    gpu_layers: int = -1
    kv_type: str = "f16"
    safe_mode: bool = False
    split: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Budget:
    """The main memory as the parent sees it, within its container; None: unknown, and not checked."""

    main_total_bytes: int | None = None
    main_free_bytes: int | None = None


def whole_context(tokens: int) -> int:
    """A context as the engines open it."""
    return -(-tokens // CONTEXT_STEP) * CONTEXT_STEP


def wanted_context(settings: LoadSettings, trained_tokens: int) -> int:
    """The context that the settings ask for (UsageError for one that the model was not trained for)."""
    wanted = settings.context_tokens or min(trained_tokens, DEFAULT_CONTEXT_TOKENS)
    if not 0 < wanted <= trained_tokens:
        raise UsageError(
            f"A context of {wanted} tokens is asked for; the model was trained for {trained_tokens}",
            hint=f"Choose `--context` up to {trained_tokens}",
        )
    return wanted
