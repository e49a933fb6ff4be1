"""A skeleton: a GGUF with a true header and no weights, as large as the model and 16 KiB on disk.

llama.cpp reads tensor bytes late or never, so it can be asked about a model that nobody has downloaded: which type each
tensor gets in a mix (its quantizer's dry run), how much memory a load takes. No vocabulary is needed for either.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from phi4local.files import writing_to
from quant.config import Config
from quant.ggml import BUILDS, TYPES, TensorType
from quant.gguf import align, header_bytes
from quant.metadata import ARCHITECTURE, add_architecture
from quant.names import file_order, weights

if TYPE_CHECKING:
    import gguf

Shapes = dict[str, tuple[int, ...]]
Types = dict[str, TensorType]


def tensor_shapes(config: Config) -> Shapes:
    """Every tensor of a build with its shape (rows first), in the file's order."""
    shapes: Shapes = {weight.name: weight.shape for weight in weights(config)}
    if config.long_rope:
        shapes["rope_factors_long.weight"] = (len(config.long_rope.long),)
        shapes["rope_factors_short.weight"] = (len(config.long_rope.short),)
    return dict(sorted(shapes.items(), key=lambda item: file_order(item[0])))


def stored_bytes(shape: tuple[int, ...], tensor_type: TensorType) -> int:
    """Bytes of a tensor in a build."""
    return tensor_type.row_bytes(shape[-1]) * math.prod(shape[:-1])


def add_tensor(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], tensor_type: TensorType) -> None:
    """Announce a tensor in a header."""
    import gguf
    import numpy as np

    # The writer takes any dtype beside an explicit type but uint8, for which it would count bytes as shape.
    kind = gguf.GGMLQuantizationType(tensor_type.id)
    writer.add_tensor_info(name, shape, np.dtype(np.float32), stored_bytes(shape, tensor_type), raw_dtype=kind)


def source_types(shapes: Shapes) -> Types:
    """The types of the BF16 build: matrices as they are published, vectors in float32."""
    return {name: TYPES["BF16" if len(shape) == 2 else "F32"] for name, shape in shapes.items()}


def tensor_bytes(shapes: Shapes, types: Types) -> int:
    """Bytes of all tensors of a build, padding included: the file without its header."""
    return sum(align(stored_bytes(shape, types[name])) for name, shape in shapes.items())


def write_skeleton(path: Path, config: Config, build: str, types: Types) -> None:
    """Write the skeleton of a build to `path`; `types` names every tensor's."""
    shapes = tensor_shapes(config)

    def fill(writer: gguf.GGUFWriter) -> None:
        add_architecture(writer, config, BUILDS[build])
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(config.vocabulary)
        for name, shape in shapes.items():
            add_tensor(writer, name, shape, types[name])

    header = header_bytes(ARCHITECTURE, fill)
    size = tensor_bytes(shapes, types)
    with writing_to(path.parent, len(header) + size), path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
