"""Whether a folder fits into the memory that MLX may use now, and what loading it took. Import in a child process only.

On Apple Silicon that is Metal's working set, which the main memory holds; elsewhere the main memory itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import psutil

from phi4local.backends.load_settings import CONTEXT_STEP, Budget, LoadSettings
from phi4local.backends.mlx_folder import MlxFolder, needed
from phi4local.backends.mlx_model import MlxModel, Timeline
from phi4local.engine import Load
from phi4local.errors import DoesNotFit
from phi4local.fit import HOST, LEAST_CONTEXT, OFFERED_SHARE, UNKNOWN_BYTES, Room, Use
from phi4local.units import memory as memory_text

METAL = "Metal"


@dataclass(frozen=True, slots=True)
class Placed:
    """What a load will take, and of which device; `resident_bytes`: of the process, before it."""

    device: str
    use: Use
    usable_bytes: int
    resident_bytes: int


def place_folder(settings: LoadSettings, budget: Budget, folder: MlxFolder, context: int) -> Placed:
    """See that the weights, the whole cache and a step's work fit (DoesNotFit, with what would)."""
    device, room = _room(budget)
    use = needed(folder, settings.kv_type, context)
    if use.total_bytes > room:
        raise _refusal(settings, folder, context, room)
    return Placed(device, use, room, psutil.Process().memory_info().rss)


def wire(placed: Placed, model: MlxModel, timeline: Timeline) -> None:
    """Keep in Metal's memory what stays: weights and cache. What comes and goes is left to the system."""
    if placed.device == METAL:
        stays = model.weights_bytes + timeline.caches.total_bytes
        mx.set_wired_limit(min(stays, placed.usable_bytes))


def loaded(placed: Placed, model: MlxModel, timeline: Timeline) -> Load:
    """What the load took, beside what it was said to take: weights and cache. A step's work comes with a prompt."""
    resident = psutil.Process().memory_info().rss - placed.resident_bytes
    layers = model.folder.layers
    return Load(
        where="gpu" if placed.device == METAL else "cpu",
        gpu_layers=layers + 1 if placed.device == METAL else 0,
        layers=layers,
        kv_type=model.settings.kv_type,
        context_tokens=model.context_sizes[-1],
        predicted={placed.device: replace(placed.use, compute_bytes=0)},
        took={placed.device: Use(model.weights_bytes, timeline.caches.total_bytes)},
        resident_bytes=resident,
    )


def _room(budget: Budget) -> tuple[str, int]:
    """The device and what a model may take of it, in bytes."""
    total = UNKNOWN_BYTES if budget.main_total_bytes is None else budget.main_total_bytes
    main = Room(HOST, total, total if budget.main_free_bytes is None else budget.main_free_bytes)
    if not mx.metal.is_available():
        return HOST, main.usable_bytes
    working_set = int(mx.device_info()["max_recommended_working_set_size"])
    return METAL, min(Room(METAL, working_set, working_set).usable_bytes, main.usable_bytes)


def _refusal(settings: LoadSettings, folder: MlxFolder, context: int, room: int) -> DoesNotFit:
    """Both numbers, and the largest context that would fit."""
    less = int(room * OFFERED_SHARE)
    sizes = range(context // CONTEXT_STEP * CONTEXT_STEP, LEAST_CONTEXT - 1, -CONTEXT_STEP)
    fitting = next((size for size in sizes if needed(folder, settings.kv_type, size).total_bytes <= less), 0)
    takes = needed(folder, settings.kv_type, context).total_bytes
    return DoesNotFit(
        f"`{folder.path.name}` needs {memory_text(takes)} of memory with a context of {context} tokens; "
        f"{memory_text(room)} can be used",
        options=("--context", str(fitting)) if fitting else (),
    )
