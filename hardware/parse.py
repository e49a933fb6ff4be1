"""What the kernel says about a machine -> facts. Pure functions: no files, no commands, no exception for any text."""

from __future__ import annotations

from collections.abc import Collection

from hardware.report import Cpu, Memory
from hardware.texts import lines, number, pairs, size

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

# cgroup v1 writes "no limit" as the largest multiple of a page below 2**63.
_NO_LIMIT_BYTES = 1 << 60

# More logical processors than any Linux kernel supports; "0-4294967295" must not become a list.
_MAX_PROCESSORS = 1 << 13


def _features(words: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name, spellings in _FEATURES.items() if not spellings.isdisjoint(words))


# -- Linux: /proc, cgroups, sysfs


def cpuinfo(text: str) -> Cpu:
    """`/proc/cpuinfo` of x86 or Arm."""
    processors: list[dict[str, str]] = []
    facts: dict[str, str] = {}
    for key, value in pairs(text):
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
    sizes = {key: size(value) for key, value in pairs(text)}
    total_bytes, available_bytes = sizes.get("MemTotal") or None, sizes.get("MemAvailable")
    if total_bytes is not None and available_bytes is not None and available_bytes > total_bytes:
        available_bytes = None
    return Memory(total_bytes, available_bytes, sizes.get("SwapTotal"))


def cgroup_paths(text: str) -> dict[str, str]:
    """`/proc/self/cgroup`: each version 1 controller's path, and that of version 2 under the empty name."""
    fields = [line.split(":", 2) for line in lines(text)]
    return {name: row[2] for row in fields if len(row) == 3 for name in row[1].split(",")}


def cgroup_bytes(text: str) -> int | None:
    """`memory.max`, `memory.current` and their version 1 names; None where there is no limit."""
    size_bytes = one_number(text)
    return size_bytes if size_bytes is not None and size_bytes < _NO_LIMIT_BYTES else None


def cgroup_reclaimable_bytes(text: str) -> int:
    """`memory.stat`: the file cache, which the kernel drops before it refuses memory; 0 where unknown."""
    sizes = {key: number(value) or 0 for key, value in pairs(text, " ")}
    # version 1 counts the children only in the `total_` rows
    return sum(sizes.get(f"total_{key}", sizes.get(key, 0)) for key in ("active_file", "inactive_file"))


def cgroup_cores(text: str) -> float | None:
    """The quota in cores, from version 2's `cpu.max` ("150000 100000") or version 1's quota and period, joined."""
    words = " ".join(lines(text)).split()
    quota, period = [number(word) for word in words] if len(words) == 2 else (None, None)
    return quota / period if quota and period else None


def one_number(text: str) -> int | None:
    """A file of sysfs or a cgroup that holds one number."""
    found = lines(text)
    return number(found[0].strip()) if len(found) == 1 else None


def cpu_list(text: str) -> tuple[int, ...]:
    """A list of logical processors in sysfs, "0-3,8": empty where any part of it makes no sense."""
    found = lines(text)
    processors: list[int] = []
    for part in found[0].split(",") if len(found) == 1 else []:
        first, _, last = part.partition("-")
        start, end = number(first), number(last or first)
        if start is None or end is None or end >= _MAX_PROCESSORS:
            return ()
        processors += range(start, end + 1)
    return tuple(processors)


def is_wsl(text: str) -> bool:
    """`/proc/sys/kernel/osrelease` ("5.15.167.4-microsoft-standard-WSL2") or `/proc/version`."""
    return "microsoft" in text.lower()


# -- macOS


def sysctl_cpu(text: str) -> Cpu:
    """`sysctl hw machdep.cpu`."""
    facts = dict(pairs(text))
    optional = {key.removeprefix("hw.optional.").removeprefix("arm.") for key in facts if facts[key] == "1"}
    return Cpu(
        model=facts.get("machdep.cpu.brand_string") or None,
        physical_cores=number(facts.get("hw.physicalcpu", "")) or None,
        logical_cores=number(facts.get("hw.logicalcpu", "")) or None,
        performance_cores=number(facts.get("hw.perflevel0.physicalcpu", "")) or None,
        features=_features(optional),
    )


def sysctl_memory(text: str) -> Memory:
    """`sysctl hw`: only the total; what is available is not in there."""
    return Memory(total_bytes=number(dict(pairs(text)).get("hw.memsize", "")) or None)


def wired_limit_bytes(text: str) -> int | None:
    """`sysctl iogpu`: how much memory Metal may wire; 0 means macOS's own choice, so None."""
    limit_mib = number(dict(pairs(text)).get("iogpu.wired_limit_mb", ""))
    return limit_mib << 20 if limit_mib else None


def is_apple_silicon(text: str) -> bool:
    """`sysctl hw` tells it even to a program that is being translated from x86."""
    return dict(pairs(text)).get("hw.optional.arm64") == "1"
