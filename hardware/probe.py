"""Look at this machine. Nothing here raises: what cannot be told is None, and a note says so."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path

import psutil

from hardware import cgroup, gpus, parse
from hardware.report import Cpu, Disk, Gpu, Memory, Report
from hardware.source import Source
from phi4local import units
from phi4local.printing import printable

_LABELS = {
    "model": "The processor's name",
    "physical_cores": "The number of physical cores",
    "logical_cores": "The number of logical cores",
    "usable_cores": "The number of usable cores",
    "total_bytes": "The size of the main memory",
    "available_bytes": "The available memory",
    "swap_total_bytes": "The size of the swap space",
}


def probe(store_folder: Path, *, root: Path = Path("/")) -> Report:
    """Everything about this machine that decides what it can run; models are kept in `store_folder`."""
    source = Source(root)
    darwin = platform.system() == "Darwin"
    # it fails with 1 where one of the three is unknown (`iogpu` on an Intel Mac) and prints the others all the same
    sysctl = source.run("sysctl", "hw", "machdep.cpu", "iogpu", trusted=(0, 1)) if darwin else ""
    cpu = _cpu(source, parse.sysctl_cpu(sysctl) if darwin else parse.cpuinfo(source.read("proc/cpuinfo")))
    memory = _memory(source, parse.sysctl_memory(sysctl) if darwin else parse.meminfo(source.read("proc/meminfo")))
    cards = gpus.mac(source, sysctl) if darwin else gpus.linux(source)
    disk = _disk(source, store_folder)
    if parse.is_apple_silicon(sysctl) and platform.machine() != "arm64":
        source.note("This Python is an x86 program that macOS translates; an arm64 Python is several times faster")
    if parse.is_wsl(source.read("proc/sys/kernel/osrelease") or source.read("proc/version")):
        source.note("This is WSL: its memory is what `.wslconfig` in Windows grants, not all that the machine has")
    _note_unknowns(source, cpu, memory, cards)
    return Report(_os_name(darwin), platform.machine(), cpu, memory, (disk,), cards, tuple(source.notes))


def probe_memory(*, root: Path = Path("/")) -> Memory:
    """The main memory alone, which takes no outside tool."""
    source = Source(root)
    return _memory(source, parse.meminfo(source.read("proc/meminfo")))


def _os_name(darwin: bool) -> str:
    return f"macOS {platform.mac_ver()[0]}" if darwin else f"{platform.system()} {platform.release()}"


def _cpu(source: Source, cpu: Cpu) -> Cpu:
    logical_cores = cpu.logical_cores or os.cpu_count()
    return replace(
        cpu,
        model=printable(cpu.model) if cpu.model else None,
        physical_cores=cpu.physical_cores or _physical_cores(),
        logical_cores=logical_cores,
        usable_cores=_usable_cores(source, logical_cores),
        performance_cores=cpu.performance_cores or _performance_cores(source),
    )


def _performance_cores(source: Source) -> int | None:
    """Of Intel's hybrids, which Linux lists as one kind of processor each; threads of one core name the same list."""
    processors = parse.cpu_list(source.read("sys/devices/cpu_core/cpus"))
    folders = [f"sys/devices/system/cpu/cpu{processor}/topology" for processor in processors]
    cores = {source.read(f"{folder}/thread_siblings_list") for folder in folders}
    return len(cores) if cores and "" not in cores else None


def _physical_cores() -> int | None:
    try:
        return psutil.cpu_count(logical=False)
    except (OSError, RuntimeError, ValueError, psutil.Error):
        return None


def _usable_cores(source: Source, logical_cores: int | None) -> float | None:
    try:
        allowed = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # no such question on macOS
        allowed = None
    bounds = (allowed or logical_cores, cgroup.cores(source))
    return min((float(bound) for bound in bounds if bound), default=None)


def _memory(source: Source, memory: Memory) -> Memory:
    memory = _completed(memory)
    limit_bytes, left_bytes = cgroup.memory(source)
    if limit_bytes is None or (memory.total_bytes is not None and limit_bytes >= memory.total_bytes):
        return memory
    whole = f"this machine's {units.memory(memory.total_bytes)}" if memory.total_bytes else "this machine's memory"
    source.note(f"A container or service may use only {units.memory(limit_bytes)} of {whole}")
    available = [size for size in (memory.available_bytes, left_bytes) if size is not None]
    return replace(memory, limit_bytes=limit_bytes, available_bytes=min(available, default=None))


def _completed(memory: Memory) -> Memory:
    """Ask psutil for what the system's own text did not say."""
    if None in (memory.total_bytes, memory.available_bytes, memory.swap_total_bytes):
        try:
            main, swap = psutil.virtual_memory(), psutil.swap_memory()
        except (OSError, RuntimeError, ValueError, KeyError, psutil.Error):
            return memory
        total_bytes = memory.total_bytes or main.total
        available_bytes = main.available if memory.available_bytes is None else memory.available_bytes
        swap_bytes = swap.total if memory.swap_total_bytes is None else memory.swap_total_bytes
        return Memory(total_bytes, available_bytes, swap_bytes)
    return memory


def _disk(source: Source, folder: Path) -> Disk:
    try:
        folder = folder.absolute()
        for existing in (folder, *folder.parents):
            try:
                usage = shutil.disk_usage(existing)
            except (FileNotFoundError, NotADirectoryError):
                continue
            return Disk(folder, usage.total, usage.free)
    except (OSError, ValueError) as error:
        source.note(f"The disk of `{folder}` does not answer: {error}")
    return Disk(folder)


def _note_unknowns(source: Source, cpu: Cpu, memory: Memory, cards: tuple[Gpu, ...]) -> None:
    for facts in (cpu, memory):
        for field in dataclasses.fields(facts):
            if field.name in _LABELS and getattr(facts, field.name) is None:
                source.note(f"{_LABELS[field.name]} is unknown")
    for card in cards:
        if card.total_bytes is None and not card.unified:
            source.note(f"{card.name} does not tell how much memory it has")
