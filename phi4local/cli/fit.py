"""`phi4local fit`: every build of a model on this machine: memory, where it goes, expected speed, and which to take."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from phi4local.actions.fit import DEFAULT_MODEL, SMALLEST, Fit, fit
from phi4local.actions.fit_mlx import ELSEWHERE
from phi4local.backends.mlx_ask import is_installed
from phi4local.catalog import find_model
from phi4local.cli import output
from phi4local.cli.arguments import add_context
from phi4local.cli.probe import machine_json
from phi4local.fit import HOST, UNKNOWN_BYTES, Room, Use, total
from phi4local.recommend import BuildFit, worth_a_row
from phi4local.units import file_size, memory

_BAR_CELLS = 16
_NAME_CELLS = 11  # a longer name takes the rest from the bars
_HEADS = ("build", "file", "weights", "KV", "comp.", "goes to", "token/s", "")
_KEYS = "w weights  k KV cache  c compute  . free"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        metavar="NAME|PATH",
        help=f"a model, NAME:BUILD, a .gguf file, an MLX folder or one of official weights (default: {DEFAULT_MODEL})",
    )
    add_context(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Ask, and print what fits."""
    answer = fit(args.model, context=args.context, kv_type=args.kv)
    if args.json:
        output.emit_json(fit_json(answer))
    else:
        show(answer, args.model)
    return 0


def fit_json(answer: Fit) -> dict[str, Any]:
    """The contract's object."""
    return {
        "machine": machine_json(answer.machine),
        "model": answer.model,
        "context": answer.context,
        "kv_type": answer.kv_type,
        "rooms": [
            dataclasses.asdict(room) | {"margin_bytes": room.margin_bytes, "usable_bytes": room.usable_bytes}
            for room in answer.rooms
        ],
        "bandwidth_bytes_per_second": answer.bandwidth,
        "builds": [build_json(build) for build in answer.builds],
        "recommended": answer.recommendation.build,
        "why": answer.recommendation.why,
        "beside": answer.recommendation.beside or None,
        "mlx_installed": is_installed(),
        "offer": answer.offer or None,
    }


def build_json(build: BuildFit) -> dict[str, Any]:
    """One build; sizes are of all devices together, and by device under `memory`."""
    use = build.total
    return {
        "build": build.build,
        "format": build.format,
        "file_bytes": build.file_bytes,
        "weights_bytes": use.weights_bytes,
        "kv_bytes": use.kv_bytes,
        "compute_bytes": use.compute_bytes,
        "total_bytes": use.total_bytes,
        "memory": {device: dataclasses.asdict(one) for device, one in build.memory.items()},
        "where": build.where,
        "gpu_layers": build.gpu_layers,
        "most_context": build.most_context,
        "predicted_tps": build.predicted.generation_tps,
        "expected_tps": build.expected.generation_tps,
        "expected_prompt_tps": build.expected.prompt_tps,
        "measured_tps": build.measured.generation_tps,
        "measured_prompt_tps": build.measured.prompt_tps,
        "installed": build.installed,
        "ready_made": bool(build.ready_made),
        "ready_made_file": build.ready_made or None,
        "note": build.note or None,
    }


def show(answer: Fit, asked: str) -> None:
    """The table for people, 80 columns wide; `asked` is how the user called it."""
    for room in answer.rooms:
        output.say(_room(room, answer.bandwidth))
    rows = worth_a_row(answer.builds)
    usable = {
        "gpu": sum(room.usable_bytes for room in answer.rooms if room.device != HOST),
        "split": sum(room.usable_bytes for room in answer.rooms if not room.shares_main),
        "cpu": answer.rooms[0].usable_bytes,
    }
    unit, name = (1 << 30, "GiB") if any(row.total.total_bytes >= 1 << 30 for row in rows) else (1 << 20, "MiB")
    output.heading(f"{answer.model}, context {answer.context} tokens, KV cache {answer.kv_type} (memory in {name})")
    columns = len(_HEADS) - output.is_narrow()  # without the bars
    width = _BAR_CELLS - max(0, max((len(row.build) for row in rows), default=0) - _NAME_CELLS)
    cells = [[*_cells(row, answer, unit), _bar_of(row, usable, width)][:columns] for row in rows]
    output.table(_HEADS[:columns], cells, right=(1, 2, 3, 4, 6))
    output.say(_legend(answer, rows))
    for row in rows:
        if not row.memory:
            output.say(f"{row.build}: {row.note}")
    for line in _mlx_lines(rows, answer.builds):
        output.say(line)
    _show_recommendation(answer, asked)
    for note in answer.machine.report.notes:
        output.say(f"note: {note}")
    for item in answer.machine.missing:
        output.say(f"missing: {item.fact}\nhint: {item.command}")


def _show_recommendation(answer: Fit, asked: str) -> None:
    """Which build, why, and the next command."""
    output.paragraph(f"\n{answer.recommendation.why}.")
    if answer.recommendation.beside:
        output.paragraph(f"{answer.recommendation.beside}.")
    if answer.offer:
        output.say(f"hint: phi4local fit {shlex.quote(asked)} {answer.offer}")
    elif answer.recommendation.build is None and answer.model != SMALLEST:
        output.say(f"hint: phi4local fit {SMALLEST}")
    elif answer.recommendation.build and find_model(answer.model):
        here = any(row.installed and row.build == answer.recommendation.build for row in answer.builds)
        output.say(f"next: phi4local {'chat' if here else 'pull'} {answer.model}:{answer.recommendation.build}")


def _mlx_lines(rows: Sequence[BuildFit], builds: Sequence[BuildFit]) -> list[str]:
    """What is to be said of MLX builds: of all that fit once, of the smallest that does not, of those left out."""
    shown = [row for row in rows if row.format == "mlx" and row.memory]
    fitting = [row for row in shown if row.where != "none" and row.note]
    large = [row for row in shown if row.where == "none"]
    said = [f"MLX: {fitting[0].note}"] if fitting else []
    said += [f"{large[0].build}: {large[0].note}"] if large else []
    return said or [f"MLX builds: {ELSEWHERE}" for row in builds if row.is_astray and row not in rows][:1]


def _room(room: Room, bandwidth: float | None) -> str:
    name = "main memory" if room.device == HOST else room.device
    if room.total_bytes == UNKNOWN_BYTES:
        return f"{name}: its size is unknown, so everything counts as fitting"
    sizes = f"{memory(room.free_bytes)} free of {memory(room.total_bytes)}"
    speed = f", read at {bandwidth / 1e9:.0f} GB/s" if bandwidth and room.device == HOST else ""
    return f"{name}: {sizes}; {memory(room.margin_bytes)} of it stay free{speed}"


def _cells(row: BuildFit, answer: Fit, unit: int) -> list[str]:
    use = row.total
    mark = ">" if row.build == answer.recommendation.build else "*" if row.installed else " "
    place = f"{row.gpu_layers} on card" if row.where == "split" else _PLACES[row.where]
    sizes = [f"{size / unit:.2f}" for size in (use.weights_bytes, use.kv_bytes, use.compute_bytes)]
    return [f"{mark} {row.build}", file_size(row.file_bytes), *sizes, place, _speed(row)]


def _bar_of(row: BuildFit, usable: Mapping[str, int], width: int) -> str:
    """A row's bar, of the cards alone where all layers go to them."""
    cards = {device: use for device, use in row.memory.items() if device != HOST}
    use = total(cards) if row.where == "gpu" else row.total
    return _bar(use, usable.get(row.where, usable["split"]), fits=row.where != "none", width=width)


_PLACES = {"gpu": "card", "cpu": "memory", "none": "nowhere"}


def _speed(row: BuildFit) -> str:
    """What was measured, with the error of the prediction before; or what is expected, marked with a tilde."""
    measured = row.measured.generation_tps
    if measured:
        error = percent(row.predicted.generation_tps, measured)
        return f"{rate(measured)} ({error})" if error else rate(measured)
    return f"~{rate(row.expected.generation_tps)}" if row.expected.generation_tps and row.where != "none" else ""


def percent(predicted: float | None, measured: float | None) -> str:
    """By how much a prediction was off what was measured: `+4 %`."""
    return f"{predicted / measured - 1:+.0%}".replace("%", " %") if predicted and measured else ""


def rate(tps: float) -> str:
    """Tokens per second in three digits."""
    return f"{tps:.0f}" if tps >= 100 else f"{tps:.1f}"


def _bar(use: Use, usable_bytes: int, *, fits: bool, width: int = _BAR_CELLS) -> str:
    """What of the usable memory goes to weights, KV cache and compute, and what stays free; `!` ends one too small."""
    if not usable_bytes or not use.total_bytes:
        return ""
    parts = (("w", use.weights_bytes), ("k", use.kv_bytes), ("c", use.compute_bytes))
    ends, drawn, reached = 0, "", 0
    for letter, size_bytes in parts:
        ends += size_bytes
        cells = min(width, round(ends / usable_bytes * width))
        drawn += letter * (cells - reached)
        reached = max(reached, cells)
    return drawn.ljust(width, ".") if fits else drawn[:-1] + "!"


def _legend(answer: Fit, rows: list[BuildFit]) -> str:
    installed = "  * is here" if any(row.installed for row in rows) else ""
    taken = "> recommended" if answer.recommendation.build else ""
    guessed = "  ~ expected" if any(_speed(row).startswith("~") for row in rows) else ""
    too_large = "  ! too large" if any(row.where == "none" for row in rows) else ""
    return f"{taken}{installed}{guessed}  {_KEYS}{too_large}".strip()
