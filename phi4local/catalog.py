"""The Phi-4 models that become a GGUF, as data: names, official repositories, and how to know each one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from quant.config import Config


@dataclass(frozen=True, slots=True)
class Model:
    """`spellings` are folder and repository names, in lower case; the shape tells families apart."""

    name: str
    repository: str
    spellings: tuple[str, ...]
    hidden: int
    layers: int
    rope_theta: float
    sampled: bool = False  # the model's card asks for temperature 0.8, top-k 50, top-p 0.95


MODELS = (
    Model("phi-4", "microsoft/phi-4", ("phi-4",), 5120, 40, 250_000),
    Model("phi-4-reasoning", "microsoft/Phi-4-reasoning", ("phi-4-reasoning",), 5120, 40, 500_000, True),
    Model("phi-4-reasoning-plus", "microsoft/Phi-4-reasoning-plus", ("phi-4-reasoning-plus",), 5120, 40, 500_000, True),
    Model("phi-4-mini", "microsoft/Phi-4-mini-instruct", ("phi-4-mini-instruct", "phi-4-mini"), 3072, 32, 10_000),
    Model("phi-4-mini-reasoning", "microsoft/Phi-4-mini-reasoning", ("phi-4-mini-reasoning",), 3072, 32, 10_000, True),
)

_CACHE_FOLDER = re.compile(r"models--([\w.\-]+)--([\w.\-]+)/snapshots/([0-9a-f]{40})")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a folder of weights comes from, as far as its place on the disk tells."""

    repository: str | None
    revision: str | None


def origin(folder: Path) -> Origin:
    """Repository and revision of a folder in the Hub's cache; unknown elsewhere."""
    match = _CACHE_FOLDER.search(folder.resolve().as_posix())
    return Origin(f"{match[1]}/{match[2]}", match[3]) if match else Origin(None, None)


def model_name(folder: Path, config: Config) -> str:
    """What a model made from `folder` is called.

    A name of the catalogue is given only where the shape is the model's and the repository or, without one, the
    folder is spelt like it; a fine-tune keeps its own name, so that it never takes the original's place.
    """
    repository = origin(folder).repository
    title = slug(repository.split("/")[-1] if repository else folder.resolve().name)
    shape = (config.hidden, config.layers, config.rope_theta)
    for model in MODELS:
        known = repository.lower() == model.repository.lower() if repository else title in model.spellings
        if known and (model.hidden, model.layers, model.rope_theta) == shape:
            return model.name
    return title


def slug(text: str) -> str:
    """A name that is safe as a folder and easy to type."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())[:80].strip("-.") or "model"
