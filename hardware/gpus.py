"""Which graphics cards are here: NVIDIA by NVML or nvidia-smi, AMD and Intel by sysfs and their tools, Apple's own.

What the installed engine can use of them is another question, and the engine answers it. CUDA_VISIBLE_DEVICES and its
like belong to the engine too: this is what the machine has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from hardware import cards, nvml, parse, pci
from hardware.report import Gpu
from hardware.source import Source
from phi4local.units import memory

_NVIDIA_PCI, _AMD_PCI, _INTEL_PCI = "0x10de", "0x1002", "0x8086"
_DISPLAY_CLASS = "0x03"  # first byte of a PCI class: display controllers

# 14: a damaged information ROM on some card, a warning under which nvidia-smi still prints its whole table.
_NVIDIA_SMI_STATUSES = (0, 14)

# What a BIOS sets aside for an integrated AMD by itself; a larger carve-out was made by its owner for work like ours.
_CARVE_OUT_BYTES = 2 << 30

# macOS recommends to Metal two thirds of a small memory and three quarters of one from this size on.
_LARGE_MAC_BYTES = 36 << 30


def linux(source: Source) -> tuple[Gpu, ...]:
    """Every vendor's cards, asked at the same time."""
    found = source.together({"NVIDIA's driver": nvidia, "AMD's driver": amd, "Intel's driver": intel})
    return tuple(cards.checked(card) for card in found)


def mac(source: Source, sysctl: str) -> tuple[Gpu, ...]:
    """The cards of a Mac; `sysctl` is what the command of that name printed."""
    return tuple(cards.checked(card) for card in apple(source, sysctl))


def _told(source: Source, parser: Callable[[str], tuple[Gpu, ...]], tool: str, text: str) -> tuple[Gpu, ...]:
    """What a tool's text says, or a note that it says nothing."""
    found = parser(text)
    if text.strip() and not found:
        source.note(f"What `{tool}` printed describes no graphics card")
    return found


def _display_folders(source: Source, vendor: str) -> list[str]:
    """The sysfs folders of a vendor's graphics devices."""
    names = [name for name in source.names("sys/class/drm") if re.fullmatch(r"card[0-9]+", name)]
    folders = [f"sys/class/drm/{name}/device" for name in names]
    return [folder for folder in folders if source.read(f"{folder}/vendor").strip() == vendor]


# -- NVIDIA


def nvidia(source: Source) -> tuple[Gpu, ...]:
    """NVIDIA's cards; a note where one is present and its driver does not answer."""
    found = nvml.cards(source)
    if not isinstance(found, str):
        return found
    query = (f"--query-gpu={cards.NVIDIA_QUERY}", "--format=csv")
    text = source.run("nvidia-smi", *query, trusted=_NVIDIA_SMI_STATUSES)
    printed = _told(source, cards.nvidia_smi, "nvidia-smi", text)
    if not printed and _nvidia_is_present(source):
        source.note(f"An NVIDIA card is present but its driver does not answer: {found}")
    return printed


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
    found = [_amd_card(source, folder) for folder in _display_folders(source, _AMD_PCI)]
    if not found and not source.exists("dev/kfd"):
        return ()
    text = source.run("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showbus", "--json")
    told = _told(source, cards.rocm_smi, "rocm-smi", text)
    return tuple(_with_name(card, told) for card in found) or told


def _amd_card(source: Source, folder: str) -> Gpu:
    total_bytes = parse.one_number(source.read(f"{folder}/mem_info_vram_total")) or None
    used_bytes = parse.one_number(source.read(f"{folder}/mem_info_vram_used"))
    facts = cards.uevent(source.read(f"{folder}/uevent"))
    device, revision = (source.read(f"{folder}/{name}").strip() for name in ("device", "revision"))
    card = Gpu(
        vendor="amd",
        name=source.read(f"{folder}/product_name").strip() or pci.amd_name(device, revision),
        total_bytes=total_bytes,
        free_bytes=max(0, total_bytes - used_bytes) if total_bytes and used_bytes is not None else None,
        used_bytes=used_bytes,
        driver=source.read("sys/module/amdgpu/version").strip() or facts.get("DRIVER"),
        unified=False if total_bytes else None,
        shared_bytes=parse.one_number(source.read(f"{folder}/mem_info_gtt_total")),
        bus_id=cards.bus_id(facts.get("PCI_SLOT_NAME", "")),
    )
    return _without_carve_out(card) if _is_integrated(card) else card


def _is_integrated(card: Gpu) -> bool:
    """An integrated AMD has a small part of the main memory for itself and may use much more of it.

    Its device id does not decide: with a large carve-out it is, for whoever places a model, a card with memory of its
    own, which the main memory's size no longer includes. An old card of 2 GiB that is taken for integrated here
    could not hold a model either.
    """
    if card.total_bytes is None or card.shared_bytes is None:
        return False
    return card.total_bytes <= _CARVE_OUT_BYTES and card.total_bytes < card.shared_bytes


def _without_carve_out(card: Gpu) -> Gpu:
    return replace(card, total_bytes=None, free_bytes=None, used_bytes=None, unified=True)


def _with_name(card: Gpu, told: tuple[Gpu, ...]) -> Gpu:
    same = next((other for other in told if other.bus_id is not None and other.bus_id == card.bus_id), None)
    if same is None:
        return card
    name = card.name if same.name == pci.UNNAMED_AMD else same.name
    return replace(card, name=name, compute_capability=same.compute_capability)


# -- Intel


def intel(source: Source) -> tuple[Gpu, ...]:
    """Intel's cards from sysfs; only xpu-smi, where installed, tells how much memory a card of its own has."""
    folders = _display_folders(source, _INTEL_PCI)
    found = [
        _intel_card(source, folder) for folder in folders if source.read(f"{folder}/class").startswith(_DISPLAY_CLASS)
    ]
    addresses = [card.bus_id for card in found if card.bus_id and not card.unified]
    told = source.together({f"`xpu-smi` for {address}": partial(_ask_xpu_smi, address) for address in addresses})
    return tuple(_with_memory(card, told) for card in found)


def _intel_card(source: Source, folder: str) -> Gpu:
    facts = cards.uevent(source.read(f"{folder}/uevent"))
    device = source.read(f"{folder}/device").strip()
    address = cards.bus_id(facts.get("PCI_SLOT_NAME", ""))
    return Gpu(
        vendor="intel",
        name=pci.intel_name(device),
        driver=facts.get("DRIVER"),
        unified=True if pci.intel_is_integrated(device, address) else None,
        bus_id=address,
    )


def _ask_xpu_smi(address: str, source: Source) -> tuple[Gpu, ...]:
    text = source.run("xpu-smi", "discovery", "-d", address, "-j")
    return _told(source, cards.xpu_smi, "xpu-smi", text)


def _with_memory(card: Gpu, told: tuple[Gpu, ...]) -> Gpu:
    same = next((other for other in told if other.bus_id is not None and other.bus_id == card.bus_id), None)
    if same is None or same.total_bytes is None:
        return card
    sizes = replace(card, total_bytes=same.total_bytes, free_bytes=same.free_bytes, used_bytes=same.used_bytes)
    return replace(sizes, name=same.name if card.name.startswith(pci.UNNAMED_INTEL) else card.name, unified=False)


# -- Apple


def apple(source: Source, sysctl: str) -> tuple[Gpu, ...]:
    """A Mac's cards; Apple Silicon has one even where system_profiler does not answer."""
    text = source.run("system_profiler", "SPDisplaysDataType", "-json")
    found = _told(source, cards.system_profiler, "system_profiler", text)
    if not found and parse.is_apple_silicon(sysctl):
        found = (Gpu("apple", parse.sysctl_cpu(sysctl).model or "Apple GPU", unified=True),)
    if not any(card.vendor == "apple" for card in found):
        return found
    shared_bytes = _metal_bytes(source, sysctl)
    return tuple(replace(card, shared_bytes=shared_bytes) if card.vendor == "apple" else card for card in found)


def _metal_bytes(source: Source, sysctl: str) -> int | None:
    """How much of the main memory Metal may use: the limit that was set, or the share that macOS usually gives."""
    total_bytes = parse.sysctl_memory(sysctl).total_bytes
    limit_bytes = parse.wired_limit_bytes(sysctl)
    if limit_bytes is not None:
        return min(limit_bytes, total_bytes or limit_bytes)
    if total_bytes is None:
        source.note("How much memory Metal may use is macOS's own choice; only the engine can tell")
        return None
    share_bytes = total_bytes * 3 // 4 if total_bytes >= _LARGE_MAC_BYTES else total_bytes * 2 // 3
    source.note(
        f"Metal may use about {memory(share_bytes)}: macOS's usual share of the memory; "
        "only the engine's Metal device knows exactly"
    )
    return share_bytes
