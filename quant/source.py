"""A folder of official weights, read and checked: configuration, tokenizer as repaired, shard headers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phi4local.errors import NotFound
from quant.config import Config, config_of, read_values
from quant.flash import FLASH_ARCHITECTURE, FlashConfig, read_flash_config
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
MLX_FILES = (*SMALL_FILES, "special_tokens_map.json")


class Arrival(Protocol):
    """Shards that are still on their way to the folder; of each, the beginning with its header is there.

    `sizes` are their bytes when they are whole, `stamp` is the same for the same bytes.
    """

    stamp: str

    @property
    def sizes(self) -> Mapping[str, int]: ...

    def here_bytes(self, name: str) -> int:
        """How much of a shard is on the disk, counted from its beginning."""

    def begin(self, names: Sequence[str]) -> None:
        """These shards will be read, in this order."""

    def wait(self, name: str, end: int) -> bool:
        """Whether the first `end` bytes of a shard are on the disk; waits for them a moment (DownloadError)."""

    def check(self, name: str, sha256: str) -> None:
        """Refuse a shard whose bytes are not the published ones (FormatError)."""

    def release(self, name: str) -> None:
        """The shard's tensors are written and noted; it is needed no longer."""


@dataclass(frozen=True, slots=True)
class Source:
    """Official weights: everything but the tensor bytes."""

    folder: Path
    config: Config | FlashConfig
    tokenizer: Tokenizer
    repairs: tuple[Repair, ...]
    checkpoint: Checkpoint
    stamp: str
    arrival: Arrival | None = None
    small_files: tuple[str, ...] = SMALL_FILES

    @property
    def dense(self) -> Config:
        """The configuration of what llama.cpp can run; nothing else gets that far."""
        assert isinstance(self.config, Config)
        return self.config


def stamp(folder: Path, small_files: tuple[str, ...] = SMALL_FILES) -> str:
    """Names, sizes and times of all files that a build is made of: equal as long as nobody touches them."""
    facts = [(name, _size_and_time(folder / name)) for name in source_files(folder, small_files)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def source_files(folder: Path, small_files: tuple[str, ...] = SMALL_FILES) -> list[str]:
    """The names of those files that are there."""
    names = {*small_files, *(path.name for path in folder.glob("*.safetensors"))}
    return sorted(name for name in names if (folder / name).exists())


def _size_and_time(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def read_source(folder: Path, arrival: Arrival | None = None, *, for_mlx: bool = False) -> Source:
    """Read and check a folder (NotFound, FormatError); its weights stay where they are, or are on their way.

    `for_mlx`: MLX reads one more file, and runs one more architecture.
    """
    small_files = MLX_FILES if for_mlx else SMALL_FILES
    if not folder.is_dir():
        raise NotFound(f"No folder `{folder}`", hint="Give a folder of official weights (config.json, *.safetensors)")
    if not (folder / "config.json").exists():
        raise NotFound(f"No `config.json` in `{folder}`", hint="Give a folder of official weights")
    before = arrival.stamp if arrival else stamp(folder, small_files)
    config = _config(folder, is_for_mlx=for_mlx)
    checkpoint = read_checkpoint(folder, arrival.sizes if arrival else None)
    check_weights(config, checkpoint)
    tokenizer, repairs = repair_tokenizer(read_tokenizer(folder, config))
    return Source(folder, config, tokenizer, repairs, checkpoint, before, arrival, small_files)


def _config(folder: Path, *, is_for_mlx: bool) -> Config | FlashConfig:
    values = read_values(folder)
    is_flash = is_for_mlx and values.get("architectures") == [FLASH_ARCHITECTURE]
    return read_flash_config(values) if is_flash else config_of(values)
