"""This machine, what the installed engine can use of it, and the command that fixes what is missing."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from hardware.probe import probe
from hardware.report import EngineBuild, Report
from phi4local.backends.ask import engine_build
from phi4local.backends.mlx_ask import INSTALL
from phi4local.errors import BackendError
from phi4local.settings import home_folder

_REBUILD = 'CMAKE_ARGS="{}" pip install --force-reinstall --no-cache-dir llama-cpp-python==0.3.36'
# vendor of a card -> how llama.cpp is built for it
_CMAKE_FLAGS = {
    "nvidia": "-DGGML_CUDA=on",
    "apple": "-DGGML_METAL=on",
    "amd": "-DGGML_VULKAN=on",
    "intel": "-DGGML_VULKAN=on",
}


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that keeps the machine from being used, and the one command that changes it."""

    fact: str
    command: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The probe's result; `engine` is None where none is installed."""

    report: Report
    engine: EngineBuild | None
    missing: tuple[Missing, ...]


def look() -> Machine:
    """Probe the machine and ask the engine; nothing that is absent is an error."""
    report = probe(home_folder())
    try:
        engine = engine_build()
    except BackendError as error:
        return Machine(report, None, (Missing(error.message, error.hint),))
    return Machine(report, engine, missing(report, engine))


def mlx_version() -> str | None:
    """The release of mlx-lm that is installed; None: none."""
    try:
        return importlib.metadata.version("mlx-lm")
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(report: Report, engine: EngineBuild) -> tuple[Missing, ...]:
    """A card that the engine was not built for, and MLX where it belongs.

    An integrated card is left alone, because it is no faster.
    """
    apple = any(gpu.vendor == "apple" and gpu.unified for gpu in report.gpus)
    mlx = (Missing("MLX is not installed", INSTALL),) if apple and mlx_version() is None else ()
    return (*_unused_cards(report, engine), *mlx)


def _unused_cards(report: Report, engine: EngineBuild) -> tuple[Missing, ...]:
    if engine.supports_gpu:
        return ()
    unused = [gpu for gpu in report.gpus if gpu.vendor in _CMAKE_FLAGS and (not gpu.unified or gpu.vendor == "apple")]
    return tuple(
        Missing(f"The engine was built without support for the {gpu.name}", _REBUILD.format(_CMAKE_FLAGS[gpu.vendor]))
        for gpu in unused[:1]
    )
