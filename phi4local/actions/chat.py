"""From a name or a file to a loaded model and how it wants to be sampled."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hardware.probe import probe_memory
from phi4local.actions.lookup import builds_of, file_at, is_path
from phi4local.backends import open_engine
from phi4local.backends.load_settings import Budget
from phi4local.backends.safe_mode import machine_and_build
from phi4local.backends.survey import Question, Wanted, survey
from phi4local.catalog import find_model
from phi4local.engine import Engine, GenerationOptions
from phi4local.errors import DoesNotFit, FormatError, Phi4LocalError
from phi4local.fit import HOST
from phi4local.measured import keep_load
from phi4local.settings import state_folder
from phi4local.store import Build
from phi4local.units import memory as memory_text
from quant.gguf import Header
from quant.sound import read_model_header


@dataclass(frozen=True, slots=True)
class Located:
    """A file to load: what it is called, the model and build that it is, and why it was chosen.

    `key` is the model's name or, where only the file is known, its whole path.
    """

    label: str
    key: str
    build: str
    path: Path
    stored: Build | None = None
    why: str = ""

    @property
    def name(self) -> str:
        """What opens it again, from any folder."""
        return self.label if self.stored else str(self.path.absolute())


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded model: what it was made of, its engine, and its own sampling (greedy where it names none)."""

    located: Located
    engine: Engine
    options: GenerationOptions

    @property
    def label(self) -> str:
        return self.located.label


def open_model(name: str | None, *, context_tokens: int | None = None, kv_type: str = "f16") -> Opened:
    """Load a build of the store, or the GGUF at a path.

    (NotFound, UsageError, FormatError, BackendError; DoesNotFit with the command that would work)
    """
    located = locate(name, context_tokens=context_tokens, kv_type=kv_type)
    return open_located(located, context_tokens=context_tokens, kv_type=kv_type)


def open_located(located: Located, *, context_tokens: int | None = None, kv_type: str = "f16") -> Opened:
    """Load a file where it fits best into what is free now, and remember what that took."""
    header = read_model_header(located.path)
    _check_size(located.path, located.stored)
    try:
        engine = open_engine(
            located.path,
            context_tokens=context_tokens,
            kv_type=kv_type,
            state_folder=state_folder(),
            budget=_budget,
        )
    except DoesNotFit as error:
        raise DoesNotFit(error.message, hint=_instead(located, error, context_tokens, kv_type)) from None
    keep_load(machine_and_build(), located.path.absolute(), engine.info.load)
    return Opened(located, engine, _sampling(header, located.stored))


def _budget() -> Budget:
    """The main memory as it is now."""
    memory = probe_memory()
    return Budget(memory.limit_bytes or memory.total_bytes, memory.available_bytes)


def check_room(located: Located, replaced: Engine, *, context_tokens: int | None, kv_type: str) -> None:
    """Whether a file can be loaded once another engine, still open, is closed (the errors of `open_model`)."""
    from phi4local.actions.fit import main_room

    read_model_header(located.path)
    _check_size(located.path, located.stored)
    wanted = (Wanted(located.build, path=located.path),)
    main = main_room(probe_memory())
    found = survey(Question(None, wanted, main, context_tokens, kv_type, given_back(replaced)), state_folder())
    for _, error in found.problems:
        raise error
    for one in found.builds:
        if one.placement.short_bytes:
            needed, short = one.placement.total.total_bytes, one.placement.short_bytes
            raise DoesNotFit(
                f"`{located.label}` needs {memory_text(needed)}, {memory_text(short)} more than there will be",
                hint="Choose a smaller build, or leave and start it with a smaller `--context`",
            )


def given_back(engine: Engine) -> dict[str, int]:
    """What closing an engine frees of each device; mapped weights are the file's pages, which count as free already."""
    load = engine.info.load
    freed = {device: use.total_bytes for device, use in load.took.items()}
    return {device: size - load.mapped_bytes if device == HOST else size for device, size in freed.items()}


def _instead(located: Located, error: DoesNotFit, context_tokens: int | None, kv_type: str) -> str:
    """The command that would work: the same file with less, another build of the model, another model."""
    from phi4local.actions.fit import SMALLEST, fit

    if error.options:
        return _command(located.label if located.stored else str(located.path), error.options)
    with contextlib.suppress(Phi4LocalError):
        answer = fit(located.key, context=context_tokens, kv_type=kv_type) if located.stored else None
        build = answer.recommendation.build if answer else None
        if answer and build:
            given = ["--context", str(context_tokens)] if context_tokens else []
            given += ["--kv", kv_type] if kv_type != "f16" else []
            label = f"{located.key}:{build}"
            here = any(one.installed for one in answer.builds if one.build == build)
            get = f"pull {label}" if find_model(located.key) else f"quantize FOLDER --to {build}"
            return _command(label, given) if here else f"{label} would fit: phi4local {get}"
    return f"A smaller model: phi4local fit {SMALLEST}"


def _command(label: str, options: Sequence[str]) -> str:
    return shlex.join(["phi4local", "chat", label, *options])


def locate(
    name: str | None, *, context_tokens: int | None = None, kv_type: str = "f16", replaced: Engine | None = None
) -> Located:
    """Find what the user means; of several builds of a model the best that fits (NotFound, UsageError).

    `replaced` will be closed before it is loaded.
    """
    if name and is_path(name):
        path = file_at(Path(name))
        return Located(path.name, str(path.absolute()), path.name, path)
    choices = builds_of(name)
    if len(choices) == 1:
        return _located(choices[0], "")
    from phi4local.actions.fit import fit_files

    files = {build.manifest.build: build.path for build in choices}
    answer = fit_files(files, context_tokens, kv_type, given_back(replaced) if replaced else None)
    best = next((build for build in choices if build.manifest.build == answer.build), choices[0])
    return _located(best, answer.why)


def _located(build: Build, why: str) -> Located:
    return Located(build.label, build.manifest.name, build.manifest.build, build.path, build, why)


def _check_size(path: Path, build: Build | None) -> None:
    """A cheap look at every load; `verify` is the thorough one."""
    if build and path.stat().st_size != build.manifest.bytes:
        raise FormatError(
            f"`{path.name}` has {path.stat().st_size} bytes, its manifest says {build.manifest.bytes}",
            hint=f"phi4local pull {build.label}",
        )


def _sampling(header: Header, build: Build | None) -> GenerationOptions:
    """The file's own `general.sampling.*`, else the model card's, else greedy."""
    model = find_model(build.manifest.name) if build else None
    wanted = model.sampling if model else None
    options = GenerationOptions(**dataclasses.asdict(wanted)) if wanted else GenerationOptions()
    temperature, top_k, top_p = (header.metadata.get(f"general.sampling.{key}") for key in ("temp", "top_k", "top_p"))
    if isinstance(temperature, float) and 0 <= temperature <= 10:
        options = dataclasses.replace(options, temperature=temperature)
    if type(top_k) is int and 0 < top_k < 1 << 20:
        options = dataclasses.replace(options, top_k=top_k)
    if isinstance(top_p, float) and 0 < top_p <= 1:
        options = dataclasses.replace(options, top_p=top_p)
    return options
