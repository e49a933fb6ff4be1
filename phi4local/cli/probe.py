"""`phi4local probe`: this machine, and what the engine can use of it."""

from __future__ import annotations

import argparse
from typing import Any

from hardware.report import Gpu, Report, plain
from phi4local.actions.probe import Machine, look
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
    return {**machine.report.as_json(), "engine": plain(machine.engine), "missing": missing}


def show(machine: Machine) -> None:
    """The report for people."""
    report = machine.report
    facts = [
        ("System", f"{report.os}, {report.machine}"),
        ("CPU", _cpu(report)),
        ("Memory", f"{_size(report.memory.available_bytes)} available of {_size(report.memory.total_bytes)}"),
        *(("Disk", f"{_disk_size(disk.free_bytes)} free for {disk.path}") for disk in report.disks),
        *(("GPU", _gpu(gpu)) for gpu in report.gpus),
    ]
    if not report.gpus:
        facts.append(("GPU", "none found"))
    if machine.engine:
        devices = ", ".join(device.name for device in machine.engine.devices)
        facts.append(("Engine", f"llama-cpp-python {machine.engine.version}, uses {devices}"))
    output.record(facts)
    for note in report.notes:
        output.say(f"note: {note}")
    for item in machine.missing:
        output.say(f"missing: {item.fact}\nhint: {item.command}")


def _cpu(report: Report) -> str:
    cpu = report.cpu
    cores = f"{cpu.usable_cores or cpu.logical_cores or _UNKNOWN} cores"
    return ", ".join([cpu.model or _UNKNOWN, cores, *cpu.features])


def _gpu(gpu: Gpu) -> str:
    if gpu.unified:
        return f"{gpu.name}, shares the main memory"
    return f"{gpu.name}, {_size(gpu.free_bytes)} free of {_size(gpu.total_bytes)}"


def _size(size_bytes: int | None) -> str:
    return _UNKNOWN if size_bytes is None else memory(size_bytes)


def _disk_size(size_bytes: int | None) -> str:
    return _UNKNOWN if size_bytes is None else file_size(size_bytes)
