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
from phi4local.actions.model_files import ModelFiles, is_folder, own_sampling, read_files
from phi4local.backends import open_engine
from phi4local.backends.load_settings import Budget, whole_context
from phi4local.backends.mlx_folder import needed, read_folder
from phi4local.backends.safe_mode import machine_and_build
from phi4local.backends.survey import Question, Wanted, survey
from phi4local.catalog import find_model
from phi4local.engine import DEFAULT_CONTEXT_TOKENS, Engine, GenerationOptions
from phi4local.errors import DoesNotFit, FormatError, Phi4LocalError
from phi4local.fit import HOST
from phi4local.measured import keep_load
from phi4local.printing import printable
from phi4local.settings import state_folder
from phi4local.store import Build, is_complete
from phi4local.units import memory as memory_text


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
    """Load a build of the store, or the GGUF or MLX folder at a path.

    (NotFound, UsageError, FormatError, BackendError; DoesNotFit with the command that would work)
    """
    located = locate(name, context_tokens=context_tokens, kv_type=kv_type)
    return open_located(located, context_tokens=context_tokens, kv_type=kv_type)


def open_located(located: Located, *, context_tokens: int | None = None, kv_type: str = "f16") -> Opened:
    """Load a file where it fits best into what is free now, and remember what that took."""
    _check_size(located.path, located.stored)
    files = read_files(located.path)
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
    return Opened(located, engine, _sampling(located, files))


def _budget() -> Budget:
    """The main memory as it is now."""
    memory = probe_memory()
    return Budget(memory.limit_bytes or memory.total_bytes, memory.available_bytes)


def check_room(located: Located, replaced: Engine, *, context_tokens: int | None, kv_type: str) -> None:
    """Whether a file can be loaded once another engine, still open, is closed (the errors of `open_model`)."""
    _check_size(located.path, located.stored)
    read_files(located.path)
    given, wish = given_back(replaced), Wish(context_tokens, kv_type)
    short, takes = (_folder_lack if is_folder(located.path) else _file_lack)(located, given, wish)
    if short:
        raise DoesNotFit(
            f"`{located.label}` needs {memory_text(takes)}, {memory_text(short)} more than there will be",
            hint="Choose a smaller build, or leave and start it with a smaller `--context`",
        )


@dataclass(frozen=True, slots=True)
class Wish:
    """How a model is to be loaded."""

    context_tokens: int | None
    kv_type: str


def _file_lack(located: Located, given: dict[str, int], wish: Wish) -> tuple[int, int]:
    """How many bytes are missing for a GGUF, and how many it takes, as the engine says."""
    from phi4local.actions.fit import main_room

    wanted = (Wanted(located.build, path=located.path),)
    question = Question(None, wanted, main_room(probe_memory()), wish.context_tokens, wish.kv_type, given)
    found = survey(question, state_folder())
    for _, error in found.problems:
        raise error
    [place] = [one.placement for one in found.builds]
    return place.short_bytes, place.total.total_bytes


def _folder_lack(located: Located, given: dict[str, int], wish: Wish) -> tuple[int, int]:
    """The same for an MLX folder, by arithmetic."""
    from phi4local.actions.fit_mlx import mlx_room_bytes

    folder = read_folder(located.path)
    context = wish.context_tokens or min(folder.trained_tokens, DEFAULT_CONTEXT_TOKENS)
    takes = needed(folder, wish.kv_type, whole_context(context)).total_bytes
    return max(0, takes - mlx_room_bytes() - sum(given.values())), takes


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
        path = file_at(Path(name)).absolute()
        return Located(printable(path.name), str(path), printable(path.name), path)
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
    if build and not is_complete(build):
        again = f"pull {build.label}" if find_model(build.manifest.name) else f"verify {build.label}"
        raise FormatError(
            f"`{path.name}` has not the {build.manifest.bytes} bytes that its manifest says", hint=f"phi4local {again}"
        )


def _sampling(located: Located, files: ModelFiles) -> GenerationOptions:
    """What the model's files ask for, else the model card, else greedy."""
    model = find_model(located.stored.manifest.name) if located.stored else None
    wanted = model.sampling if model else None
    options = GenerationOptions(**dataclasses.asdict(wanted)) if wanted else GenerationOptions()
    return own_sampling(files, options)
