"""What stands in a model's files before any engine sees them: a GGUF's header, or an MLX folder's small files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phi4local.backends.mlx_folder import read_folder
from phi4local.engine import GenerationOptions
from phi4local.errors import FormatError, NotFound
from phi4local.files import read_bounded
from quant.config import CONFIG_LIMIT_BYTES
from quant.safetensors import parse_json
from quant.sound import read_model_header
from quant.tokenizer import read_tokenizer

_GENERATION = "generation_config.json"


def is_folder(path: Path) -> bool:
    """Whether a build is a folder, which MLX runs, and not a GGUF file."""
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises for what cannot be a path


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a quick look finds: the context that the model was trained for (0: it does not say), and its own sampling.

    `sampling` is as it stands there: temperature, top-k, top-p.
    """

    trained_tokens: int
    sampling: tuple[Any, Any, Any]


def read_files(path: Path) -> ModelFiles:
    """Look at a file or a folder; what no engine would load is refused, as far as it shows (NotFound, FormatError)."""
    if is_folder(path):
        folder = read_folder(path)
        read_tokenizer(path, folder.shape)  # a damaged one is told before another model has been closed for it
        return ModelFiles(folder.trained_tokens, _folder_sampling(path))
    header = read_model_header(path)
    trained = header.count(f"{header.text('general.architecture')}.context_length") or 0
    temperature, top_k, top_p = (header.metadata.get(f"general.sampling.{key}") for key in ("temp", "top_k", "top_p"))
    return ModelFiles(trained, (temperature, top_k, top_p))


def _folder_sampling(path: Path) -> tuple[Any, Any, Any]:
    """Those of generation_config.json, which count where it samples at all."""
    try:
        values = parse_json(read_bounded(path / _GENERATION, CONFIG_LIMIT_BYTES), path / _GENERATION)
    except (NotFound, FormatError):  # it only advises
        return None, None, None
    if values.get("do_sample") is not True:
        return None, None, None
    return values.get("temperature"), values.get("top_k"), values.get("top_p")


def own_sampling(files: ModelFiles, options: GenerationOptions) -> GenerationOptions:
    """`options` with what the model's files ask for, each where it is sensible."""
    temperature, top_k, top_p = files.sampling
    if _is_number(temperature) and 0 <= temperature <= 10:
        options = replace(options, temperature=float(temperature))
    if type(top_k) is int and 0 < top_k < 1 << 20:
        options = replace(options, top_k=top_k)
    if _is_number(top_p) and 0 < top_p <= 1:
        options = replace(options, top_p=float(top_p))
    return options


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
