"""Will it fit, and how fast: every build of a model on this machine, as the engine itself says."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hardware.probe import probe, probe_memory
from hardware.report import EngineBuild, Memory, Report
from phi4local.actions.probe import Machine, missing
from phi4local.backends.safe_mode import machine_and_build
from phi4local.backends.survey import Question, Survey, Surveyed, Wanted, survey
from phi4local.catalog import Model, find_model, model_name, models
from phi4local.engine import DEFAULT_CONTEXT_TOKENS
from phi4local.errors import NotFound, Phi4LocalError, UsageError
from phi4local.fit import HOST, LEAST_CONTEXT, OFFERED_SHARE, UNKNOWN_BYTES, Placement, Room, choose_cards, overflow
from phi4local.fit import Use as Taken
from phi4local.measured import Measured, keep_rates, read_measured
from phi4local.recommend import BuildFit, Recommendation, recommend
from phi4local.settings import home_folder, state_folder
from phi4local.speed import Work, bandwidth, corrected, place_of, predict
from phi4local.store import builds
from quant import mlx
from quant.config import Config, read_config
from quant.ggml import BUILDS
from quant.metadata import config_of
from quant.sound import read_model_header

_MLX_BUILDS = {f"mlx-{bits}bit": bits for bits in mlx.BITS}
DEFAULT_MODEL, SMALLEST = "phi-4", "phi-4-mini"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked about: a model, its shape where it is known, what a header of it takes, and the files here."""

    name: str
    config: Config | None
    header_bytes: int
    files: dict[str, Path]
    build: str = ""  # the only one that is asked about
    key: str = ""  # what benchmarks of it are remembered by, where that is not its name


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer. `rooms` are the engine's devices with their free memory and margins, the main memory first."""

    machine: Machine
    model: str
    context: int
    trained: int
    kv_type: str
    rooms: tuple[Room, ...]
    builds: tuple[BuildFit, ...]
    recommendation: Recommendation
    bandwidth: float | None = None  # of the main memory as measured, in bytes per second
    offer: str = ""  # arguments with which something fits, where nothing does without


def fit(name: str, *, context: int | None = None, kv_type: str = "f16", replaced: dict[str, int] | None = None) -> Fit:
    """Every build of a model: a name of the catalogue or of the store, a .gguf file, or a folder of official weights.

    `replaced`: what a model that is loaded now holds, by device, where that will be closed before.
    (NotFound, UsageError, FormatError, BackendError)
    """
    subject = find_subject(name)
    if context and subject.config and context > subject.config.context:
        raise UsageError(
            f"A context of {context} tokens is asked for; the model was trained for {subject.config.context}",
            hint=f"Choose `--context` up to {subject.config.context}",
        )
    report = probe(home_folder())
    main, wanted = main_room(report.memory), wanted_builds(subject)
    question = Question(subject.config, wanted, main, context, kv_type, replaced or {})
    found, measured = ask(question)
    if found.problems and not found.builds:
        raise found.problems[0][1]
    answer = _fit(subject, report, found, measured, kv_type)
    if answer.recommendation.build is None:
        return replace(answer, offer=_offer(question, answer))
    return answer


def fit_files(
    files: dict[str, Path], context: int | None, kv_type: str, replaced: dict[str, int] | None = None
) -> Recommendation:
    """Which of the builds that are here to take, once a model that holds `replaced` is closed (BackendError)."""
    wanted = tuple(Wanted(build, path=path) for build, path in files.items())
    main = main_room(probe_memory())
    found = survey(Question(None, wanted, main, context, kv_type, replaced or {}), state_folder()).builds
    return recommend([_placed(one, one.tensor_bytes) for one in found], found[0].context if found else 0)


def ask(question: Question) -> tuple[Survey, Measured]:
    """Put a question to the engine; the first one on a machine measures its rates on the way."""
    engine = machine_and_build()
    measured = read_measured(engine)
    found = survey(replace(question, calibrate=question.calibrate or measured.rates is None), state_folder())
    return found, keep_rates(engine, found.rates) if found.rates else measured


def main_room(memory: Memory) -> Room:
    """The main memory that a model may use: what is available now, within the container's limit."""
    total_bytes = memory.limit_bytes or memory.total_bytes or UNKNOWN_BYTES
    available_bytes = memory.available_bytes
    return Room(HOST, total_bytes, total_bytes if available_bytes is None else available_bytes)


def find_subject(name: str) -> Subject:
    """What the user means (NotFound, FormatError, UsageError)."""
    if name.endswith(".gguf") and (os.path.isfile(name) or "/" in name):  # noqa: PTH113  never raises
        return _file(Path(name))
    if "/" in name and os.path.isdir(name):  # noqa: PTH112  never raises
        return _folder(Path(name))
    title, _, build = name.partition(":")
    stored, model = builds(), find_model(title)
    names = {title.lower(), model.name if model else title.lower()}
    here = {one.manifest.build: one.path for one in stored if one.manifest.name.lower() in names}
    if model is not None and model.config is None and not here:
        raise cannot_run(model)
    if model is not None and model.config is not None:
        return _narrowed(Subject(model.name, model.config, model.header_bytes, here), build)
    if not here and os.path.isdir(name):  # noqa: PTH112  the store's names come first
        return _folder(Path(name))
    if not here:
        known = [model.name for model in models()] + [one.manifest.name for one in stored]
        near = difflib.get_close_matches(title.lower(), known, 1, 0.5)
        raise NotFound(
            f"No model called `{title}` is known", hint=f"phi4local fit {near[0] if near else DEFAULT_MODEL}"
        )
    return _narrowed(_stored(title, here), build)


def cannot_run(model: Model) -> UsageError:
    """Why a model of the family cannot be had here."""
    state = model.runtimes.get("llama.cpp", "nobody has tried")
    return UsageError(f"{model.name} does not run here. llama.cpp: {state}", hint=f"phi4local show {model.name}")


def _narrowed(subject: Subject, build: str) -> Subject:
    """One build of a model, where NAME:BUILD was said."""
    known = {name.lower(): name for name in (*BUILDS, *_MLX_BUILDS, *subject.files)}
    if build and build.lower() not in known:
        raise UsageError(f"No build called `{build}`", hint=f"One of {', '.join(BUILDS)}")
    return replace(subject, build=known.get(build.lower(), ""))


def _folder(folder: Path) -> Subject:
    """Official weights; how long the header of a build gets is told by a model with the same vocabulary."""
    config = read_config(folder)
    known = (model for model in models() if model.config and model.config.vocabulary == config.vocabulary)
    alike = (model.header_bytes for model in known)
    return Subject(model_name(folder, config), config, next(alike, 0), {})


def _file(path: Path) -> Subject:
    if not os.path.isfile(path):  # noqa: PTH113  never raises
        raise NotFound(f"No file `{path}`", hint=f"phi4local fit {DEFAULT_MODEL}")
    header = read_model_header(path)
    return Subject(path.name, None, header.data_offset, {path.name: path}, key=str(path.absolute()))


def _stored(name: str, files: dict[str, Path]) -> Subject:
    """A model that only the store knows: its shape is read from one of its builds."""
    header = read_model_header(next(iter(files.values())))
    return Subject(name.lower(), config_of(header), header.data_offset, files)


def wanted_builds(subject: Subject) -> tuple[Wanted, ...]:
    """Every build that can be asked about, those that are here by their files."""
    model = find_model(subject.name)
    published = model.described if model else {}
    names = dict.fromkeys((*subject.files, *(BUILDS if subject.config else ())))
    wanted = (Wanted(name, name in published, subject.files.get(name)) for name in names)
    return tuple(one for one in wanted if subject.build in ("", one.build))


def _fit(subject: Subject, report: Report, found: Survey, measured: Measured, kv_type: str) -> Fit:
    rows = [_row(subject, one, report, found.engine, measured) for one in found.builds]
    rows += [_problem(subject, name, error) for name, error in found.problems]
    context = found.builds[0].context if found.builds else _usual_context(subject)
    trained = found.builds[0].trained if found.builds else 0
    if subject.config is not None and subject.build in ("", *_MLX_BUILDS):
        rows += [row for row in _mlx_rows(subject.config, context, report, found) if subject.build in ("", row.build)]
    machine = Machine(report, found.engine, missing(report, found.engine))
    rows.sort(key=lambda row: row.file_bytes)
    return Fit(
        machine,
        subject.name,
        context,
        trained,
        kv_type,
        found.rooms,
        tuple(rows),
        recommend(rows, context),
        bandwidth(measured.rates) if measured.rates else None,
    )


def _row(subject: Subject, one: Surveyed, report: Report, engine: EngineBuild, measured: Measured) -> BuildFit:
    path = subject.files.get(one.build)
    place = one.placement
    where = place_of(place)
    predicted = predict(measured.rates, one.work, place, bandwidths(report, engine))
    name = subject.key or subject.name
    here = [
        bench for bench in measured.benchmarks if (bench.name, bench.build, bench.where) == (name, one.build, where)
    ]
    file_bytes = _file_bytes(path) or one.tensor_bytes + subject.header_bytes
    row = replace(_placed(one, file_bytes), installed=path is not None, ready_made=_ready_made(subject, one.build))
    if place.where == "none":
        return row
    expected = corrected(predicted, name, one.build, where, measured.benchmarks)
    row = replace(row, predicted=predicted, expected=expected)
    return replace(row, measured=here[-1].measured) if here else row


def _file_bytes(path: Path | None) -> int:
    """The size of a build that is here; 0 where it is not, or was removed while the engine was asked."""
    try:
        return path.stat().st_size if path else 0
    except OSError:
        return 0


def _placed(one: Surveyed, file_bytes: int) -> BuildFit:
    """Where a build goes, without its speed."""
    place = one.placement
    return BuildFit(
        build=one.build,
        format="gguf",
        file_bytes=file_bytes,
        memory=place.memory,
        where=place.where,
        gpu_layers=place.gpu_layers,
        short_bytes=place.short_bytes,
        most_context=one.most_context,
    )


def _ready_made(subject: Subject, build: str) -> str:
    model = find_model(subject.name)
    published = model.ready.get(build) if model else None
    return f"{published[0].repository}/{published[0].file}" if published else ""


def _usual_context(subject: Subject) -> int:
    return min(DEFAULT_CONTEXT_TOKENS, subject.config.context) if subject.config else DEFAULT_CONTEXT_TOKENS


def _problem(subject: Subject, build: str, error: Phi4LocalError) -> BuildFit:
    path = subject.files.get(build)
    size_bytes = _file_bytes(path)
    ready = _ready_made(subject, build)
    return BuildFit(
        build, "gguf", size_bytes, {}, "none", installed=path is not None, ready_made=ready, note=error.message
    )


def bandwidths(report: Report, engine: EngineBuild) -> dict[str, int]:
    """Of the engine's cards, as far as the report knows them: by bus, else by name, else as the only one."""
    found: dict[str, int] = {}
    devices = choose_cards(engine.devices)
    for device in devices:
        same = [gpu for gpu in report.gpus if gpu.bus_id and gpu.bus_id == device.bus_id]
        same = same or [gpu for gpu in report.gpus if gpu.name and gpu.name in device.description]
        same = same or (list(report.gpus) if len(report.gpus) == len(devices) == 1 else [])
        if same and same[0].bandwidth_bytes_per_second:
            found[device.name] = same[0].bandwidth_bytes_per_second
    return found


def _mlx_rows(config: Config, context: int, report: Report, found: Survey) -> Iterator[BuildFit]:
    """MLX builds by arithmetic: they run on Apple's cards alone, and are not recommended before they run here."""
    apple = next((gpu for gpu in report.gpus if gpu.vendor == "apple" and gpu.unified), None)
    metal = [room for room in found.rooms if room.shares_main]
    shared = Room("Metal", (apple.shared_bytes or 0), (apple.shared_bytes or 0), shares_main=True) if apple else None
    card = metal[0] if metal else shared
    for name, bits in _MLX_BUILDS.items():
        weights = mlx.weights_bytes(config, bits)
        use = Taken(weights, mlx.kv_bytes(config, context), mlx.compute_bytes(config))
        memory = {card.device if card else "Metal": use}
        short_bytes = overflow(memory, [found.rooms[0], card]) if apple and card else use.total_bytes
        placement = Placement("none" if short_bytes else "gpu", config.layers + 1, memory, short_bytes)
        speeds = {card.device: apple.bandwidth_bytes_per_second or 0} if apple and card and not short_bytes else {}
        yield BuildFit(
            build=name,
            format="mlx",
            file_bytes=weights,
            memory=memory,
            where=placement.where,
            gpu_layers=placement.gpu_layers if apple else 0,
            short_bytes=short_bytes,
            predicted=predict(
                None, Work(0, {}, {}), placement, {device: speed for device, speed in speeds.items() if speed}
            ),
            note="by arithmetic" if apple else "runs on Apple Silicon only",
        )


def _offer(question: Question, answer: Fit) -> str:
    """Arguments with which the smallest build fits: a smaller KV type first, then a smaller context."""
    told = [row for row in answer.builds if row.memory and row.format == "gguf"]
    if not told:
        return ""
    smallest = min(told, key=lambda row: row.file_bytes)
    wanted = tuple(one for one in question.builds if one.build == smallest.build)
    small_types = ["q8_0"] if answer.kv_type in ("f16", "f32") else []
    wishes = [(kv_type, answer.context) for kv_type in small_types]
    wishes += [(kv_type, LEAST_CONTEXT) for kv_type in (answer.kv_type, *small_types)]
    # Free memory is never the same twice: what is offered must still fit when the user has typed it.
    main = replace(question.main, free_bytes=int(question.main.free_bytes * OFFERED_SHARE))
    for kv_type, context in wishes:
        asked = replace(question, main=main, builds=wanted, kv_type=kv_type, context=min(context, answer.trained))
        found = survey(asked, state_folder()).builds
        if found and found[0].placement.where != "none":
            fitting = min(answer.context, found[0].most_context)
            return f"{'' if kv_type == 'f16' else f'--kv {kv_type} '}--context {fitting}"
    return ""
