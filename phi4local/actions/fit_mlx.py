"""MLX builds on this machine: what they take by arithmetic, because MLX cannot be asked about weights that are absent.

The cache is made whole when a model is loaded, so weights, cache and a step's buffers together must stay within what
Metal may use: a Mac whose wired memory grows past that can stop as a whole.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hardware.probe import probe, probe_memory
from hardware.report import Gpu, Report
from phi4local.backends.load_settings import whole_context
from phi4local.backends.mlx_ask import INSTALL, is_installed
from phi4local.errors import Phi4LocalError
from phi4local.fit import (
    LEAST_CONTEXT,
    OFFERED_SHARE,
    UNKNOWN_BYTES,
    Memory,
    Placement,
    Room,
    Use,
    most_context,
    overflow,
)
from phi4local.recommend import BuildFit
from phi4local.settings import home_folder
from phi4local.speed import Benchmark, corrected, mlx_place_of, predict_streaming
from phi4local.units import memory as memory_text
from quant.config import Config, read_values
from quant.mlx import BUILDS, ITEM_BYTES, KV_BITS, Shape, shape_of
from quant.mlx_size import compute_bytes, is_possible, item_bytes_of, kv_bytes, read_share, weights_bytes
from quant.names import source_shapes
from quant.safetensors import Record, read_shard

ELSEWHERE = "on the processor only, slowly: Apple Silicon is what MLX is for"
_EMBEDDING = "model.embed_tokens."


@dataclass(frozen=True, slots=True)
class Ground:
    """What MLX would run on: the main memory and, on Apple Silicon, behind it what Metal may use of that.

    `bandwidth` is of Metal's memory in bytes per second.
    """

    rooms: tuple[Room, ...]
    bandwidth: int | None = None

    @property
    def is_metal(self) -> bool:
        return len(self.rooms) > 1


@dataclass(frozen=True, slots=True)
class Asked:
    """A model with its shape, context and KV type, the ground, and what was measured; `key` is what benchmarks say."""

    config: Shape
    context: int
    kv_type: str
    ground: Ground
    key: str
    benchmarks: Sequence[Benchmark] = ()


def apple_gpu(report: Report) -> Gpu | None:
    """The graphics processor of Apple Silicon."""
    return next((gpu for gpu in report.gpus if gpu.vendor == "apple" and gpu.unified), None)


def ground_of(report: Report | None, rooms: Sequence[Room]) -> Ground:
    """The ground from the engine's rooms; no report: it is no Mac.

    Metal's limit is the engine's number, which knows `iogpu.wired_limit_mb`; without one what the probe told.
    """
    apple = apple_gpu(report) if report else None
    if apple is None:
        return Ground((rooms[0],))
    known = next((room for room in rooms if room.shares_main), None)
    limit = UNKNOWN_BYTES if apple.shared_bytes is None else apple.shared_bytes
    metal = known or Room("Metal", limit, limit, shares_main=True)
    return Ground((rooms[0], metal), apple.bandwidth_bytes_per_second)


def mlx_room_bytes() -> int:
    """What MLX may use here now: of the main memory, and on Apple Silicon of what Metal may use of it, the smaller."""
    from phi4local.actions.fit import main_room  # which imports this module

    report = probe(home_folder()) if sys.platform == "darwin" else None
    main = main_room(report.memory if report else probe_memory())
    return min(room.usable_bytes for room in ground_of(report, [main]).rooms)


def shape_of_folder(path: Path) -> Shape:
    """The shape of the model in a folder (NotFound, FormatError)."""
    return shape_of(read_values(path))


def mlx_rows(asked: Asked, names: Sequence[str], files: Mapping[str, Path]) -> list[BuildFit]:
    """A row for each of these builds, those that are here by their files."""
    return [folder_row(asked, name, files[name]) if name in files else _row(asked, name) for name in names]


def folder_row(asked: Asked, name: str, path: Path) -> BuildFit:
    """By the headers of its files; what cannot be read takes no memory and says why."""
    try:
        size_bytes = sum(file.stat().st_size for file in path.iterdir())
        records = [record for file in sorted(path.glob("model*.safetensors")) for record in read_shard(file).records]
    except Phi4LocalError as error:
        return BuildFit(name, "mlx", 0, {}, "none", installed=True, note=error.message)
    except OSError as error:
        return BuildFit(name, "mlx", 0, {}, "none", installed=True, note=f"It cannot be read: {error.strerror}")
    if missing := _missing(asked.config, records):
        return BuildFit(name, "mlx", size_bytes, {}, "none", installed=True, note=missing)
    weights = sum(record.size_bytes for record in records)
    table = sum(record.size_bytes for record in records if record.name.startswith(_EMBEDDING))
    found = _placed(asked, name, weights, weights - (0 if asked.config.tied else table), item_bytes_of(records))
    return replace(found, file_bytes=size_bytes, installed=True)


def _missing(config: Shape, records: Sequence[Record]) -> str:
    """What a folder lacks of its model, in words; nothing where all tensors are there."""
    if not records:
        return "It holds no weights"
    names = {record.name for record in records}
    lost = next((name for name in source_shapes(config) if name not in names), None)
    return f"Weights are missing, such as `{lost}`" if lost else ""


def kv_types(config: Shape) -> tuple[str, ...]:
    """The types that MLX can keep a model's cache in, the largest first."""
    return tuple(KV_BITS) if isinstance(config, Config) else ("f16",)


def mlx_offer(asked: Asked, names: Sequence[str], files: Mapping[str, Path]) -> str:
    """Arguments with which the smallest of these builds fits, where there are any: a KV type that MLX has, a context.

    Free memory is never the same twice: what is offered must still fit when the user has typed it.
    """
    known = kv_types(asked.config)
    kv_type = asked.kv_type if asked.kv_type in known else "q8_0" if "q8_0" in known else "f16"
    rooms = tuple(replace(room, free_bytes=int(room.free_bytes * OFFERED_SHARE)) for room in asked.ground.rooms)
    least = replace(
        asked,
        kv_type=kv_type,
        context=min(asked.context, LEAST_CONTEXT),
        ground=replace(asked.ground, rooms=rooms),
    )
    rows = [row for row in mlx_rows(least, names, files) if row.memory]
    smallest = min(rows, key=lambda row: row.file_bytes, default=None)
    if smallest is None or smallest.where == "none":
        return ""
    is_usual = kv_type == asked.kv_type == "f16"
    return f"{'' if is_usual else f'--kv {kv_type} '}--context {min(asked.context, smallest.most_context)}"


def possible_builds(config: Shape) -> list[str]:
    """The builds that can be made of a model."""
    return [name for name, recipe in BUILDS.items() if is_possible(config, recipe)]


def _row(asked: Asked, name: str) -> BuildFit:
    recipe = BUILDS[name]
    weights = weights_bytes(asked.config, recipe)
    found = _placed(asked, name, weights, round(weights * read_share(asked.config, recipe)))
    return replace(found, file_bytes=weights)


def _placed(asked: Asked, name: str, weights: int, read: int, item_bytes: int = ITEM_BYTES) -> BuildFit:
    """Where a build with so many bytes of weights goes, and how fast it will be; `item_bytes` as for `kv_bytes`."""
    ground, config = asked.ground, asked.config
    if asked.kv_type not in kv_types(config):
        return BuildFit(name, "mlx", 0, {}, "none", note=f"MLX keeps no cache of type {asked.kv_type}")
    device, layers = ground.rooms[-1].device, config.layers + 1 if ground.is_metal else 0

    def ask(_layers: int, context: int) -> Memory:
        whole = whole_context(context)
        compute = compute_bytes(config, whole, fused=ground.is_metal, item_bytes=item_bytes)
        return {device: Use(weights, kv_bytes(config, whole, asked.kv_type, item_bytes), compute)}

    memory = ask(layers, asked.context)
    short = overflow(memory, ground.rooms)
    place = Placement("none" if short else "gpu" if ground.is_metal else "cpu", layers, memory, short)
    found = BuildFit(
        build=name,
        format="mlx",
        file_bytes=0,
        memory=memory,
        where=place.where,
        gpu_layers=layers,
        short_bytes=short,
        most_context=0 if short else most_context(ask, place, config.context, ground.rooms, known=asked.context),
        note=_note(ground, place),
        is_astray=not ground.is_metal,
    )
    return found if short else _timed(asked, found, place, read)


def _timed(asked: Asked, found: BuildFit, place: Placement, read: int) -> BuildFit:
    """With what the memory's bandwidth lets expect, and what was measured."""
    where = mlx_place_of(place)
    predicted = predict_streaming(read, asked.ground.bandwidth)
    here = [one for one in asked.benchmarks if (one.name, one.build, one.where) == (asked.key, found.build, where)]
    found = replace(
        found, predicted=predicted, expected=corrected(predicted, asked.key, found.build, where, asked.benchmarks)
    )
    return replace(found, measured=here[-1].measured) if here else found


def _note(ground: Ground, place: Placement) -> str:
    """What a number cannot say of a row."""
    if place.short_bytes:
        needed, limit = place.total.total_bytes, min(room.usable_bytes for room in ground.rooms)
        whose = "Metal may use here now" if ground.is_metal else "is free here now"
        return f"does not fit: it needs {memory_text(needed)} of the {memory_text(limit)} that {whose}"
    return "; ".join(
        ([] if ground.is_metal else [ELSEWHERE]) + ([] if is_installed() else [f"not installed yet: {INSTALL}"])
    )
