"""`phi4local show`: a model of the catalogue, or what a build is made of and what this machine knows of it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from phi4local.backends.safe_mode import machine_and_build
from phi4local.catalog import Model, ReadyMade, find_model
from phi4local.cli import output
from phi4local.cli.load import describe, load_json
from phi4local.cli.quantize import manifest_json, show_manifest
from phi4local.measured import read_measured
from phi4local.store import Build, builds, find, path_meant, read_manifest
from phi4local.units import file_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", help="a model, NAME:BUILD, or the path of a build with a manifest")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Print the model's card, or a build's manifest with its last load and benchmarks."""
    model = find_model(args.name)
    here = _here(model) if model else []
    if model and len(here) != 1:
        _show_model(model, here, as_json=args.json)
        return 0
    path = path_meant(args.name)
    named = Build(path, read_manifest(path)) if path else None
    build = here[0] if here else named or find(args.name)
    _show_build(build, find_model(build.manifest.name), as_json=args.json)
    return 0


def _here(model: Model) -> list[Build]:
    return [build for build in builds() if build.manifest.name == model.name]


def _show_build(build: Build, model: Model | None, *, as_json: bool) -> None:
    known = read_measured(machine_and_build())
    load = known.loads.get(str(build.path.absolute()))
    name = build.manifest.name, build.manifest.build
    benchmarks = [one for one in known.benchmarks if (one.name, one.build) == name]
    if as_json:
        here = {
            "load": load_json(load) if load else None,
            "benchmarks": [dataclasses.asdict(one) for one in benchmarks],
        }
        output.emit_json(manifest_json(build) | here | {"model": _facts(model) if model else None})
        return
    about = [*_list("For", [model.purpose]), *_list("Weak at", model.weaknesses)] if model and model.purpose else []
    show_manifest(build, [*describe(load, benchmarks), *about])
    if model:
        _show_published(model)


def _facts(model: Model) -> dict[str, Any]:
    """The catalogue's entry as JSON, but for the shape and the published files."""
    names = [field.name for field in dataclasses.fields(model) if field.name not in ("config", "header_bytes", "ready")]
    facts = {name: getattr(model, name) for name in names}
    return facts | {"sampling": dataclasses.asdict(model.sampling) if model.sampling else None}


def _show_model(model: Model, here: list[Build], *, as_json: bool) -> None:
    if as_json:
        ready = [{"build": build} | _published(file) for build, file in _files(model)]
        output.emit_json(_facts(model) | {"builds": [build.label for build in here], "ready_made": ready})
        return
    size = f"{model.parameters / 1e9:.1f} billion parameters" if model.parameters else "size not known"
    context = f", context of {model.context} tokens" if model.context else ""
    sampling = model.sampling
    output.record(
        [
            ("Name", model.name),
            ("Official", f"{model.repository} at {model.revision or 'its newest revision (none was verified)'}"),
            ("Size", size + context),
            ("Licence", model.licence or "not known"),
            ("Released", model.released or "not known"),
            ("Knowledge", f"until {model.knowledge}" if model.knowledge else "no date is known"),
            ("For", model.purpose or "not known"),
            *_list("Weak at", model.weaknesses),
            (
                "Sampling",
                f"temperature {sampling.temperature}, top-k {sampling.top_k}, top-p {sampling.top_p}"
                if sampling
                else "greedy, unless the file says otherwise",
            ),
            *_list("Runs in", [f"{runtime}: {state}" for runtime, state in model.runtimes.items()]),
            ("Here", ", ".join(build.label for build in here) or "no build yet"),
        ]
    )
    _show_published(model)
    if model.config:
        output.say(f"\n`phi4local pull {model.name}` takes the build that suits this machine")


def _files(model: Model) -> list[tuple[str, ReadyMade]]:
    return [(build, file) for build, files in model.ready.items() for file in files]


def _show_published(model: Model) -> None:
    if published := _files(model):
        output.heading("Published builds")
        rows = [(build, _size(file), ", ".join(file.flaws) or "none", _place(file)) for build, file in published]
        output.table(("BUILD", "SIZE", "FLAWS", "FROM"), rows, right=(1,))


def _list(name: str, lines: tuple[str, ...] | list[str]) -> list[tuple[str, str]]:
    return [(name if number == 0 else "", line) for number, line in enumerate(lines)]


def _published(file: ReadyMade) -> dict[str, Any]:
    facts = ("repository", "revision", "file", "bytes", "sha256", "flaws", "note")
    return {name: getattr(file, name) for name in facts} | {"verified": file.is_verified}


def _size(file: ReadyMade) -> str:
    return file_size(file.bytes) if file.bytes else "not known"


def _place(file: ReadyMade) -> str:
    place = f"{file.repository}/{file.file}".rstrip("/")
    return place if file.is_verified else f"{place} (not verified)"
