"""A folder of official weights, read and checked: configuration, tokenizer as repaired, shard headers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from phi4local.errors import NotFound
from quant.config import Config, read_config
from quant.names import check_weights
from quant.repair import Repair, repair_tokenizer
from quant.safetensors import Checkpoint, read_checkpoint
from quant.tokenizer import Tokenizer, read_tokenizer

# What a build is made of besides its shards; those that exist are hashed into the manifest.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "README.md",
)


@dataclass(frozen=True, slots=True)
class Source:
    """Official weights: everything but the tensor bytes."""

    folder: Path
    config: Config
    tokenizer: Tokenizer
    repairs: tuple[Repair, ...]
    checkpoint: Checkpoint
    stamp: str


def stamp(folder: Path) -> str:
    """Names, sizes and times of all files that a build is made of: equal as long as nobody touches them."""
    facts = [(name, _size_and_time(folder / name)) for name in source_files(folder)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def source_files(folder: Path) -> list[str]:
    """The names of those files that are there."""
    names = {*SMALL_FILES, *(path.name for path in folder.glob("*.safetensors"))}
    return sorted(name for name in names if (folder / name).exists())


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def read_source(folder: Path) -> Source:
    """Read and check a folder (NotFound, FormatError); its weights stay where they are."""
    if not folder.is_dir():
        raise NotFound(f"No folder `{folder}`", hint="Give a folder of official weights (config.json, *.safetensors)")
    if not (folder / "config.json").exists():
        raise NotFound(f"No `config.json` in `{folder}`", hint="Give a folder of official weights")
    before = stamp(folder)
    config = read_config(folder)
    checkpoint = read_checkpoint(folder)
    check_weights(config, checkpoint)
    tokenizer, repairs = repair_tokenizer(read_tokenizer(folder, config))
    return Source(folder, config, tokenizer, repairs, checkpoint, before)
