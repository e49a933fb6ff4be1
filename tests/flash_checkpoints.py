"""Phi-4-mini-flash-reasoning folders with random weights, in the published layout: names, types, configuration.

`A_log` and the lambda vectors are float32 and all else bfloat16, as the sum of the published index has it.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.flash import flash_shapes, read_flash_config
from tests.checkpoints import FLASH, MINI_TEMPLATE, Shape, Vocabulary, small_vocabulary, to_bfloat16
from tests.vocabularies import write_json, write_tokenizer

__all__ = ["FLASH_DEEP", "FLASH_SHAPE", "FLASH_TINY", "flash_config_json", "stored_type", "write_flash_checkpoint"]

# The published config.json has no `mamba_*` keys.
FLASH_SHAPE = replace(FLASH, template=MINI_TEMPLATE, extra={})
FLASH_TINY = replace(
    FLASH_SHAPE,
    hidden=128,
    intermediate=256,
    layers=8,
    heads=8,
    kv_heads=4,
    vocab=864,
    max_position=4096,
    sliding_window=16,
)
FLASH_DEEP = replace(
    FLASH_TINY,
    hidden=96,
    layers=16,
    heads=12,
    kv_heads=2,
    sliding_window=9,
    tied=False,
    extra={"mamba_d_state": 8, "mamba_d_conv": 3, "mamba_expand": 3, "mamba_dt_rank": 32},
)


def flash_config_json(shape: Shape) -> dict[str, Any]:
    """config.json as a value, with the keys of the published one."""
    return {
        "architectures": ["Phi4FlashForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_phi4flash.Phi4FlashConfig",
            "AutoModelForCausalLM": "modeling_phi4flash.Phi4FlashForCausalLM",
            "AutoTokenizer": "Xenova/gpt-4o",
        },
        "pad_token_id": shape.pad_id,
        "bos_token_id": shape.bos_id,
        "embd_pdrop": 0.0,
        "eos_token_id": shape.eos_id,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": shape.max_position,
        "_attn_implementation": "flash_attention_2",
        "mb_per_layer": 2,
        "model_type": "phi4flash",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "resid_pdrop": 0.0,
        "sliding_window": shape.sliding_window,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": shape.tied,
        "transformers_version": "4.46.1",
        "use_cache": True,
        "mlp_bias": False,
        "lm_head_bias": False,
        "vocab_size": shape.vocab,
        **shape.extra,
    }


def stored_type(name: str) -> str:
    """The type, as safetensors calls it, in which the published files have a tensor."""
    return "F32" if name.endswith(".A_log") or ".lambda_" in name else "BF16"


def write_flash_checkpoint(folder: Path, shape: Shape, *, seed: int = 0, vocabulary: Vocabulary | None = None) -> Path:
    """The whole folder: configurations, tokenizer, one file of weights and its index."""
    folder.mkdir(parents=True, exist_ok=True)
    config = flash_config_json(shape)
    ids = {"bos_token_id": shape.bos_id, "pad_token_id": shape.pad_id}
    eos = {"eos_token_id": [shape.token_id("<|end|>"), shape.eos_id]}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"_from_model_config": True, **ids, **eos})
    write_tokenizer(folder, shape, vocabulary or small_vocabulary(shape))
    rng = np.random.default_rng(seed)
    tensors = {name: _random(rng, name, dims) for name, dims in flash_shapes(read_flash_config(config)).items()}
    size = _write_safetensors(folder / "model.safetensors", tensors)
    weight_map = dict.fromkeys(sorted(tensors), "model.safetensors")
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return folder


def _write_safetensors(path: Path, tensors: dict[str, npt.NDArray[np.float32]]) -> int:
    """Writes the file; the bytes of its tensors."""
    stored = {name: x if stored_type(name) == "F32" else to_bfloat16(x) for name, x in tensors.items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, x in stored.items():
        entries[name] = {"dtype": stored_type(name), "shape": list(x.shape), "data_offsets": [end, end + x.nbytes]}
        end += x.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for x in stored.values():
            file.write(x.tobytes())
    return end


def _random(rng: np.random.Generator, name: str, dims: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Weights under which every part of the model shows in the logits: states that last, lambdas that differ."""
    numbers = rng.standard_normal(dims, dtype=np.float32)
    if name.endswith(".A_log"):  # decays of 1 to n, as training begins with, disturbed
        return np.asarray(np.log(np.arange(1, dims[1] + 1)) + 0.2 * numbers, np.float32)
    if name.endswith("dt_proj.bias"):  # softplus of it is a step of 0.02 to 0.3
        steps = np.exp(rng.uniform(math.log(0.02), math.log(0.3), dims))
        return np.asarray(np.log(np.expm1(steps)), np.float32)
    if ".lambda_" in name:
        return np.asarray(numbers * (1.0 / math.sqrt(dims[0])), np.float32)
    if name.endswith(".bias"):
        return np.asarray(0.2 * numbers, np.float32)
    if len(dims) == 1:
        return np.asarray(1.0 + 0.1 * numbers, np.float32)
    scale = 2.0 if "embed_tokens" in name or "lm_head" in name else 1.0  # distributions with a clear favourite
    return np.asarray(numbers * (scale / math.sqrt(dims[-1])), np.float32)
