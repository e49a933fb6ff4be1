"""What the screen of models has done in threads, and what it asks before: facts in, facts out, no widget."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phi4local.actions.choice import OFFICIAL, READY, Choice, choose
from phi4local.actions.fit import DEFAULT_MODEL, SMALLEST, Fit, fit
from phi4local.actions.lookup import file_at
from phi4local.actions.pull import Preview, preview
from phi4local.actions.quantize import name_of, plan_build, quantize, target_of
from phi4local.errors import NotFound, Phi4LocalError, UsageError
from phi4local.settings import models_folder
from phi4local.store import Build, find, is_own, remove
from phi4local.units import file_size
from quant.plan import Plan
from quant.progress import Progress
from quant.sound import read_model_header
from ui.builds import Answers, fetched_bytes, machine_line, rate
from ui.jobs import Tell, follow

KEEPS = "What is done stays, and the same choice goes on from there."
_SLOW_TPS = 4.0  # slower than people read


@dataclass(frozen=True, slots=True)
class Offered:
    """A question, facts by name, what else is to be said, and the words of the answers; `other` may be empty."""

    question: str
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str] = ()
    warning: str = ""
    yes: str = "Get it"
    other: str = ""


@dataclass(frozen=True, slots=True)
class Looked:
    """What getting a build would take, how much room there is for it, and the other way to get it, if there is one."""

    choice: Choice
    preview: Preview
    free_bytes: int
    other: Choice | None


def look(label: str, source: str | None, tell: Tell) -> Looked:
    """Ask the hub what there is to fetch (the errors of `choose` and `preview`)."""
    choice = choose(label, source)
    found = follow(preview(choice), tell)
    tell(Progress("headers", 0, 0))  # where it was stopped, nothing is offered
    return Looked(choice, found, _free_bytes(), _other(choice))


def source_of(choice: Choice) -> str:
    """What `choose` was or would be told to come to this choice."""
    return READY if choice.ready else OFFICIAL


def _other(choice: Choice) -> Choice | None:
    try:
        return choose(choice.label, OFFICIAL if choice.ready else READY)
    except Phi4LocalError:
        return None


def ask(name: str, given_back: Mapping[str, int]) -> Fit | Phi4LocalError:
    """What the engine says of a model's builds, or why it says nothing."""
    try:
        return fit(name, replaced=dict(given_back))
    except Phi4LocalError as error:
        return error


def make(plan: Plan, tell: Tell) -> Build:
    """Build into the store (the errors of `quantize`)."""
    build, _ = follow(quantize(plan, target_of(plan, None), force=False), tell)
    return build


def plan(folder: Path, build: str, tell: Tell) -> Plan:
    """What building from a folder would make (the errors of `plan_build`)."""
    found = plan_build(folder, build)
    tell(Progress("headers", 0, 0))
    return found


def _whole_path(text: str) -> Path:
    path = Path(os.path.expanduser(text.strip()))  # noqa: PTH111  Path.expanduser raises for an unknown user
    try:
        return path.absolute()
    except OSError:
        raise NotFound("The folder that this program was started in is gone", hint="Type a path from / on") from None


def model_file(text: str, tell: Tell) -> Path:
    """The GGUF at a typed path, which can be loaded as far as its header says (NotFound, UsageError, FormatError)."""
    path = _whole_path(text)
    try:
        read_model_header(file_at(path))
    except NotFound as error:
        raise NotFound(error.message, hint="Type the path of a .gguf file; ~ is your own folder") from None
    except UsageError as error:
        hint = "Type the path of a .gguf file; official weights in a folder are made into a build first"
        raise UsageError(error.message, hint=hint) from None
    tell(Progress("headers", 0, 0))
    return path


def delete(label: str) -> str:
    """Remove a build; what to say of it (NotFound, UsageError)."""
    build = find(label, missing=True)
    freed = f"{file_size(build.manifest.bytes)} are free again" if is_own(build) else "its file was another program's"
    remove(build)
    return f"{label} is gone; {freed}"


def _free_bytes() -> int:
    folder = models_folder().absolute()
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def offer_of(looked: Looked, answer: Fit | Phi4LocalError | None) -> Offered:
    """What is asked before a pull; `answer` is what the engine has said of the model."""
    choice, found = looked.choice, looked.preview
    count = len(found.files)
    several = f"{count} file{'s' if count != 1 else ''}"
    files = f"{several} of official weights" if not choice.ready else f"{several}, published"
    files = "a published file" if choice.ready and choice.ready.is_gguf else files
    facts = [("To fetch", f"{file_size(found.fetched_bytes)}, {files}"), ("From", found.repository)]
    if found.plan:
        made = f"{file_size(found.plan.size_bytes)}, {found.plan.bits_per_weight:.2f} bits per weight"
        facts.append(("Makes", f"{made}, {_repairs(found.plan)}"))
    facts.append(("On disk", f"{file_size(found.disk_bytes)} at most, {file_size(looked.free_bytes)} are free"))
    warnings = ["There is not enough room on the disk for all of it."] if found.disk_bytes > looked.free_bytes else []
    rows = answer.builds if isinstance(answer, Fit) else ()
    if any(row.build == choice.build and row.memory and row.where == "none" for row in rows):
        warnings.append("It needs more memory than can be used here now.")
    return Offered(
        f"Get {choice.label}?",
        facts,
        (_reason(choice), f"It can be stopped at any time. {KEEPS}"),
        " ".join(warnings),
        other=_other_way(looked.other) if looked.other else "",
    )


def _reason(choice: Choice) -> str:
    """Why it is had from there, without the argument of the command line that would change it."""
    said, argument, _ = choice.why.partition("; `--from ")
    return f"{said}." if argument else said


def _other_way(choice: Choice) -> str:
    size_bytes = fetched_bytes(choice)
    size = f" ({file_size(size_bytes)})" if size_bytes else ""
    published = "Published file" if choice.ready and choice.ready.is_gguf else "Published files"
    return f"{published if choice.ready else 'Official weights'}{size}"


def offer_of_plan(found: Plan) -> Offered:
    """What is asked before a build from a folder."""
    facts = [
        ("From", str(found.source.folder)),
        ("Makes", f"{file_size(found.size_bytes)}, {found.bits_per_weight:.2f} bits per weight, {_repairs(found)}"),
        ("On disk", f"{file_size(found.size_bytes)}, {file_size(_free_bytes())} are free"),
    ]
    notes = (f"It can be stopped at any time. {KEEPS}",)
    return Offered(f"Make {name_of(found)}:{found.build}?", facts, notes, yes="Make it")


def _repairs(found: Plan) -> str:
    count = len(found.repairs)
    return "nothing to repair" if not count else f"{count} repair{'s' if count != 1 else ''}"


def starter(answers: Answers) -> str | None:
    """The model for somebody who has none; None while that is not known yet.

    The larger one where it fits and is no slower than people read, else the smaller one.
    """
    first = answers.get(DEFAULT_MODEL)
    if first is None:
        return None
    tps = _best_tps(first)
    if isinstance(first, Fit) and first.recommendation.build and (tps is None or tps >= _SLOW_TPS):
        return DEFAULT_MODEL
    return SMALLEST if SMALLEST in answers else None


def _best_tps(answer: Fit | Phi4LocalError) -> float | None:
    rows = answer.builds if isinstance(answer, Fit) else ()
    best = answer.recommendation.build if isinstance(answer, Fit) else None
    return next((row.expected.generation_tps for row in rows if row.build == best), None)


def welcome(name: str | None, answers: Answers) -> list[str]:
    """What a first run is told: the machine, the recommendation and its price, and the second choice."""
    known = next((answer for answer in answers.values() if isinstance(answer, Fit)), None)
    lines = [machine_line(known.machine.report)] if known else ["Looking at this machine…"] if not answers else []
    answer = answers.get(name) if name else None
    if name and isinstance(answer, Fit) and answer.recommendation.build:
        lines.append(_recommended(name, answer, answers))
    elif name:
        lines.append("Nothing larger than the tiny model can be recommended here")
    lines.append("Or with t: a tiny built-in model, made in seconds without a network")
    return lines


def _recommended(name: str, answer: Fit, answers: Answers) -> str:
    label, tps = f"{name}:{answer.recommendation.build}", _best_tps(answer)
    try:
        size_bytes = fetched_bytes(choose(label, None))
    except Phi4LocalError:
        size_bytes = None
    price = f", {file_size(size_bytes)} to fetch" if size_bytes else ""
    speed = f", ~{rate(tps)} token/s" if tps else ""
    larger = _best_tps(answers[DEFAULT_MODEL]) if name != DEFAULT_MODEL and DEFAULT_MODEL in answers else None
    than = f" ({DEFAULT_MODEL}: ~{rate(larger)})" if larger else ""
    return f"Recommended: {label}{price}{speed}{than}"
