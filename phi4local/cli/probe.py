"""`phi4local probe`: this machine, and what the engine can use of it."""

from __future__ import annotations

import argparse
from typing import Any

from hardware.report import EngineDevice, Gpu, Report, plain
from phi4local.actions.probe import Machine, look, mlx_version
from phi4local.cli import output
from phi4local.units import file_size, memory

_UNKNOWN = "unknown"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    machine = look()
    if args.json:
        output.emit_json(machine_json(machine))
    else:
        show(machine)
    return 0


def machine_json(machine: Machine) -> dict[str, Any]:
    """The report with the engine's build and what is missing."""
    missing = [{"fact": item.fact, "command": item.command} for item in machine.missing]
    return {**machine.report.as_json(), "engine": plain(machine.engine), "mlx": mlx_version(), "missing": missing}


def show(machine: Machine) -> None:
    """The report for people."""
    report = machine.report
    facts = [
        ("System", f"{report.os}, {report.machine}"),
        ("CPU", _cpu(report)),
        ("Memory", _memory(report)),
        *(("Disk", f"{_disk_size(disk.free_bytes)} free for {disk.path}") for disk in report.disks),
        *(("GPU", _gpu(gpu)) for gpu in report.gpus),
    ]
    if not report.gpus:
        facts.append(("GPU", "none found"))
    if machine.engine:
        facts.append(("Engine", f"llama-cpp-python {machine.engine.version}"))
        facts += [("  uses", _device(device)) for device in machine.engine.devices]
    if version := mlx_version():
        facts.append(("MLX", f"mlx-lm {version}"))
    output.record(facts)
    for note in report.notes:
        output.say(f"note: {note}")
    for item in machine.missing:
        output.say(f"missing: {item.fact}\nhint: {item.command}")


def _memory(report: Report) -> str:
    memory = report.memory
    text = f"{_size(memory.available_bytes)} available of {_size(memory.total_bytes)}"
    limit = f", limited to {_size(memory.limit_bytes)} here" if memory.limit_bytes else ""
    swap = f", swap {_size(memory.swap_total_bytes)}" if memory.swap_total_bytes else ""
    return text + limit + swap


def _device(device: EngineDevice) -> str:
    return f"{device.name}, {_size(device.free_bytes)} free of {_size(device.total_bytes)} ({device.description})"


def _cpu(report: Report) -> str:
    cpu = report.cpu
    usable = cpu.usable_cores or cpu.logical_cores
    cores = f"{usable:g} cores" if usable else "cores unknown"
    fast = [f"{cpu.performance_cores} of them fast"] if cpu.performance_cores else []
    return ", ".join([cpu.model or _UNKNOWN, cores, *fast, *cpu.features])


def _gpu(gpu: Gpu) -> str:
    facts = [gpu.name]
    if gpu.unified:
        facts.append("shares the main memory")
        facts += [f"up to {_size(gpu.shared_bytes)} of it"] if gpu.shared_bytes else []
    else:
        facts.append(f"{_size(gpu.free_bytes)} free of {_size(gpu.total_bytes)}")
    if gpu.bandwidth_bytes_per_second:
        facts.append(f"{gpu.bandwidth_bytes_per_second / 1e9:.0f} GB/s")
    facts += [f"driver {gpu.driver}"] if gpu.driver else []
    facts += [f"compute {gpu.compute_capability}"] if gpu.compute_capability else []
    return ", ".join(facts)


def _size(size_bytes: int | None) -> str:
    return _UNKNOWN if size_bytes is None else memory(size_bytes)


def _disk_size(size_bytes: int | None) -> str:
    return _UNKNOWN if size_bytes is None else file_size(size_bytes)
