"""Facts about a machine as frozen data; None is a fact that nobody here could tell, and `notes` say why.

Whoever has loaded the engine describes it with `EngineBuild`: this package never imports the engine.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor; `features` are the instruction sets that matter for inference, x86's in Linux's spelling."""

    model: str | None = None
    physical_cores: int | None = None
    logical_cores: int | None = None
    usable_cores: float | None = None  # what affinity and a container's quota leave, so 1.5 is possible
    performance_cores: int | None = None  # physical ones of the fast kind; None where all are alike or nobody tells
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """Main memory; `available_bytes` is what this process can still take, within its container's limit."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    swap_total_bytes: int | None = None
    limit_bytes: int | None = None  # of the container or service; None where nothing below `total_bytes` is set


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that holds `path` or, before it exists, its nearest existing parent."""

    path: Path
    total_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics card. One with unified memory has none of its own: its total and free stay None."""

    vendor: str  # nvidia, amd, apple, intel
    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    used_bytes: int | None = None  # by anybody; drivers keep some for themselves, so free and used may not add up
    driver: str | None = None
    compute_capability: str | None = None  # "8.9" of NVIDIA, "gfx1100" of AMD
    cores: int | None = None
    bandwidth_bytes_per_second: int | None = None  # of its memory, as its maker states it
    unified: bool | None = None
    shared_bytes: int | None = None  # how much of the main memory its driver lets it use
    bus_id: str | None = None  # "0000:01:00.0"; card numbers differ between tools, this does not


@dataclass(frozen=True, slots=True)
class EngineDevice:
    """A device as the engine itself lists it (`kind`: cpu, gpu, igpu or accel)."""

    name: str
    description: str
    kind: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    bus_id: str | None = None


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """What the installed engine was built with and which devices it can use."""

    version: str
    supports_gpu: bool
    devices: tuple[EngineDevice, ...] = ()
    features: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """The same facts in JSON's types."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that `probe` found out."""

    os: str
    machine: str
    cpu: Cpu
    memory: Memory
    disks: tuple[Disk, ...]
    gpus: tuple[Gpu, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """The same facts in JSON's types; an unknown is null."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def plain(value: object) -> object:
    """Facts in JSON's types: objects, lists, numbers, texts and null."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
