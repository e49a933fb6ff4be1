"""Which graphics cards are here: NVIDIA through NVML or nvidia-smi, AMD through sysfs and rocm-smi, Apple's own.

What the installed engine can use of them is another question, and the engine answers it.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from typing import Any

from hardware import parse
from hardware.report import Gpu
from hardware.source import Source

_NVIDIA_PCI, _AMD_PCI = "0x10de", "0x1002"
_DISPLAY_CLASS = "0x03"  # first byte of a PCI class: display controllers


# -- NVIDIA


def nvidia(source: Source) -> tuple[Gpu, ...]:
    """NVIDIA's cards; a note where one is present and its driver does not answer."""
    try:
        found = read_nvml(importlib.import_module("pynvml"), source)
    except ImportError as error:
        found = str(error)
    if not isinstance(found, str):
        return found
    cards = parse.nvidia_smi(source.run("nvidia-smi", f"--query-gpu={parse.NVIDIA_QUERY}", "--format=csv"))
    if not cards and _nvidia_is_present(source):
        source.note(f"An NVIDIA card is present but its driver does not answer: {found}")
    return cards


def read_nvml(nvml: Any, source: Source) -> tuple[Gpu, ...] | str:
    """The cards that NVML lists, or why it does not answer; `nvml` is the module `pynvml`."""
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError, OSError) as error:
        return str(error)
    driver = _ask(nvml, "nvmlSystemGetDriverVersion")
    cards = [_nvml_card(nvml, index, source) for index in range(_ask(nvml, "nvmlDeviceGetCount") or 0)]
    _ask(nvml, "nvmlShutdown")
    return tuple(replace(card, driver=driver) for card in cards if card)


def _ask(nvml: Any, function: str, *arguments: object) -> Any:
    """NVML's answer, or None where this card, driver or binding has none."""
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, OSError, ValueError, AttributeError):
        return None


def _nvml_card(nvml: Any, index: int, source: Source) -> Gpu | None:
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
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        unified=False if known else None,
        bus_id=parse.bus_id(address.busId) if address else None,
    )


def _nvidia_is_present(source: Source) -> bool:
    devices = [f"sys/bus/pci/devices/{name}" for name in source.names("sys/bus/pci/devices")]
    return source.exists("proc/driver/nvidia") or any(
        source.read(f"{device}/vendor").strip() == _NVIDIA_PCI
        and source.read(f"{device}/class").startswith(_DISPLAY_CLASS)
        for device in devices
    )


# -- AMD


def amd(source: Source) -> tuple[Gpu, ...]:
    """AMD's cards from sysfs; rocm-smi, where installed, adds names and architectures."""
    names = [name for name in source.names("sys/class/drm") if re.fullmatch(r"card[0-9]+", name)]
    folders = [f"sys/class/drm/{name}/device" for name in names]
    cards = [_amd_card(source, folder) for folder in folders if source.read(f"{folder}/vendor").strip() == _AMD_PCI]
    if not cards and not source.exists("dev/kfd"):
        return ()
    told = parse.rocm_smi(source.run("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showbus", "--json"))
    return tuple(_with_name(card, told) for card in cards) or told


def _amd_card(source: Source, folder: str) -> Gpu:
    total_bytes = parse.one_number(source.read(f"{folder}/mem_info_vram_total")) or None
    used_bytes = parse.one_number(source.read(f"{folder}/mem_info_vram_used"))
    facts = parse.uevent(source.read(f"{folder}/uevent"))
    device = source.read(f"{folder}/device").strip()
    return Gpu(
        vendor="amd",
        name=source.read(f"{folder}/product_name").strip() or f"AMD GPU {device}".strip(),
        total_bytes=total_bytes,
        free_bytes=max(0, total_bytes - used_bytes) if total_bytes and used_bytes is not None else None,
        driver=source.read("sys/module/amdgpu/version").strip() or None,
        shared_bytes=parse.one_number(source.read(f"{folder}/mem_info_gtt_total")),
        bus_id=parse.bus_id(facts.get("PCI_SLOT_NAME", "")),
    )


def _with_name(card: Gpu, told: tuple[Gpu, ...]) -> Gpu:
    same = next((other for other in told if other.bus_id is not None and other.bus_id == card.bus_id), None)
    return replace(card, name=same.name, compute_capability=same.compute_capability) if same else card


# -- Apple


def apple(source: Source, sysctl: str) -> tuple[Gpu, ...]:
    """The cards of a Mac; `sysctl` is what the command of that name printed."""
    cards = parse.system_profiler(source.run("system_profiler", "SPDisplaysDataType", "-json", timeout_seconds=15))
    limit_bytes = parse.wired_limit_bytes(sysctl)
    if limit_bytes is None and any(card.unified for card in cards):
        source.note("How much memory Metal may use is macOS's own choice; only the engine can tell")
    return tuple(replace(card, shared_bytes=limit_bytes) if card.unified else card for card in cards)
