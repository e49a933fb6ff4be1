"""Will it fit, and how fast: every build of a model on this machine, as the engine itself says."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hardware.probe import probe, probe_memory
from hardware.report import EngineBuild, Memory, Report
from phi4local.actions.fit_mlx import (
    Asked,
    folder_row,
    ground_of,
    mlx_offer,
    mlx_rows,
    possible_builds,
    shape_of_folder,
)
from phi4local.actions.probe import Machine, missing
from phi4local.backends.safe_mode import machine_and_build
from phi4local.backends.survey import Question, Survey, Surveyed, Wanted, survey
from phi4local.catalog import Model, find_model, model_name, models
from phi4local.engine import DEFAULT_CONTEXT_TOKENS
from phi4local.errors import NotFound, Phi4LocalError, UsageError
from phi4local.fit import HOST, LEAST_CONTEXT, OFFERED_SHARE, UNKNOWN_BYTES, Room, choose_cards
from phi4local.measured import Measured, keep_rates, read_measured
from phi4local.recommend import BuildFit, Recommendation, recommend
from phi4local.settings import home_folder, state_folder
from phi4local.speed import Benchmark, bandwidth, corrected, place_of, predict
from phi4local.store import builds, read_manifest
from quant.config import Config, read_config
from quant.flash import FlashConfig
from quant.ggml import BUILDS
from quant.metadata import config_of
from quant.mlx import Shape, is_mlx_folder
from quant.sound import read_model_header

DEFAULT_MODEL, SMALLEST = "phi-4", "phi-4-mini"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked about: a model, its shape as far as a GGUF and an MLX build can be made of it, what a GGUF's header
    takes, and the builds that are here: GGUFs under `files`, MLX builds under `folders`.
    """

    name: str
    config: Config | None
    header_bytes: int
    files: dict[str, Path]
    build: str = ""  # the only one that is asked about
    key: str = ""  # what benchmarks of it are remembered by, where that is not its name
    shape: Shape | None = None
    folders: dict[str, Path] = field(default_factory=dict)

    @property
    def mlx_builds(self) -> list[str]:
        """Those that can be asked about, or the one that is."""
        names = dict.fromkeys((*self.folders, *(possible_builds(self.shape) if self.shape and not self.key else ())))
        return [name for name in names if self.build in ("", name)]


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
    shape = subject.config or subject.shape
    if context and shape and context > shape.context:
        raise UsageError(
            f"A context of {context} tokens is asked for; the model was trained for {shape.context}",
            hint=f"Choose `--context` up to {shape.context}",
        )
    report = probe(home_folder())
    main, wanted = main_room(report.memory), wanted_builds(subject)
    question = Question(subject.config, wanted, main, context, kv_type, replaced or {})
    found, measured = ask(question)
    if found.problems and not found.builds and not subject.mlx_builds:
        raise found.problems[0][1]
    answer = _fit(subject, report, found, measured, question)
    if answer.recommendation.build is None:
        return replace(answer, offer=_offer(subject, question, answer))
    return answer


def fit_files(
    files: dict[str, Path], context: int | None, kv_type: str, replaced: dict[str, int] | None = None
) -> Recommendation:
    """Which of the builds that are here to take, once a model that holds `replaced` is closed (BackendError)."""
    folders = {build: path for build, path in files.items() if is_mlx_folder(path)}
    wanted = tuple(Wanted(build, path=path) for build, path in files.items() if build not in folders)
    question = Question(None, wanted, main_room(probe_memory()), context, kv_type, replaced or {})
    found = survey(question, state_folder())
    rows = [_placed(one, one.tensor_bytes) for one in found.builds]
    asked = context or (found.builds[0].context if found.builds else 0)
    if folders:
        name = read_manifest(next(iter(folders.values()))).name
        known = read_measured(machine_and_build()).benchmarks
        rows = [_measured(row, name, place_of(row), known) for row in rows]
        ground = ground_of(probe(home_folder()) if sys.platform == "darwin" else None, found.rooms)
        for build, path in folders.items():
            with contextlib.suppress(Phi4LocalError):  # a damaged one is not to be chosen
                shape = shape_of_folder(path)
                asked = asked or min(DEFAULT_CONTEXT_TOKENS, shape.context)
                row = folder_row(Asked(shape, asked, kv_type, ground, name, known), build, path)
                rows.append(replace(row, is_astray=False))  # it is here, and runs
    return recommend(rows, asked)


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
    if "/" in name and os.path.isdir(name):  # noqa: PTH112  never raises
        return _folder(Path(name))
    if name.endswith(".gguf") and (os.path.isfile(name) or "/" in name):  # noqa: PTH113  never raises
        return _file(Path(name))
    title, _, build = name.partition(":")
    stored, model = builds(), find_model(title)
    names = {title.lower(), model.name if model else title.lower()}
    here = {one.manifest.build: one for one in stored if one.manifest.name.lower() in names}
    folders = {build: one.path for build, one in here.items() if one.manifest.format == "mlx"}
    files = {build: one.path for build, one in here.items() if build not in folders}
    if model is not None and model.shape is None and not here:
        raise cannot_run(model)
    if model is not None and model.shape is not None:
        subject = Subject(model.name, model.config, model.header_bytes, files, shape=model.shape, folders=folders)
        return _narrowed(subject, build)
    if not here and os.path.isdir(name):  # noqa: PTH112  the store's names come first
        return _folder(Path(name))
    if not here:
        known = [model.name for model in models()] + [one.manifest.name for one in stored]
        near = difflib.get_close_matches(title.lower(), known, 1, 0.5)
        raise NotFound(
            f"No model called `{title}` is known", hint=f"phi4local fit {near[0] if near else DEFAULT_MODEL}"
        )
    return _narrowed(_stored(title, files, folders), build)


def cannot_run(model: Model) -> UsageError:
    """Why a model of the family cannot be had here."""
    state = model.runtimes.get("llama.cpp", "nobody has tried")
    return UsageError(f"{model.name} does not run here. llama.cpp: {state}", hint=f"phi4local show {model.name}")


def _narrowed(subject: Subject, build: str) -> Subject:
    """One build of a model, where NAME:BUILD was said."""
    makeable = (*(BUILDS if subject.config else ()), *(possible_builds(subject.shape) if subject.shape else ()))
    known = {name.lower(): name for name in (*makeable, *subject.files, *subject.folders)}
    if build and build.lower() not in known:
        raise UsageError(f"No build called `{build}`", hint=f"One of {', '.join(known.values())}")
    return replace(subject, build=known.get(build.lower(), ""))


def _folder(folder: Path) -> Subject:
    """Official weights; how long the header of a build gets is told by a model with the same vocabulary."""
    shape = shape_of_folder(folder)
    if is_mlx_folder(folder):
        key, name = str(folder.absolute()), folder.resolve().name
        return Subject(name, None, 0, {}, name, key, shape, {name: folder})
    if isinstance(shape, FlashConfig):
        return Subject(model_name(folder, shape), None, 0, {}, shape=shape)
    config = read_config(folder)
    known = (model for model in models() if model.config and model.config.vocabulary == config.vocabulary)
    alike = (model.header_bytes for model in known)
    return Subject(model_name(folder, config), config, next(alike, 0), {}, shape=config)


def _file(path: Path) -> Subject:
    if not os.path.isfile(path):  # noqa: PTH113  never raises
        raise NotFound(f"No file `{path}`", hint=f"phi4local fit {DEFAULT_MODEL}")
    header = read_model_header(path)
    return Subject(path.name, None, header.data_offset, {path.name: path}, key=str(path.absolute()))


def _stored(name: str, files: dict[str, Path], folders: dict[str, Path]) -> Subject:
    """A model that only the store knows: its shape is read from the first of its builds that can be read."""
    problems: list[Phi4LocalError] = []
    for path in (*files.values(), *folders.values()):
        try:
            known, header_bytes = _shape_of(path)
        except Phi4LocalError as error:
            problems.append(error)
            continue
        config = known if isinstance(known, Config) else None
        return Subject(name.lower(), config, header_bytes, files, shape=known, folders=folders)
    raise problems[0]


def _shape_of(path: Path) -> tuple[Shape | None, int]:
    """The shape of the model in a build, and what a GGUF's header takes (NotFound, FormatError)."""
    if path.is_dir():
        return shape_of_folder(path), 0
    header = read_model_header(path)
    return config_of(header), header.data_offset


def wanted_builds(subject: Subject) -> tuple[Wanted, ...]:
    """Every build that can be asked about, those that are here by their files."""
    model = find_model(subject.name)
    published = model.described if model else {}
    names = dict.fromkeys((*subject.files, *(BUILDS if subject.config else ())))
    wanted = (Wanted(name, name in published, subject.files.get(name)) for name in names)
    return tuple(one for one in wanted if subject.build in ("", one.build))


def _fit(subject: Subject, report: Report, found: Survey, measured: Measured, question: Question) -> Fit:
    rows = [_row(subject, one, report, found.engine, measured) for one in found.builds]
    rows += [_problem(subject, name, error) for name, error in found.problems]
    shape = subject.config or subject.shape
    usual = question.context or min(DEFAULT_CONTEXT_TOKENS, shape.context if shape else DEFAULT_CONTEXT_TOKENS)
    context = found.builds[0].context if found.builds else usual
    trained = found.builds[0].trained if found.builds else shape.context if shape else 0
    if subject.shape is not None:
        ground = ground_of(report, found.rooms)
        asked = Asked(
            subject.shape, context, question.kv_type, ground, subject.key or subject.name, measured.benchmarks
        )
        for row in mlx_rows(asked, subject.mlx_builds, subject.folders):
            rows.append(replace(row, ready_made=_ready_made(subject, row.build)))
    rows.sort(key=lambda row: row.file_bytes)
    return Fit(
        Machine(report, found.engine, missing(report, found.engine)),
        subject.name,
        context,
        trained,
        question.kv_type,
        found.rooms,
        tuple(rows),
        recommend(rows, context, subject.name),
        bandwidth(measured.rates) if measured.rates else None,
    )


def _row(subject: Subject, one: Surveyed, report: Report, engine: EngineBuild, measured: Measured) -> BuildFit:
    path = subject.files.get(one.build)
    place = one.placement
    where = place_of(place)
    predicted = predict(measured.rates, one.work, place, bandwidths(report, engine))
    name = subject.key or subject.name
    file_bytes = _file_bytes(path) or one.tensor_bytes + subject.header_bytes
    row = replace(_placed(one, file_bytes), installed=path is not None, ready_made=_ready_made(subject, one.build))
    if place.where == "none":
        return row
    expected = corrected(predicted, name, one.build, where, measured.benchmarks)
    return _measured(replace(row, predicted=predicted, expected=expected), name, where, measured.benchmarks)


def _measured(row: BuildFit, name: str, where: str, known: Sequence[Benchmark]) -> BuildFit:
    """With the newest benchmark of this very build there."""
    here = [one for one in known if (one.name, one.build, one.where) == (name, row.build, where)]
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
    return f"{published[0].repository}/{published[0].file}".rstrip("/") if published else ""


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


def _offer(subject: Subject, question: Question, answer: Fit) -> str:
    """Arguments with which something fits, where there are any: a GGUF if it can be, else an MLX build."""
    told = [row for row in answer.builds if row.memory and row.format == "gguf"]
    found = _smaller(question, answer, told) if told else ""
    if found or subject.shape is None:
        return found
    ground = ground_of(answer.machine.report, answer.rooms)
    if any(row.format == "gguf" for row in answer.builds) and not ground.is_metal:
        return ""
    asked = Asked(subject.shape, answer.context, answer.kv_type, ground, subject.key or subject.name)
    return mlx_offer(asked, subject.mlx_builds, subject.folders)


def _smaller(question: Question, answer: Fit, told: Sequence[BuildFit]) -> str:
    """Arguments with which the smallest GGUF fits: a smaller KV type first, then a smaller context."""
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
