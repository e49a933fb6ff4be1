"""From a name or a file to a loaded model and how it wants to be sampled."""

from __future__ import annotations

import dataclasses
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from phi4local.backends import open_engine
from phi4local.catalog import MODELS
from phi4local.engine import Engine, GenerationOptions
from phi4local.errors import FormatError, NotFound, UsageError
from phi4local.settings import state_folder
from phi4local.store import Build, builds, find
from quant.gguf import Header
from quant.sound import read_model_header

_CARD_SAMPLING = GenerationOptions(temperature=0.8, top_k=50, top_p=0.95)


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded model: what it is called, its engine, and its own sampling (greedy where it names none)."""

    label: str
    engine: Engine
    options: GenerationOptions


def open_model(name: str | None, *, context_tokens: int | None = None, kv_type: str = "f16") -> Opened:
    """Load a build of the store, or the GGUF at a path.

    (NotFound, UsageError, FormatError, BackendError; DoesNotFit with the command that would work)
    """
    path, build = _locate(name)
    header = read_model_header(path)
    _check_size(path, build)
    engine = open_engine(path, context_tokens=context_tokens, state_folder=state_folder())
    return Opened(build.label if build else path.name, engine, _sampling(header, build))


def _locate(name: str | None) -> tuple[Path, Build | None]:
    if name and (name.endswith(".gguf") or "/" in name):
        return _file(Path(name)), None
    build = _newest(name)
    return build.path, build


def _newest(name: str | None) -> Build:
    """The build that was made last, of all or of one model; NAME:BUILD is that build."""
    here = [build for build in builds() if name is None or build.manifest.name.lower() == name.lower()]
    if here:
        return max(here, key=lambda build: build.manifest.created)
    if name is not None:
        return _find(name)
    raise NotFound("No model is here yet", hint="`phi4local demo` makes a tiny one, `phi4local quantize` a real one")


def _find(name: str) -> Build:
    """A build by name; a folder of that name is only a hint, because the store's names come first."""
    try:
        return find(name)
    except NotFound as error:
        if os.path.isdir(name):  # noqa: PTH112  unlike Path.is_dir, never raises for what cannot be a path
            raise NotFound(error.message, hint=_quantize(f"./{name}")) from None
        raise


def _quantize(folder: str) -> str:
    return f"`phi4local quantize {shlex.quote(folder)} --to Q4_K_M` makes a build of that folder"


def _file(path: Path) -> Path:
    if os.path.isdir(path):  # noqa: PTH112  see above
        raise UsageError(f"`{path}` is a folder", hint=_quantize(str(path)))
    if not os.path.isfile(path):  # noqa: PTH113  nor a pipe, which would be waited for without end
        raise NotFound(f"No file `{path}`", hint="Give a .gguf file, or a name from `phi4local list`")
    return path


def _check_size(path: Path, build: Build | None) -> None:
    """A cheap look at every load; `verify` is the thorough one."""
    if build and path.stat().st_size != build.manifest.bytes:
        raise FormatError(
            f"`{path.name}` has {path.stat().st_size} bytes, its manifest says {build.manifest.bytes}",
            hint=f"`phi4local remove {build.label}`, then build it again",
        )


def _sampling(header: Header, build: Build | None) -> GenerationOptions:
    """The file's own `general.sampling.*`, else the model card's, else greedy."""
    if build and any(model.sampled and model.name == build.manifest.name for model in MODELS):
        options = _CARD_SAMPLING
    else:
        options = GenerationOptions()
    temperature, top_k, top_p = (header.metadata.get(f"general.sampling.{key}") for key in ("temp", "top_k", "top_p"))
    if isinstance(temperature, float) and 0 <= temperature <= 10:
        options = dataclasses.replace(options, temperature=temperature)
    if type(top_k) is int and 0 < top_k < 1 << 20:
        options = dataclasses.replace(options, top_k=top_k)
    if isinstance(top_p, float) and 0 < top_p <= 1:
        options = dataclasses.replace(options, top_p=top_p)
    return options
