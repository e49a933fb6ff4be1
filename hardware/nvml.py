"""NVIDIA's cards through NVML, the library that nvidia-smi is made of. It may hang; the caller bounds its time."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from hardware.cards import bus_id
from hardware.report import Gpu
from hardware.source import Source

_MEMORY_CLOCK = 2  # NVML_CLOCK_MEM
_MAX_CARDS = 64


def cards(source: Source) -> tuple[Gpu, ...] | str:
    """The cards of this machine, or why the library does not answer."""
    try:
        return read(importlib.import_module("pynvml"), source)
    except ImportError as error:
        return str(error)


def read(nvml: Any, source: Source) -> tuple[Gpu, ...] | str:
    """The cards that NVML lists, or why it does not answer; `nvml` is the module `pynvml`."""
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError, OSError) as error:
        return str(error)
    driver = _ask(nvml, "nvmlSystemGetDriverVersion")
    count = min(_ask(nvml, "nvmlDeviceGetCount") or 0, _MAX_CARDS)
    found = [_card(nvml, index, source) for index in range(count)]
    _ask(nvml, "nvmlShutdown")
    return tuple(replace(card, driver=driver) for card in found if card)


def _ask(nvml: Any, function: str, *arguments: object) -> Any:
    """NVML's answer, or None where this card, driver or binding has none."""
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, OSError, ValueError, AttributeError):
        return None


def _card(nvml: Any, index: int, source: Source) -> Gpu | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except (nvml.NVMLError, OSError) as error:
        source.note(f"NVIDIA card {index} does not answer: {error}")
        return None
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    known = memory is not None and memory.total > 0  # boards that share the main memory refuse, or answer zero
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    address = _ask(nvml, "nvmlDeviceGetPciInfo", handle)
    return Gpu(
        vendor="nvidia",
        name=_ask(nvml, "nvmlDeviceGetName", handle) or "NVIDIA GPU",
        total_bytes=memory.total if known else None,
        free_bytes=memory.free if known else None,
        used_bytes=memory.used if known else None,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        bandwidth_bytes_per_second=_bandwidth(nvml, handle),
        unified=False if known else None,
        bus_id=bus_id(address.busId) if address else None,
    )


def _bandwidth(nvml: Any, handle: object) -> int | None:
    """NVML's memory clock counts half the transfers of every kind of memory: 10501 MHz and 384 bit are 1008 GB/s."""
    clock_mhz = _ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, _MEMORY_CLOCK)
    width_bits = _ask(nvml, "nvmlDeviceGetMemoryBusWidth", handle)
    return 2 * clock_mhz * 10**6 * width_bits // 8 if clock_mhz and width_bits else None
