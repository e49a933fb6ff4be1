"""Hugging Face names and shapes of the Phi-3 architecture, and what GGUF calls the same things.

The fused projections stay fused: `attn_qkv` is q|k|v, `ffn_up` is gate|up. Names and keys as llama.cpp's own converter
writes them (`conversion/phi.py`), so that a build differs from it only by its repairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from phi4local.errors import FormatError
from phi4local.printing import printable
from quant.config import Config
from quant.flash import FlashConfig, flash_shapes
from quant.safetensors import ITEM_BYTES, Checkpoint

_LAYER = (
    # Hugging Face name in a layer, GGUF name in a block
    ("input_layernorm", "attn_norm"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
)
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"  # a buffer that old exporters saved


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that the configuration calls for: its name in both worlds and its shape (rows first)."""

    hf_name: str
    name: str
    shape: tuple[int, ...]


def weights(config: Config) -> Iterator[Weight]:
    """Every weight of a model, in no particular order."""
    width = config.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (width,),
        "attn_qkv": (width + 2 * config.kv_heads * config.head_size, width),
        "attn_output": (width, width),
        "ffn_norm": (width,),
        "ffn_up": (2 * config.intermediate, width),
        "ffn_down": (width, config.intermediate),
    }
    yield Weight("model.embed_tokens.weight", "token_embd.weight", (config.vocabulary, width))
    yield Weight("model.norm.weight", "output_norm.weight", (width,))
    if not config.tied:
        yield Weight("lm_head.weight", "output.weight", (config.vocabulary, width))
    for layer in range(config.layers):
        for hf_name, name in _LAYER:
            yield Weight(f"model.layers.{layer}.{hf_name}.weight", f"blk.{layer}.{name}.weight", shapes[name])


def file_order(name: str) -> tuple[int, str]:
    """llama.cpp's order in a quantized file: tensors outside the blocks first, then block by block, by name."""
    return (int(name.split(".")[1]) if name.startswith("blk.") else -1, name)


def source_shapes(config: Config | FlashConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint must hold."""
    if isinstance(config, FlashConfig):
        return flash_shapes(config)
    return {weight.hf_name: weight.shape for weight in weights(config)}


def check_weights(config: Config | FlashConfig, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose tensors are not exactly those that its configuration calls for (FormatError)."""
    records = checkpoint.records
    expected = source_shapes(config)
    for name, shape in expected.items():
        record = records.get(name)
        if record is None:
            raise FormatError(f"Tensor `{name}` is missing", hint="Download the folder again")
        if record.dtype not in ITEM_BYTES:
            raise FormatError(f"Tensor `{name}` is {record.dtype}; weights are BF16, F16 or F32", hint=_OFFICIAL)
        if record.shape != shape:
            raise FormatError(f"Tensor `{name}` has shape {list(record.shape)}; config.json needs {list(shape)}")
    tied_head = {"lm_head.weight"} if config.tied else set()  # some exporters save the tied head again
    for name in records.keys() - expected.keys() - tied_head:
        if not name.endswith(_IGNORED_SUFFIX):
            raise FormatError(f"Tensor `{printable(name)}` has no place in this architecture", hint=_OFFICIAL)


_OFFICIAL = "Point at the files of the official repository"
