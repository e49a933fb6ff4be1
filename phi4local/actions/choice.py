"""Which build of which model a pull means, and where it is taken from."""

from __future__ import annotations

import difflib
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from phi4local.actions.fit import cannot_run, fit
from phi4local.actions.fit_mlx import ELSEWHERE, possible_builds
from phi4local.catalog import Model, ReadyMade, find_model, models
from phi4local.errors import DownloadError, FormatError, NotFound, UsageError
from phi4local.hub.repository import is_offline, look_up
from phi4local.store import build_path, builds, read_manifest
from phi4local.units import file_size
from quant.ggml import BUILDS

READY, OFFICIAL = "ready", "official"


@dataclass(frozen=True, slots=True)
class Choice:
    """What will be pulled: `ready` is the published file or MLX folder, None where the build is made here; `why` tells
    the user.
    """

    model: Model
    build: str
    ready: ReadyMade | None
    why: str

    @property
    def label(self) -> str:
        return f"{self.model.name}:{self.build}"

    @property
    def target(self) -> Path:
        return build_path(self.model.name, self.build)


def choose(label: str, source: str | None, *, offline: bool = False) -> Choice:
    """Which build of which model from where (NotFound, UsageError, DownloadError)."""
    title, _, build = label.partition(":")
    model = _model(title)
    why = ""
    if not build:
        if model.shape is None:
            raise cannot_run(model)
        if offline or is_offline():
            build = _newest_here(model)
        else:
            look_up(model.repository, model.revision)  # without a network nothing is worth asking the engine for
            build, why = _recommended(model)
    build = _spelt(model, build)
    ready = _published(model, build)
    if source is None:
        source = _came_from(build_path(model.name, build), ready)
    if source == READY and ready is None:
        kind = "an" if is_mlx(build) else "a GGUF"
        raise NotFound(
            f"Nobody has published {kind} {build} of {model.name}", hint=f"phi4local pull {label} --from official"
        )
    why = " ".join(filter(None, (why, _where_mlx_runs(build))))
    if source == READY or (source is None and ready and ready.is_verified and not ready.flaws):
        return Choice(model, build, ready, why)
    if build not in _makeable(model):
        return _only_ready(model, build, ready, source)
    return Choice(model, build, None, " ".join(filter(None, (why, _why_official(ready) if source is None else ""))))


def is_mlx(build: str) -> bool:
    """Whether a build of this name is a folder for MLX."""
    return build.startswith("mlx-")


def _makeable(model: Model) -> list[str]:
    """The builds that can be made here."""
    return [*(BUILDS if model.config else ()), *(possible_builds(model.shape) if model.shape else ())]


def _where_mlx_runs(build: str) -> str:
    if not is_mlx(build) or (sys.platform == "darwin" and platform.machine() == "arm64"):
        return ""
    return f"MLX runs {ELSEWHERE}."


def _newest_here(model: Model) -> str:
    here = [one.manifest for one in builds() if one.manifest.name == model.name]
    if not here:
        raise offline_error(model.name)
    return max(here, key=lambda manifest: manifest.created).build


def _came_from(target: Path, ready: ReadyMade | None) -> str | None:
    """Where a build that is here came from: it is repaired from the same place."""
    try:
        source = read_manifest(target).source.get("from")
    except (NotFound, FormatError):
        return None
    return source if source == OFFICIAL or (source == READY and ready) else None


def _model(title: str) -> Model:
    model = find_model(title)
    if model:
        return model
    if not title:
        raise UsageError("Which model?", hint="phi4local pull phi-4")
    if os.path.lexists(title):
        raise UsageError(f"`{title}` is on this disk already", hint=f"phi4local import {title}")
    near = difflib.get_close_matches(title.lower(), [model.name for model in models()], 1, 0.5)
    known = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(model.name for model in models())}"
    raise NotFound(f"No model called `{title}` is in the catalogue", hint=known)


def _recommended(model: Model) -> tuple[str, str]:
    """What `fit` would take on this machine, and why."""
    recommendation = fit(model.name).recommendation
    if recommendation.build is None:
        raise UsageError(
            f"No build of {model.name} fits here: {recommendation.why}", hint=f"phi4local fit {model.name}"
        )
    return recommendation.build, f"{recommendation.why}."


def _spelt(model: Model, build: str) -> str:
    known: dict[str, str] = {name.lower(): name for name in (*model.ready, *_makeable(model))}
    if build.lower() not in known:
        raise UsageError(f"No build called `{build}` of {model.name}", hint=f"One of {', '.join(known.values())}")
    return known[build.lower()]


def _published(model: Model, build: str) -> ReadyMade | None:
    """The best published one: verified and without flaws first, then in the catalogue's order."""
    files = [file for file in model.ready.get(build, ()) if file.is_gguf != is_mlx(build)]
    return min(files, key=lambda file: not (file.is_verified and not file.flaws), default=None)


def _only_ready(model: Model, build: str, ready: ReadyMade | None, source: str | None) -> Choice:
    if ready is None or source == OFFICIAL:
        raise UsageError(f"{model.name}:{build} cannot be made here", hint=f"phi4local show {model.name}")
    state = f"its flaws: {', '.join(ready.flaws) or 'none'}" if ready.is_verified else "nobody has verified it"
    why = f"It cannot be made here; the file of {ready.repository} is taken ({state})."
    return Choice(model, build, ready, f"{why} {ready.note}".rstrip())


def _why_official(ready: ReadyMade | None) -> str:
    if ready is None:
        return "Nobody is known to have published this build; it is made here from the official weights."
    file = f"the published {'folder' if ready.is_folder else 'file'} of {ready.repository}"
    unknown = "unknown" in ready.flaws or not ready.is_verified
    problem = f"nobody has checked {file}" if unknown else f"{file} is flawed ({', '.join(ready.flaws)})"
    size = f" ({file_size(ready.bytes)}, mended as it arrives)" if ready.bytes else ""
    return f"It is made here from the official weights, because {problem}; `--from ready` takes that{size}."


def offline_error(label: str) -> DownloadError:
    name = label.partition(":")[0]
    here = next((one.label for one in builds() if one.manifest.name == name), None)
    known = f"`phi4local chat {here}` is here" if here else "`phi4local list` shows what is here"
    return DownloadError(f"{label} is not here, and the network is not to be used", hint=known)
