"""Builds as rows of a table, from the store's, the catalogue's and the engine's facts. Knows no widget."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hardware.report import Report
from phi4local.actions.choice import Choice, choose
from phi4local.actions.demo import BUILD as NANO_BUILD
from phi4local.actions.fit import Fit
from phi4local.catalog import Model, models
from phi4local.chats import clean
from phi4local.errors import Phi4LocalError
from phi4local.fit import HOST, UNKNOWN_BYTES
from phi4local.recommend import BuildFit, worth_a_row
from phi4local.settings import nano_folder
from phi4local.store import Build
from phi4local.units import file_size, memory
from quant.journal import partial_path

COLUMNS = ("name", "file", "bits", "memory", "goes to", "token/s", "", "from")
RIGHT = frozenset(("file", "bits", "memory", "token/s"))
SPARE = ("from", "bits", "file")  # left out in this order where there is no room
SPARE_LAST = ("token/s", "memory", "goes to")  # before a name is cut so short that it says nothing
NANO = f"{nano_folder().name}:{NANO_BUILD}"
ASKING = "asking the engine…"

_PLACES = {"gpu": "GPU", "cpu": "memory", "none": "too large"}

Answers = Mapping[str, Fit | Phi4LocalError]


@dataclass(frozen=True, slots=True)
class Entry:
    """One row. `label` is NAME:BUILD or the whole path of a file, empty where there is nothing to be had.

    `marks` are classes of its looks.
    """

    label: str
    cells: tuple[str, ...]
    marks: frozenset[str] = frozenset()
    detail: str = ""

    @property
    def is_here(self) -> bool:
        return "-here" in self.marks

    @property
    def is_file(self) -> bool:
        """A GGUF of the user's own, which is not the store's to remove."""
        return "-file" in self.marks

    @property
    def is_used(self) -> bool:
        return "-used" in self.marks


def offered() -> list[Model]:
    """The models of which something can be had that runs here."""
    return [model for model in models() if model.shape or _is_published(model)]


def _is_published(model: Model) -> bool:
    files = (file for files in model.ready.values() for file in files)
    return model.runtimes.get("llama.cpp", "yes") == "yes" and any(file.is_gguf for file in files)


def entries_of(
    model: Model | None, here: Sequence[Build], answers: Answers, current: str | None, files: Sequence[Path] = ()
) -> list[Entry]:
    """The builds of a model; without one, what is on this disk."""
    return model_entries(model, here, answers, current) if model else here_entries(here, answers, current, files)


def here_entries(
    here: Sequence[Build], answers: Answers, current: str | None, files: Sequence[Path] = ()
) -> list[Entry]:
    """What is installed, and the GGUFs that were opened by their path."""
    entries = [_here_entry(build, answers.get(build.manifest.name), current, build.label) for build in here]
    return [*entries, *_file_entries(here, current, files), *nano_entries(here)]


def _file_entries(here: Sequence[Build], current: str | None, files: Sequence[Path]) -> Iterator[Entry]:
    """The files that are still there, each once; one of the store only where it is in use by its path."""
    known = {os.path.realpath(build.path) for build in here}
    used = [Path(current)] if current and os.path.isabs(current) else []  # noqa: PTH117  a label is no path
    for path in dict.fromkeys([*used, *files]):
        is_used = str(path) == current
        try:
            real, status = os.path.realpath(path), path.stat()
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode) and (is_used or real not in known):
            known.add(real)
            yield _file_entry(path, status.st_size, is_used)


def _file_entry(path: Path, size_bytes: int, used: bool) -> Entry:
    marks = frozenset({"-here", "-file"} | ({"-used"} if used else set()))
    state, folder = "in use" if used else "here", clean(str(path.parent))
    cells = (clean(path.name), file_size(size_bytes), "", "", "", "", state, folder)
    return Entry(str(path), cells, marks, f"A file of your own: {clean(str(path))}")


def model_entries(model: Model, here: Sequence[Build], answers: Answers, current: str | None) -> list[Entry]:
    """Every build of a model, the smallest first; before the engine has answered, those that are here."""
    answer = answers.get(model.name)
    mine = {build.manifest.build: build for build in here if build.manifest.name == model.name}
    entries = []
    for fit in _told(answer):
        build = mine.pop(fit.build, None)
        if build:
            entries.append(_here_entry(build, answer, current, fit.build))
        else:
            entries.append(_absent_entry(model, fit, answer if isinstance(answer, Fit) else None))
    entries += [_here_entry(build, answer, current, build.manifest.build) for build in mine.values()]
    if isinstance(answer, Phi4LocalError):
        absent = (build for build in model.ready if build not in {b.manifest.build for b in here})
        entries += [_unknown_entry(model, build) for build in absent]
    elif answer is None:
        entries.append(Entry("", (ASKING, *[""] * (len(COLUMNS) - 1)), frozenset({"-asking"})))
    return [*entries, *nano_entries(here)]


def nano_entries(here: Sequence[Build]) -> list[Entry]:
    """The built-in model, where it is not here."""
    if any(build.label == NANO for build in here):
        return []
    size_bytes = sum(path.stat().st_size for path in nano_folder().glob("*.safetensors")) // 2
    detail = (
        "A tiny model that comes with this program, for trying it out: it is made here in seconds, without a network, "
        "and can do little but short sums."
    )
    cells = (NANO, file_size(size_bytes), "8.5", "", "", "", "built in", "made here in seconds, without a network")
    return [Entry(NANO, cells, frozenset({"-nano"}), detail)]


def best_label(name: str, answer: Fit | Phi4LocalError | None) -> str | None:
    """The recommended build of a model, as far as that is known."""
    best = answer.recommendation.build if isinstance(answer, Fit) else None
    return f"{name}:{best}" if best else None


def _told(answer: Fit | Phi4LocalError | None) -> list[BuildFit]:
    if not isinstance(answer, Fit):
        return []
    return worth_a_row(answer.builds)


def _here_entry(build: Build, answer: Fit | Phi4LocalError | None, current: str | None, title: str) -> Entry:
    manifest = build.manifest
    fit = next((row for row in _told(answer) if row.build == manifest.build), None)
    used = build.label == current
    best = isinstance(answer, Fit) and answer.recommendation.build == manifest.build and len(_told(answer)) > 1
    marks = {"-here"} | ({"-used"} if used else set()) | ({"-best"} if best else set())
    room = _room(fit) if fit else (ASKING if answer is None else "", "", "")
    state = "in use" if used else "here"
    source = str(manifest.source["repo"] or manifest.source.get("path") or "a folder on this disk")
    detail = " ".join(filter(None, (_why(answer, best), _needs(fit, answer), f"From {source}.")))
    cells = (title, file_size(manifest.bytes), f"{manifest.bpw:.1f}", *room, state, source)
    return Entry(build.label, cells, frozenset(marks), detail)


def _absent_entry(model: Model, fit: BuildFit, answer: Fit | None) -> Entry:
    label = f"{model.name}:{fit.build}"
    best = answer is not None and answer.recommendation.build == fit.build
    marks = {"-nowhere"} if fit.where == "none" else {"-best"} if best else set()
    choice = _choice(label)
    weights = fit.total.weights_bytes if fit.format == "mlx" else fit.file_bytes - model.header_bytes
    bits = f"{8 * weights / model.parameters:.1f}" if model.parameters else ""
    detail = " ".join(filter(None, (_why(answer, best), _needs(fit, answer), origin(choice))))
    source = _source(choice)
    cells = (fit.build, file_size(fit.file_bytes), bits, *_room(fit), _state(choice), source)
    return Entry(label if choice else "", cells, frozenset(marks), detail)


def _unknown_entry(model: Model, build: str) -> Entry:
    """A published build that the engine cannot be asked about."""
    label = f"{model.name}:{build}"
    choice = _choice(label)
    size = file_size(choice.ready.bytes) if choice and choice.ready and choice.ready.bytes else ""
    cells = (build, size, "", "", "", "", _state(choice), _source(choice))
    return Entry(label if choice else "", cells, frozenset(), origin(choice))


def _choice(label: str) -> Choice | None:
    """Where a build would be had from; None: it cannot be run here. A label with its build asks no network."""
    try:
        return choose(label, None)
    except Phi4LocalError:
        return None


def _state(choice: Choice | None) -> str:
    if choice is None:
        return ""
    if os.path.lexists(partial_path(choice.target)):
        return "begun"
    return "published" if choice.ready else "made here"


def _source(choice: Choice | None) -> str:
    return "" if choice is None else choice.ready.repository if choice.ready else choice.model.repository


def origin(choice: Choice | None) -> str:
    """Where a build would come from, in a sentence."""
    if choice is None:
        return ""
    size_bytes = fetched_bytes(choice)
    about = f", {file_size(size_bytes)} to fetch" if size_bytes else ""
    if choice.ready:
        return f"Published by {choice.ready.repository}{about}."
    return f"Made from {choice.model.repository} as it arrives{about}."


def fetched_bytes(choice: Choice) -> int | None:
    """What would have to be fetched, as far as the catalogue knows; the official weights have two bytes each."""
    if choice.ready:
        return choice.ready.bytes
    return 2 * choice.model.parameters if choice.model.parameters else None


def _room(fit: BuildFit) -> tuple[str, str, str]:
    """Memory, where it goes, and how fast."""
    place = f"{fit.gpu_layers} on GPU" if fit.where == "split" else _PLACES[fit.where]
    size_bytes = fit.total.total_bytes
    return memory(size_bytes) if size_bytes else "", place if fit.memory else "", _speed(fit)


def _speed(fit: BuildFit) -> str:
    """What was measured, or what is expected, marked with a tilde."""
    if measured := fit.measured.generation_tps:
        return rate(measured)
    expected = fit.expected.generation_tps
    return f"~{rate(expected)}" if expected and fit.where != "none" else ""


def rate(tps: float) -> str:
    """Tokens per second in three digits."""
    return f"{tps:.0f}" if tps >= 100 else f"{tps:.1f}"


def _why(answer: Fit | Phi4LocalError | None, best: bool) -> str:
    if not best or not isinstance(answer, Fit):
        return ""
    found = answer.recommendation
    return f"Recommended: {found.why}.{f' {found.beside}.' if found.beside else ''}"


def _needs(fit: BuildFit | None, answer: Fit | Phi4LocalError | None) -> str:
    """What the engine says of it."""
    if isinstance(answer, Phi4LocalError):
        return f"{answer.message}."
    if fit is None or answer is None:
        return ""
    if not fit.memory:
        return f"{fit.note}."
    use = fit.total
    if fit.where == "none":
        more = f", {memory(fit.short_bytes)} more than can be used here" if fit.short_bytes else ""
        return f"Does not fit: it needs {memory(use.total_bytes)}{more} with a context of {answer.context} tokens."
    if fit.build == answer.recommendation.build:
        return f"MLX: {fit.note}." if fit.note else ""
    parts = (("Weights", use.weights_bytes), ("conversation", use.kv_bytes), ("computing", use.compute_bytes))
    said = ", ".join(f"{name} {memory(size)}" for name, size in parts)
    note = f" MLX: {fit.note}." if fit.note else ""
    return f"{said}, with {answer.context} tokens.{note}"


def machine_line(report: Report) -> str:
    """What this machine has."""
    cores = report.cpu.physical_cores or report.cpu.logical_cores
    parts = [report.cpu.model or report.machine]
    parts += [f"{cores} core{'s' if cores != 1 else ''}"] if cores else []
    size_bytes = report.memory.limit_bytes or report.memory.total_bytes
    parts += [f"{memory(size_bytes)} of memory"] if size_bytes else []
    parts += [_card(gpu.name, gpu.total_bytes) for gpu in report.gpus] or ["no graphics card"]
    return ", ".join(parts)


def _card(name: str, size_bytes: int | None) -> str:
    return f"{name} with {memory(size_bytes)}" if size_bytes else name


def free_line(fit: Fit) -> str:
    """How much memory is free, device by device."""
    known = [room for room in fit.rooms if room.total_bytes != UNKNOWN_BYTES]
    names = {HOST: "memory"}
    return " · ".join(f"{memory(room.free_bytes)} {names.get(room.device, room.device)} free" for room in known)


def heading(model: Model | None, here: Sequence[Build], entries: Sequence[Entry]) -> str:
    """What is in the rows, in a line."""
    return about(model) if model else about_here(here, entries)


def about(model: Model) -> str:
    """The model in a line."""
    size = f"{model.parameters / 1e9:.1f} billion parameters." if model.parameters else ""
    known = " ".join(filter(None, (size, model.purpose)))
    return f"{model.name}: {known}" if known else model.name


def about_here(here: Sequence[Build], entries: Sequence[Entry]) -> str:
    """What is on this disk, in a line."""
    counts = ((len(here), "build"), (sum(entry.is_file for entry in entries), "file"))
    parts = [f"{count} {name}{'s' if count != 1 else ''}" for count, name in counts if count]
    if not parts:
        return "Nothing is here yet; ← → go through the models"
    return f"{' and '.join(parts)} on this disk"
