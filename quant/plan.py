"""The plan of a build: every tensor's type, size and offset, and the whole header, before a weight is read."""

from __future__ import annotations

import math
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from phi4local.errors import BackendError, UsageError
from quant import mlx
from quant.config import Config
from quant.ggml import BUILDS, TYPES, TensorType
from quant.gguf import align, header_bytes
from quant.metadata import ARCHITECTURE, add_architecture, add_tokenizer, read_card
from quant.names import weights
from quant.repair import Repair
from quant.rows import Bytes, Piece, RowFormat, Stored, Target, make_rows
from quant.safetensors import SINGLE_NAME, Record
from quant.skeleton import add_tensor, source_types, stored_bytes, tensor_shapes, write_skeleton
from quant.source import Source

if TYPE_CHECKING:
    import gguf

# A skeleton and a llama_ftype -> the type that llama.cpp's quantizer gives each tensor: {"output.weight": "Q6_K", ...}
AskTypes = Callable[[Path, int], dict[str, str]]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the result: `offset` from the start of the file; its source is a record, or ready `data`."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    size_bytes: int
    record: Record | None
    data: bytes = b""

    @property
    def ready(self) -> Piece | None:
        return None if self.record else (self.offset, np.frombuffer(self.data, np.uint8))

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        return self.type.name

    @property
    def stored(self) -> tuple[Stored, ...]:
        return (Stored(self.name, self.type.name, self.offset, self.size_bytes),)

    def pieces(self, rows: Bytes, first_row: int) -> Iterator[Piece]:
        assert self.record
        form = RowFormat(self.record.dtype, self.type, self.record.shape[-1])
        yield self.offset + first_row * form.target_row_bytes, make_rows(form, rows, self.name)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the writer needs; exact to the byte. The build is one file, or a folder with small `files` beside it.

    `weights_bytes` is the size of the file with the tensors.
    """

    format: ClassVar[str] = "gguf"
    quantizer: ClassVar[str] = "llama-cpp-python"  # the package whose version makes a difference to the bytes

    source: Source
    build: str
    header: bytes
    tensors: tuple[Target, ...]
    weights_bytes: int
    repairs: tuple[Repair, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def is_folder(self) -> bool:
        return bool(self.files)

    @property
    def size_bytes(self) -> int:
        return self.weights_bytes + sum(map(len, self.files.values()))

    @property
    def parameters(self) -> int:
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(stored.size_bytes for tensor in self.tensors for stored in tensor.stored) / self.parameters

    @property
    def type_counts(self) -> dict[str, int]:
        return dict(Counter(tensor.kind for tensor in self.tensors).most_common())

    @property
    def file_sizes(self) -> dict[str, int]:
        """The files of a folder and their bytes."""
        sizes = {name: len(data) for name, data in self.files.items()}
        return dict(sorted((sizes | {SINGLE_NAME: self.weights_bytes}).items())) if sizes else {}

    def weights_in(self, place: Path) -> Path:
        """The file with the tensors, of a build that stands there."""
        return place / SINGLE_NAME if self.is_folder else place


def check_build_name(build: str) -> str:
    """The build's name as it is spelt here (UsageError names them all)."""
    for name in (*BUILDS, *mlx.BUILDS):
        if name.lower() == build.lower():
            return name
    known = f"One of {', '.join(BUILDS)}, or for MLX {', '.join(mlx.BUILDS)}"
    raise UsageError(f"No build called `{build}`", hint=known)


def make_plan(source: Source, build: str, ask_types: AskTypes) -> Plan:
    """Lay a build out. `ask_types` puts the question of types to llama.cpp itself."""
    shapes = tensor_shapes(source.dense)
    with ThreadPoolExecutor(1) as pool:  # the engine thinks in a process of its own; the card is read meanwhile
        question = pool.submit(_tensor_types, source.dense, build, ask_types)
        card, card_repairs = read_card(source.folder, sum(math.prod(shape) for shape in shapes.values()))
        types = question.result()

    def fill(writer: gguf.GGUFWriter) -> None:
        import gguf

        writer.add_type(gguf.GGUFType.MODEL)
        card.set_gguf_meta_model(writer)
        add_architecture(writer, source.dense, BUILDS[build])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_tokenizer(writer, source.tokenizer)
        for name, shape in shapes.items():
            add_tensor(writer, name, shape, types[name])

    header = header_bytes(ARCHITECTURE, fill)
    tensors = _lay_out(source, types, len(header))
    weights_bytes = align(tensors[-1].offset + tensors[-1].size_bytes)
    return Plan(source, build, header, tensors, weights_bytes, source.repairs + card_repairs)


def _tensor_types(config: Config, build: str, ask_types: AskTypes) -> dict[str, TensorType]:
    shapes = tensor_shapes(config)
    if build == "BF16":  # what the source already is
        return source_types(shapes)
    with tempfile.TemporaryDirectory(prefix="phi4local-") as folder:
        skeleton = Path(folder) / "skeleton.gguf"
        write_skeleton(skeleton, config, "BF16", source_types(shapes))
        answers = ask_types(skeleton, BUILDS[build])
    if answers.keys() != shapes.keys() or not all(answer in TYPES for answer in answers.values()):
        raise BackendError("The engine's dry run did not name a known type for every tensor", hint=_REINSTALL)
    return {name: TYPES[answers[name]] for name in shapes}


_REINSTALL = "Reinstall the engine: pip install --force-reinstall llama-cpp-python==0.3.36"


def _lay_out(source: Source, types: dict[str, TensorType], offset: int) -> tuple[PlannedTensor, ...]:
    records = source.checkpoint.records
    record_of = {weight.name: records[weight.hf_name] for weight in weights(source.dense)}
    ready = _rope_factors(source.dense)
    tensors = []
    for name, shape in tensor_shapes(source.dense).items():
        size_bytes = stored_bytes(shape, types[name])
        data = ready.get(name, b"")
        tensors.append(PlannedTensor(name, shape, types[name], offset, size_bytes, record_of.get(name), data))
        offset += align(size_bytes)
    return tuple(tensors)


def _rope_factors(config: Config) -> dict[str, bytes]:
    if config.long_rope is None:
        return {}
    long, short = config.long_rope.long, config.long_rope.short
    return {
        "rope_factors_long.weight": struct.pack(f"<{len(long)}f", *long),
        "rope_factors_short.weight": struct.pack(f"<{len(short)}f", *short),
    }
