"""Texts that describe a machine -> facts. Pure functions: no files, no commands, and no exception for any text.

Damage never becomes a wrong number: a line without its newline was cut short and is not read, a size without its unit
is unknown, JSON that does not close says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import replace

from hardware.report import Cpu, Gpu, Memory

# Every tool read here means powers of two, whatever it writes.
_UNITS = {"kB": 1 << 10, "KB": 1 << 10, "MB": 1 << 20, "MiB": 1 << 20, "GB": 1 << 30, "GiB": 1 << 30}

# Our name: how /proc/cpuinfo and sysctl's `hw.optional` spell it. The order is the order in a report.
_FEATURES: dict[str, frozenset[str]] = {
    "sse4_2": frozenset({"sse4_2"}),
    "avx": frozenset({"avx", "avx1_0"}),
    "f16c": frozenset({"f16c"}),
    "fma": frozenset({"fma"}),
    "bmi2": frozenset({"bmi2"}),
    "avx2": frozenset({"avx2", "avx2_0"}),
    "avx_vnni": frozenset({"avx_vnni"}),
    "avx512f": frozenset({"avx512f"}),
    "avx512bw": frozenset({"avx512bw"}),
    "avx512vl": frozenset({"avx512vl"}),
    "avx512vbmi": frozenset({"avx512vbmi"}),
    "avx512_vnni": frozenset({"avx512_vnni", "avx512vnni"}),
    "avx512_bf16": frozenset({"avx512_bf16"}),
    "avx512_fp16": frozenset({"avx512_fp16"}),
    "amx_tile": frozenset({"amx_tile"}),
    "amx_int8": frozenset({"amx_int8"}),
    "amx_bf16": frozenset({"amx_bf16"}),
    "neon": frozenset({"neon", "asimd", "AdvSIMD"}),
    "fp16": frozenset({"asimdhp", "FEAT_FP16"}),
    "dotprod": frozenset({"asimddp", "FEAT_DotProd"}),
    "i8mm": frozenset({"i8mm", "FEAT_I8MM"}),
    "bf16": frozenset({"bf16", "FEAT_BF16"}),
    "sve": frozenset({"sve", "FEAT_SVE"}),
    "sve2": frozenset({"sve2", "FEAT_SVE2"}),
    "sme": frozenset({"sme", "FEAT_SME"}),
}

# (CPU implementer, CPU part) of /proc/cpuinfo, where Arm kernels give no name (Arm's MIDR_EL1 values).
_ARM_PARTS = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd85"): "Cortex-X925",
    ("0x41", "0xd87"): "Cortex-A725",
}

_VENDORS = ("apple", "nvidia", "amd", "intel")

# cgroup v1 writes "no limit" as the largest multiple of a page below 2**63.
_NO_LIMIT_BYTES = 1 << 60


def _lines(text: str) -> list[str]:
    return [line.rstrip("\r") for line in text.split("\n")[:-1]]


def _pairs(text: str, separator: str = ":") -> Iterator[tuple[str, str]]:
    for line in _lines(text):
        key, found, value = line.partition(separator)
        if found:
            yield key.strip(), value.strip()


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else None


def _size(text: str) -> int | None:
    """`_size("12288 MiB")`; a bare number is no size."""
    match = re.fullmatch(r"([0-9]{1,12}) ([kKMG]i?B)", text)
    unit = _UNITS.get(match[2]) if match else None
    return int(match[1]) * unit if match and unit else None


def _known(text: str) -> str | None:
    """None where a tool says in words that it does not know: `[N/A]`, `[Not Supported]`."""
    return None if not text or text.startswith("[") or text.upper() == "N/A" else text


def _features(words: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name, spellings in _FEATURES.items() if not spellings.isdisjoint(words))


def bus_id(text: str) -> str | None:
    """One spelling for a PCI address: NVIDIA writes eight digits for the domain, AMD capitals."""
    match = re.fullmatch(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", text.strip().lower())
    return f"{int(match[1], 16):04x}:{match[2]}" if match else None


# -- Linux: /proc, cgroups, sysfs


def cpuinfo(text: str) -> Cpu:
    """`/proc/cpuinfo` of x86 or Arm."""
    processors: list[dict[str, str]] = []
    facts: dict[str, str] = {}
    for key, value in _pairs(text):
        if key == "processor":
            processors.append({})
        if processors:
            processors[-1].setdefault(key, value)
        facts.setdefault(key, value)
    part = _ARM_PARTS.get((facts.get("CPU implementer", ""), facts.get("CPU part", "")))
    words = facts.get("flags", facts.get("Features", "")).split()
    return Cpu(
        model=part or facts.get("model name") or None,
        physical_cores=_physical_cores(processors),
        logical_cores=len(processors) or None,
        features=_features(words),
    )


def _physical_cores(processors: list[dict[str, str]]) -> int | None:
    """Hardware threads of one core share its (package, core) pair; Arm kernels do not tell."""
    cores = {(processor.get("physical id"), processor.get("core id")) for processor in processors}
    return len(cores) if cores and all(None not in core for core in cores) else None


def meminfo(text: str) -> Memory:
    """`/proc/meminfo`."""
    sizes = {key: _size(value) for key, value in _pairs(text)}
    return Memory(sizes.get("MemTotal") or None, sizes.get("MemAvailable"), sizes.get("SwapTotal"))


def cgroup_paths(text: str) -> dict[str, str]:
    """`/proc/self/cgroup`: each version 1 controller's path, and that of version 2 under the empty name."""
    fields = [line.split(":", 2) for line in _lines(text)]
    return {name: row[2] for row in fields if len(row) == 3 for name in row[1].split(",")}


def cgroup_bytes(text: str) -> int | None:
    """`memory.max`, `memory.current` and their version 1 names; None where there is no limit."""
    size_bytes = one_number(text)
    return size_bytes if size_bytes is not None and size_bytes < _NO_LIMIT_BYTES else None


def cgroup_reclaimable_bytes(text: str) -> int:
    """`memory.stat`: the file cache, which the kernel drops before it refuses memory; 0 where unknown."""
    sizes = {key: _number(value) or 0 for key, value in _pairs(text, " ")}
    # version 1 counts the children only in the `total_` rows
    return sum(sizes.get(f"total_{key}", sizes.get(key, 0)) for key in ("active_file", "inactive_file"))


def cgroup_cores(text: str) -> float | None:
    """The quota in cores, from version 2's `cpu.max` ("150000 100000") or version 1's quota and period, joined."""
    words = " ".join(_lines(text)).split()
    quota, period = [_number(word) for word in words] if len(words) == 2 else (None, None)
    return quota / period if quota and period else None


def one_number(text: str) -> int | None:
    """A file of sysfs or a cgroup that holds one number."""
    lines = _lines(text)
    return _number(lines[0].strip()) if len(lines) == 1 else None


def uevent(text: str) -> dict[str, str]:
    """A device's `uevent` file in sysfs (`PCI_SLOT_NAME=0000:03:00.0`)."""
    return dict(_pairs(text, "="))


# -- graphics cards' own tools

NVIDIA_QUERY = "name,pci.bus_id,driver_version,memory.total,memory.free,compute_cap"


def nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """`nvidia-smi --query-gpu=… --format=csv`, columns in any order, header and units included."""
    header, *rows = [[cell.strip() for cell in line.split(",")] for line in _lines(text)] or [[]]
    columns = [cell.partition(" [")[0] for cell in header]
    cards = [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]
    return tuple(_nvidia_card(card) for card in cards if card.get("name"))


def _nvidia_card(card: dict[str, str]) -> Gpu:
    total_bytes = _size(card.get("memory.total", ""))
    return Gpu(
        vendor="nvidia",
        name=card["name"],
        total_bytes=total_bytes,
        free_bytes=_size(card.get("memory.free", "")),
        driver=_known(card.get("driver_version", "")),
        compute_capability=_known(card.get("compute_cap", "")),
        unified=False if total_bytes else None,
        bus_id=bus_id(card.get("pci.bus_id", "")),
    )


def rocm_smi(text: str) -> tuple[Gpu, ...]:
    """`rocm-smi --showproductname --showmeminfo vram --showbus --json`, which may warn before its JSON."""
    cards = [card for key, card in _json(text).items() if re.fullmatch(r"card[0-9]+", key) and isinstance(card, dict)]
    return tuple(_rocm_card(_texts(card)) for card in cards)


def _rocm_card(card: dict[str, str]) -> Gpu:
    # releases differ in capitals, so the keys are lower case here
    total_bytes = _number(card.get("vram total memory (b)", ""))
    used_bytes = _number(card.get("vram total used memory (b)", ""))
    known = total_bytes is not None and used_bytes is not None and used_bytes <= total_bytes
    return Gpu(
        vendor="amd",
        name=_known(card.get("card series", "")) or _known(card.get("device name", "")) or "AMD GPU",
        total_bytes=total_bytes,
        free_bytes=(total_bytes or 0) - (used_bytes or 0) if known else None,
        compute_capability=_known(card.get("gfx version", "")),
        bus_id=bus_id(card.get("pci bus", "")),
    )


def _json(text: str) -> dict[str, object]:
    start = text.find("{")
    try:
        value = json.JSONDecoder().raw_decode(text, start)[0] if start >= 0 else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _texts(row: dict[str, object]) -> dict[str, str]:
    return {key.lower(): str(value).strip() for key, value in row.items() if isinstance(value, str | int)}


# -- macOS


def sysctl_cpu(text: str) -> Cpu:
    """`sysctl hw machdep.cpu`."""
    facts = dict(_pairs(text))
    optional = {key.removeprefix("hw.optional.").removeprefix("arm.") for key in facts if facts[key] == "1"}
    return Cpu(
        model=facts.get("machdep.cpu.brand_string") or None,
        physical_cores=_number(facts.get("hw.physicalcpu", "")) or None,
        logical_cores=_number(facts.get("hw.logicalcpu", "")) or None,
        features=_features(optional),
    )


def sysctl_memory(text: str) -> Memory:
    """`sysctl hw`: only the total; what is available is not in there."""
    return Memory(total_bytes=_number(dict(_pairs(text)).get("hw.memsize", "")) or None)


def wired_limit_bytes(text: str) -> int | None:
    """`sysctl iogpu`: how much memory Metal may wire; 0 means macOS's own choice, so None."""
    limit_mib = _number(dict(_pairs(text)).get("iogpu.wired_limit_mb", ""))
    return limit_mib << 20 if limit_mib else None


def is_apple_silicon(text: str) -> bool:
    """`sysctl hw` tells it even to a program that is being translated from x86."""
    return dict(_pairs(text)).get("hw.optional.arm64") == "1"


def system_profiler(text: str) -> tuple[Gpu, ...]:
    """`system_profiler SPDisplaysDataType -json`."""
    rows = _json(text).get("SPDisplaysDataType")
    cards = [_texts(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return tuple(_mac_card(card) for card in cards if card.get("sppci_model"))


def _mac_card(card: dict[str, str]) -> Gpu:
    maker = f"{card.get('spdisplays_vendor', '')} {card['sppci_model']}".lower()
    vendor = next((vendor for vendor in _VENDORS if vendor in maker), "unknown")
    total_bytes = _size(card.get("spdisplays_vram", ""))
    gpu = Gpu(vendor, card["sppci_model"], total_bytes, unified=False if total_bytes else None)
    return replace(gpu, cores=_number(card.get("sppci_cores", "")), unified=True if vendor == "apple" else gpu.unified)
