"""What a name on the command line means: builds of the store, a file, an MLX folder. Asks no engine, so it is quick."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from phi4local.catalog import find_model
from phi4local.errors import NotFound, UsageError
from phi4local.store import Build, builds, find
from quant.config import read_values
from quant.mlx import is_mlx_folder


def check_name(name: str) -> None:
    """Whether there is something of that name or path (NotFound, UsageError)."""
    if is_path(name):
        file_at(Path(name))
    else:
        builds_of(name)


def is_path(name: str) -> bool:
    return name.endswith(".gguf") or "/" in name or name in (".", "..")


def builds_of(name: str | None) -> list[Build]:
    """The builds of a model, the newest first; of the newest model without a name."""
    here = sorted(builds(), key=lambda build: build.manifest.created, reverse=True)
    if name is None and here:
        name = here[0].manifest.name
    if name is None:
        raise NotFound(
            "No model is here yet", hint="`phi4local demo` makes a tiny one, `phi4local pull phi-4` gets a real one"
        )
    return [build for build in here if build.manifest.name.lower() == name.lower()] or [_find(name)]


def _find(name: str) -> Build:
    """A build by name; a folder of that name is only a hint, because the store's names come first."""
    try:
        return find(name)
    except NotFound as error:
        if os.path.isdir(name):  # noqa: PTH112  unlike Path.is_dir, never raises for what cannot be a path
            raise NotFound(
                error.message, hint=_open(name) if is_mlx_folder(Path(name)) else _quantize(f"./{name}")
            ) from None
        model = find_model(name.partition(":")[0])
        if model and not error.hint.startswith("There is"):
            raise NotFound(error.message, hint=f"phi4local pull {name}") from None
        raise


def _open(name: str) -> str:
    return f"phi4local chat {shlex.quote(f'./{name}')}"


def _quantize(folder: str) -> str:
    return f"`phi4local quantize {shlex.quote(folder)} --to Q4_K_M` makes a build of that folder"


def file_at(path: Path) -> Path:
    if is_mlx_folder(path):
        return path
    if os.path.isdir(path):  # noqa: PTH112  see above
        if any(path.glob("model*.safetensors")):
            read_values(path)  # whose error says more, where that is what is wrong
        raise UsageError(f"`{path}` is a folder", hint=_quantize(str(path)))
    if not os.path.isfile(path):  # noqa: PTH113  nor a pipe, which would be waited for without end
        raise NotFound(f"No file `{path}`", hint="Give a .gguf file, an MLX folder, or a name from `phi4local list`")
    return path
