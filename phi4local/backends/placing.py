"""Where a model's file goes on this machine now, asked before it is loaded, and what the load really took.

Import in a child process only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from phi4local.backends.devices import cards
from phi4local.backends.load_settings import Budget, LoadSettings, wanted_context
from phi4local.backends.memory import MAPPED, Inquiry, buffers, by_device
from phi4local.engine import Load
from phi4local.errors import DoesNotFit
from phi4local.fit import (
    HOST,
    LEAST_CONTEXT,
    OFFERED_SHARE,
    UNKNOWN_BYTES,
    Memory,
    Placement,
    Room,
    Use,
    Where,
    most_context,
    overflow,
    place,
    rooms,
)
from phi4local.units import memory as memory_text


@dataclass(frozen=True, slots=True)
class Placed:
    """A file with the settings to load it with, and where it goes with them; the inquiry is still open."""

    settings: LoadSettings
    inquiry: Inquiry
    placement: Placement
    layers: int
    free_bytes: dict[str, int]  # of each card, before the load
    resident_bytes: int


def place_file(settings: LoadSettings, budget: Budget, errors: Sequence[str]) -> Placed:
    """Find the fastest place that holds the model (DoesNotFit; UsageError for a wrong context)."""
    facts = [card.facts for card in cards()]
    main = Room(
        HOST,
        UNKNOWN_BYTES if budget.main_total_bytes is None else budget.main_total_bytes,
        UNKNOWN_BYTES if budget.main_free_bytes is None else budget.main_free_bytes,
    )
    room = rooms(main, facts, {})
    settings = replace(settings, split=tuple(float(one.usable_bytes) for one in room[1:]))
    inquiry = Inquiry(settings, errors)
    layers, context = inquiry.layers, wanted_context(settings, inquiry.trained_tokens)
    if settings.gpu_layers < 0:
        placement = place(inquiry, layers, context, room)
    else:
        memory = inquiry(settings.gpu_layers, context)
        where: Where = "cpu" if not settings.gpu_layers else "gpu" if settings.gpu_layers > layers else "split"
        placement = Placement(where, settings.gpu_layers, memory, overflow(memory, room))
    if placement.short_bytes:
        raise _refusal(settings, placement, context, room)
    settings = replace(settings, gpu_layers=placement.gpu_layers)
    return Placed(settings, inquiry, placement, layers, _free(), _resident())


def _refusal(settings: LoadSettings, placement: Placement, context: int, room: Sequence[Room]) -> DoesNotFit:
    """Both numbers, and what would fit: a smaller KV type at the same context first."""
    usable = sum(one.usable_bytes for one in room if not one.shares_main)
    margin = sum(one.margin_bytes for one in room if not one.shares_main)
    smaller = replace(settings, kv_type="q8_0")
    wishes = [(smaller, context)] if settings.kv_type in ("f16", "f32") else []
    wishes += [(settings, 0), (smaller, 0)]
    # Free memory is never the same twice: what is offered must still fit when the user has typed it.
    less = [replace(one, free_bytes=int(one.free_bytes * OFFERED_SHARE)) for one in room]
    offers = (_offer(wish, wanted, context, less) for wish, wanted in wishes)
    return DoesNotFit(
        f"`{Path(settings.path).name}` needs {memory_text(placement.total.total_bytes)} of memory with a context of "
        f"{context} tokens; {memory_text(usable)} can be used ({memory_text(margin)} more stay free)",
        options=next((offer for offer in offers if offer), ()),
    )


def _offer(settings: LoadSettings, context: int, most: int, room: Sequence[Room]) -> tuple[str, ...]:
    """Arguments with which it fits; `context` 0: the largest below `most` that does."""
    inquiry = Inquiry(settings, ())
    try:
        placement = place(inquiry, inquiry.layers, context or min(LEAST_CONTEXT, most), room)
        if placement.short_bytes:
            return ()
        found = context or min(most_context(inquiry, placement, most, room), most)
    finally:
        inquiry.close()
    kv_type = () if settings.kv_type == "f16" else ("--kv", settings.kv_type)
    return (*kv_type, "--context", str(found)) if found else ()


def loaded(placed: Placed, context: Any, context_tokens: int) -> Load:
    """What the load took, beside what it was said to take with the context that is open now."""
    predicted = placed.inquiry.buffers(placed.settings.gpu_layers, context_tokens)
    placed.inquiry.close()
    found = buffers(context)
    # The window on the file reaches over tensors that have gone elsewhere; only those that stay are used there.
    stay_bytes = by_device(predicted).get(HOST, Use()).weights_bytes - sum(
        use.weights_bytes for name, (device, use) in found.items() if device == HOST and not name.endswith(MAPPED)
    )
    for name, (device, use) in found.items():
        if device == HOST and name.endswith(MAPPED):
            found[name] = (device, replace(use, weights_bytes=min(use.weights_bytes, stay_bytes)))
    free = _free()
    return Load(
        where=placed.placement.where,
        gpu_layers=placed.settings.gpu_layers,
        layers=placed.layers,
        kv_type=placed.settings.kv_type,
        context_tokens=context_tokens,
        predicted=_present(by_device(predicted)),
        took=_present(by_device(found)),
        resident_bytes=_resident() - placed.resident_bytes,
        mapped_bytes=sum(use.weights_bytes for name, (_, use) in found.items() if name.endswith(MAPPED)),
        cards_bytes=sum(placed.free_bytes[name] - free.get(name, 0) for name in placed.free_bytes) if free else None,
    )


def _present(memory: Memory) -> Memory:
    return {device: use for device, use in memory.items() if use.total_bytes}


def _free() -> dict[str, int]:
    return {card.facts.name: card.facts.free_bytes for card in cards() if card.facts.free_bytes is not None}


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
