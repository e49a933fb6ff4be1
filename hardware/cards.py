"""What the vendors' own tools print -> graphics cards. Pure functions, and no exception for any text.

Whether an answer makes sense (more free than there is, a card of 9 TiB) is judged once, by `checked`.
"""

from __future__ import annotations

import re
from dataclasses import replace

from hardware import bandwidth
from hardware.pci import UNNAMED_AMD
from hardware.report import Gpu
from hardware.texts import json_object, known, lines, number, pairs, plain_values, size
from phi4local.printing import printable

_VENDORS = ("apple", "nvidia", "amd", "intel")

# Several times the largest card or bandwidth that exists in 2026; beyond it a driver is talking nonsense.
_MAX_BYTES = 8 << 40
_MAX_BYTES_PER_SECOND = 100 * 10**12
_MAX_NAME = 80


def checked(card: Gpu) -> Gpu:
    """The card without what cannot be: impossible sizes are unknown, names are printable, known names have a speed."""
    total_bytes = _within(card.total_bytes, 1, _MAX_BYTES)
    speed = _within(card.bandwidth_bytes_per_second, 1, _MAX_BYTES_PER_SECOND)
    return replace(
        card,
        name=printable(card.name, limit=_MAX_NAME),
        total_bytes=total_bytes,
        free_bytes=_within(card.free_bytes, 0, total_bytes),
        used_bytes=_within(card.used_bytes, 0, total_bytes),
        driver=printable(card.driver, limit=_MAX_NAME) if card.driver else None,
        compute_capability=printable(card.compute_capability, limit=_MAX_NAME) if card.compute_capability else None,
        bandwidth_bytes_per_second=speed or bandwidth.bytes_per_second(card.name, card.cores),
        shared_bytes=_within(card.shared_bytes, 1, _MAX_BYTES),
    )


def _within(value: int | None, least: int, most: int | None) -> int | None:
    return value if value is not None and most is not None and least <= value <= most else None


def bus_id(text: str) -> str | None:
    """One spelling for a PCI address: NVIDIA writes eight digits for the domain, AMD capitals."""
    match = re.fullmatch(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", text.strip().lower())
    return f"{int(match[1], 16):04x}:{match[2]}" if match else None


def uevent(text: str) -> dict[str, str]:
    """A device's `uevent` file in sysfs (`PCI_SLOT_NAME=0000:03:00.0`)."""
    return dict(pairs(text, "="))


# -- NVIDIA

NVIDIA_QUERY = "name,pci.bus_id,driver_version,memory.total,memory.free,memory.used,compute_cap"


def nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """`nvidia-smi --query-gpu=… --format=csv`, columns in any order, header and units included."""
    header, *rows = [[cell.strip() for cell in line.split(",")] for line in lines(text)] or [[]]
    columns = [cell.partition(" [")[0] for cell in header]
    cards = [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]
    return tuple(_nvidia_card(card) for card in cards if card.get("name"))


def _nvidia_card(card: dict[str, str]) -> Gpu:
    total_bytes = size(card.get("memory.total", ""))
    return Gpu(
        vendor="nvidia",
        name=card["name"],
        total_bytes=total_bytes,
        free_bytes=size(card.get("memory.free", "")),
        used_bytes=size(card.get("memory.used", "")),
        driver=known(card.get("driver_version", "")),
        compute_capability=known(card.get("compute_cap", "")),
        unified=False if total_bytes else None,
        bus_id=bus_id(card.get("pci.bus_id", "")),
    )


# -- AMD


def rocm_smi(text: str) -> tuple[Gpu, ...]:
    """`rocm-smi --showproductname --showmeminfo vram --showbus --json`."""
    found = json_object(text)
    cards = [card for key, card in found.items() if re.fullmatch(r"card[0-9]+", key) and isinstance(card, dict)]
    return tuple(_rocm_card(plain_values(card)) for card in cards)


def _rocm_card(card: dict[str, str]) -> Gpu:
    total_bytes = number(card.get("vram total memory (b)", ""))
    used_bytes = number(card.get("vram total used memory (b)", ""))
    return Gpu(
        vendor="amd",
        name=_rocm_name(card.get("card series", "")) or _rocm_name(card.get("device name", "")) or UNNAMED_AMD,
        total_bytes=total_bytes,
        free_bytes=_rest(total_bytes, used_bytes),
        used_bytes=used_bytes,
        compute_capability=known(card.get("gfx version", "")),
        bus_id=bus_id(card.get("pci bus", "")),
    )


def _rocm_name(text: str) -> str | None:
    """A card that rocm-smi has no name for is named by its bare device id, "0x744c"."""
    return None if text.startswith("0x") else known(text)


def _rest(total_bytes: int | None, part_bytes: int | None) -> int | None:
    """What is left of a size; None where the part is more than the whole."""
    if total_bytes is None or part_bytes is None or part_bytes > total_bytes:
        return None
    return total_bytes - part_bytes


# -- Intel


def xpu_smi(text: str) -> tuple[Gpu, ...]:
    """`xpu-smi discovery -d ADDRESS -j`: one card."""
    card = plain_values(json_object(text))
    if not known(card.get("device_name", "")):
        return ()
    total_bytes = number(card.get("memory_physical_size_byte", "")) or None
    free_bytes = number(card.get("memory_free_size_byte", ""))
    gpu = Gpu(
        vendor="intel",
        name=card["device_name"],
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        used_bytes=_rest(total_bytes, free_bytes),
        driver=known(card.get("driver_version", "")),
        bus_id=bus_id(card.get("pci_bdf_address", "")),
    )
    return (gpu,)


# -- macOS


def system_profiler(text: str) -> tuple[Gpu, ...]:
    """`system_profiler SPDisplaysDataType -json`."""
    rows = json_object(text).get("SPDisplaysDataType")
    cards = [plain_values(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return tuple(_mac_card(card) for card in cards if card.get("sppci_model"))


def _mac_card(card: dict[str, str]) -> Gpu:
    maker = f"{card.get('spdisplays_vendor', '')} {card['sppci_model']}".lower()
    vendor = next((vendor for vendor in _VENDORS if vendor in maker), "unknown")
    total_bytes = size(card.get("spdisplays_vram", ""))
    is_unified = vendor == "apple" or "spdisplays_vram_shared" in card
    return Gpu(
        vendor,
        card["sppci_model"],
        total_bytes,
        cores=number(card.get("sppci_cores", "")),
        unified=True if is_unified else False if total_bytes else None,
    )
