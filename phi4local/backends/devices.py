"""The devices that llama.cpp sees, and how a model is told to use them. Import in a child process only.

The binding has no functions for ggml's device list, so its library is called directly (`ggml-backend.h`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp.llama_cpp as llama
from llama_cpp._ggml import libggml

from hardware.report import EngineDevice
from phi4local.fit import choose_cards

_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")  # enum ggml_backend_dev_type


class _Properties(ctypes.Structure):
    """`ggml_backend_dev_props`, with what follows left unread."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("free_bytes", ctypes.c_size_t),
        ("total_bytes", ctypes.c_size_t),
        ("kind", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("rest", ctypes.c_char * 64),
    ]


@dataclass(frozen=True, slots=True)
class Device:
    """A device and ggml's handle of it."""

    handle: int
    facts: EngineDevice


def devices() -> list[Device]:
    """Everything that the engine can compute on, in its own order."""
    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    libggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    return [_device(libggml.ggml_backend_dev_get(index)) for index in range(libggml.ggml_backend_dev_count())]


def _device(handle: int) -> Device:
    libggml.ggml_backend_dev_get_props.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Properties)]
    properties = _Properties()
    libggml.ggml_backend_dev_get_props(handle, ctypes.byref(properties))
    facts = EngineDevice(
        name=_text(properties.name) or "unknown",
        description=_text(properties.description) or "",
        kind=_KINDS[properties.kind] if properties.kind < len(_KINDS) else "other",
        total_bytes=properties.total_bytes or None,
        free_bytes=properties.free_bytes if properties.total_bytes else None,
        bus_id=_text(properties.device_id),
    )
    return Device(handle, facts)


def _text(data: bytes | None) -> str | None:
    return data.decode(errors="replace") if data else None


def cards() -> list[Device]:
    """The devices that a model's layers go to."""
    found = devices()
    chosen = choose_cards([device.facts for device in found])
    return [device for device in found if device.facts in chosen]


def use_cards(params: Any, shares: Sequence[float], *, wanted: bool) -> None:
    """Have a model's layers go to the cards, `shares` to each; to none of them where they are not `wanted`."""
    chosen = cards()
    if not chosen:
        return
    handles = (ctypes.c_void_p * (len(chosen) + 1))(*[device.handle for device in chosen if wanted])
    params.devices = ctypes.cast(handles, ctypes.c_void_p)
    split = (ctypes.c_float * max(len(chosen), llama.llama_max_devices()))(*shares)
    if any(shares):
        params.tensor_split = split
    params.kept = (handles, split)  # they must live as long as the parameters
