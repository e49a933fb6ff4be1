"""Checkpoints in the layout of the official Phi-4 folders, with random weights: the input of every converter test.

`write_checkpoint` writes a whole folder, `write_sparse_checkpoint` one of true size whose tensor bytes are holes; the
shapes to pass are those of `tests.shapes`, offered here too. Needs numpy alone. The vocabulary is a small one with the
line's special tokens at its end, as far from the end as in the real one, unless a full one is passed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.shapes import (
    CL100K,
    FLASH,
    HALF_BILLION,
    LLAMA,
    LLAMAFIED,
    MINI_REASONING_SHAPE,
    MINI_REASONING_TEMPLATE,
    MINI_REASONING_TINY,
    MINI_SHAPE,
    MINI_TEMPLATE,
    MINI_TINY,
    MINI_TINY_V5,
    MULTIMODAL,
    O200K,
    ODD,
    ODDER,
    PHI4_14B_SHAPE,
    PHI4_RELEASE_14B_SHAPE,
    PHI4_RELEASE_TEMPLATE,
    PHI4_RELEASE_TINY,
    PHI4_TEMPLATE,
    PHI4_TINY,
    PHI4_TINY_V5,
    REASONING_14B_SHAPE,
    REASONING_SYSTEM,
    REASONING_TEMPLATE,
    REASONING_TINY,
    VISION,
    Shape,
)
from tests.vocabularies import (
    Vocabulary,
    cl100k_tokenizer,
    o200k_tokenizer,
    small_vocabulary,
    write_json,
    write_tokenizer,
)

__all__ = [
    "CL100K",
    "FLASH",
    "HALF_BILLION",
    "LLAMA",
    "LLAMAFIED",
    "MINI_REASONING_SHAPE",
    "MINI_REASONING_TEMPLATE",
    "MINI_REASONING_TINY",
    "MINI_SHAPE",
    "MINI_TEMPLATE",
    "MINI_TINY",
    "MINI_TINY_V5",
    "MULTIMODAL",
    "O200K",
    "ODD",
    "ODDER",
    "PHI4_14B_SHAPE",
    "PHI4_RELEASE_14B_SHAPE",
    "PHI4_RELEASE_TEMPLATE",
    "PHI4_RELEASE_TINY",
    "PHI4_TEMPLATE",
    "PHI4_TINY",
    "PHI4_TINY_V5",
    "REASONING_14B_SHAPE",
    "REASONING_SYSTEM",
    "REASONING_TEMPLATE",
    "REASONING_TINY",
    "VISION",
    "Shape",
    "Vocabulary",
    "cl100k_tokenizer",
    "config_json",
    "o200k_tokenizer",
    "parameter_count",
    "safetensors_header",
    "small_vocabulary",
    "tensor_shapes",
    "to_bfloat16",
    "write_checkpoint",
    "write_configs",
    "write_sparse_checkpoint",
]

# --- configurations --------------------------------------------------------------------------------------------------


def config_json(shape: Shape) -> dict[str, Any]:
    """config.json as a value, in the spelling of transformers 4 or 5."""
    config: dict[str, Any] = {
        "architectures": [shape.architecture],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": shape.bos_id,
        "embd_pdrop": 0.0,
        "eos_token_id": shape.eos_id,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.max_position,
        "model_type": shape.model_type,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "original_max_position_embeddings": shape.original_max_position,
        "pad_token_id": shape.pad_id,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "sliding_window": shape.sliding_window,
        "tie_word_embeddings": shape.tied,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }
    if shape.partial_rotary != 1.0:
        config["partial_rotary_factor"] = shape.partial_rotary
    return dict(sorted((config | _rope_config(shape) | dict(shape.extra)).items()))


def _rope_config(shape: Shape) -> dict[str, Any]:
    """The keys that the two spellings write differently."""
    factors = {"long_factor": list(shape.long_factor), "short_factor": list(shape.short_factor)}
    if shape.rope_spelling == "rope_scaling":
        scaling = {**factors, "type": "longrope"} if shape.long_factor else None
        version = {"torch_dtype": shape.dtype, "transformers_version": "4.47.0"}
        return {"rope_theta": shape.rope_theta, "rope_scaling": scaling} | version
    rope = {"partial_rotary_factor": shape.partial_rotary, "rope_theta": shape.rope_theta, "rope_type": "default"}
    if shape.long_factor:
        original = {"original_max_position_embeddings": shape.original_max_position}
        rope |= factors | original | {"rope_type": "longrope", "type": "longrope"}
    return {"rope_parameters": rope, "dtype": shape.dtype, "transformers_version": "5.23.0"}


def _generation_config(shape: Shape) -> dict[str, Any]:
    eos = [shape.token_id(text) for text in shape.generation_eos]
    return {
        "_from_model_config": True,
        "bos_token_id": shape.bos_id,
        **shape.generation,
        "eos_token_id": eos if len(eos) > 1 else eos[0],
        "pad_token_id": shape.pad_id,
        "transformers_version": "4.47.0",
    }


def write_configs(folder: Path, shape: Shape, vocabulary: Vocabulary | None = None) -> Path:
    """Every file of the folder but the weights; the small vocabulary unless another is given."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config_json(shape))
    write_json(folder / "generation_config.json", _generation_config(shape))
    write_tokenizer(folder, shape, vocabulary or small_vocabulary(shape))
    return folder


# --- weights ---------------------------------------------------------------------------------------------------------

_ITEM = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}  # safetensors' name, bytes an element
_SHARD_LIMIT = 5_000_000_000  # bytes of tensors in one official shard
_POOL = 4_194_301  # random numbers of a large tensor before they repeat; a prime, so rows do not
Tensors = Mapping[str, tuple[int, ...]]


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and shape (rows, columns) of every tensor, in the model's own order; gate before up, q before k before v."""
    hidden, heads, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "self_attn.o_proj.weight": (hidden, heads),
            prefix + "self_attn.qkv_proj.weight": (heads + 2 * kv, hidden),
            prefix + "mlp.gate_up_proj.weight": (2 * shape.intermediate, hidden),
            prefix + "mlp.down_proj.weight": (hidden, shape.intermediate),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
    tensors["model.norm.weight"] = (hidden,)
    return tensors if shape.tied else tensors | {"lm_head.weight": (shape.vocab, hidden)}


def parameter_count(shape: Shape) -> int:
    """Elements of all tensors."""
    return sum(math.prod(dims) for dims in tensor_shapes(shape).values())


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Finite float32 as bfloat16 bits, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def _random_weights(rng: np.random.Generator, name: str, dims: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Norms near one and matrices of one over root columns: a deep stack's activations keep near unit size."""
    size = math.prod(dims)
    numbers = np.resize(rng.standard_normal(min(size, _POOL), dtype=np.float32), size).reshape(dims)
    if len(dims) == 1:
        return 1.0 + 0.1 * numbers
    scale = 2.0 if "embed_tokens" in name or "lm_head" in name else 1.0  # distributions with a clear favourite
    return numbers * np.float32(scale / math.sqrt(dims[1]))


def _encoded(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def _shards(tensors: Tensors, count: int, itemsize: int) -> list[dict[str, tuple[int, ...]]]:
    """The tensors in `count` runs: as the official limit cuts them if that gives `count`, else equal."""
    filled: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, dims in tensors.items():
        size = math.prod(dims) * itemsize
        if used + size > _SHARD_LIMIT:
            filled.append({})
            used = 0
        filled[-1][name] = dims
        used += size
    return filled if len(filled) == count else _equal_shards(tensors, count)


def _equal_shards(tensors: Tensors, count: int) -> list[dict[str, tuple[int, ...]]]:
    """Each tensor goes where its middle element lies when all elements are cut into `count` equal parts."""
    total = sum(math.prod(dims) for dims in tensors.values())
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(count)]
    before = 0
    for name, dims in tensors.items():
        size = math.prod(dims)
        shards[(2 * before + size) * count // (2 * total)][name] = dims
        before += size
    if not all(shards):
        raise ValueError(f"{len(tensors)} tensors do not fill {count} shards")
    return shards


def safetensors_header(tensors: Tensors, dtype: str) -> tuple[bytes, int]:
    """A shard's header, padded to 8 bytes as the official writer does, and the bytes of data that follow it."""
    code, itemsize = _ITEM[dtype]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in tensors.items():
        start, end = end, end + math.prod(dims) * itemsize
        entries[name] = {"dtype": code, "shape": list(dims), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


def _shard_files(folder: Path, shape: Shape, shards: int) -> Iterator[tuple[Path, dict[str, tuple[int, ...]]]]:
    """Writes the index, then yields every shard's path and its tensors by name, the order inside official shards."""
    itemsize = _ITEM[shape.dtype][1]
    parts = _shards(tensor_shapes(shape), shards, itemsize)
    names = [f"model-{i:05d}-of-{shards:05d}.safetensors" for i in range(1, shards + 1)]
    weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    total = {"total_size": parameter_count(shape) * itemsize}
    write_json(
        folder / "model.safetensors.index.json", {"metadata": total, "weight_map": dict(sorted(weight_map.items()))}
    )
    for name, part in zip(names, parts, strict=True):
        yield folder / name, dict(sorted(part.items()))


def write_checkpoint(
    folder: Path, shape: Shape, *, shards: int = 2, seed: int = 0, vocabulary: Vocabulary | None = None
) -> Path:
    """The whole folder with weights from `seed`; for an architecture other than Phi3ForCausalLM without weights."""
    write_configs(folder, shape, vocabulary)
    if shape.architecture != "Phi3ForCausalLM":
        return folder
    rng = np.random.default_rng(seed)
    for path, tensors in _shard_files(folder, shape, shards):
        with path.open("wb") as file:
            file.write(safetensors_header(tensors, shape.dtype)[0])
            for name, dims in tensors.items():
                file.write(_encoded(_random_weights(rng, name, dims), shape.dtype).tobytes())
    return folder


def write_sparse_checkpoint(
    folder: Path, shape: Shape, shards: int = 6, *, vocabulary: Vocabulary | None = None
) -> Path:
    """The folder with shards of true header and true size whose data is a hole: a few kilobytes on disk, all zero."""
    write_configs(folder, shape, vocabulary)
    for path, tensors in _shard_files(folder, shape, shards):
        header, size = safetensors_header(tensors, shape.dtype)
        path.write_bytes(header)
        with path.open("r+b") as file:
            file.truncate(len(header) + size)
    return folder
