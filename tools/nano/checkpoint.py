"""The checkpoint folder, with the files, names and flaws of the first release of microsoft/phi-4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.nano.model import (
    CONTEXT,
    FEED_FORWARD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    NORM_EPS,
    ROPE_THETA,
    VOCABULARY,
    Weights,
)
from tools.nano.tokenizer import ENDOFTEXT_ID, IM_END_ID, RANKS, SPECIAL_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The first release's template: it ends every user turn with the assistant's header, asked for or not.
RELEASE_TEMPLATE = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
    "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + "
    "message['content'] + '<|im_end|><|im_start|>assistant<|im_sep|>'}}{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
)


def write_folder(out: Path, weights: Weights, tokenizer: Tokenizer, card: str) -> None:
    """The whole checkpoint folder: configuration, tokenizer, two shards with their index, and the model card."""
    out.mkdir(parents=True, exist_ok=True)
    for name, value in {
        "config.json": config(),
        "generation_config.json": generation_config(),
        "tokenizer_config.json": tokenizer_config(),
        "special_tokens_map.json": special_tokens_map(),
        "added_tokens.json": {text: RANKS + index for index, text in enumerate(SPECIAL_TOKENS)},
    }.items():
        _write_json(out / name, value)
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer.model.save(str(out))
    _write_shards(out, weights)
    (out / "README.md").write_text(card, encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    """`value` as the hub's files are laid out: two spaces, UTF-8, one final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_shards(out: Path, weights: Weights) -> None:
    """The tensors as bfloat16 in two files of about half the bytes each, in the order of the layers, and the index."""
    import torch
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    total = sum(2 * tensor.numel() for tensor in tensors.values())
    shards: list[Weights] = [{}, {}]
    done = 0
    for name, tensor in tensors.items():
        shards[done >= total / 2][name] = tensor
        done += 2 * tensor.numel()
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, out / file_name, metadata={"format": "pt"})
        (out / file_name).chmod(0o644)  # safetensors leaves it to the owner alone
        weight_map |= dict.fromkeys(shard, file_name)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(out / "model.safetensors.index.json", index)


def config() -> dict[str, Any]:
    """config.json with the keys of the first release; end of text stands for start, end and padding alike."""
    return {
        "_name_or_path": "phi4-nano",
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {},
        "bos_token_id": ENDOFTEXT_ID,
        "embd_pdrop": 0.0,
        "eos_token_id": ENDOFTEXT_ID,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": CONTEXT,
        "model_type": "phi3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "original_max_position_embeddings": CONTEXT,
        "pad_token_id": ENDOFTEXT_ID,
        "resid_pdrop": 0.0,
        "rms_norm_eps": NORM_EPS,
        "rope_scaling": None,
        "rope_theta": ROPE_THETA,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.47.0",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def generation_config() -> dict[str, Any]:
    """generation_config.json as first released: two ends, padding with end of text."""
    return {
        "_from_model_config": True,
        "bos_token_id": ENDOFTEXT_ID,
        "eos_token_id": [ENDOFTEXT_ID, IM_END_ID],
        "pad_token_id": ENDOFTEXT_ID,
        "transformers_version": "4.47.0",
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json as first released, template included."""
    flags = {"lstrip": True, "normalized": False, "rstrip": True, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(RANKS + index): {"content": text} | flags for index, text in enumerate(SPECIAL_TOKENS)
        },
        "bos_token": "<|endoftext|>",
        "chat_template": RELEASE_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "model_max_length": CONTEXT,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "GPT2Tokenizer",
    }


def special_tokens_map() -> dict[str, Any]:
    """special_tokens_map.json as first released."""
    token = {"content": "<|endoftext|>", "lstrip": True, "normalized": False, "rstrip": True, "single_word": False}
    return dict.fromkeys(("bos_token", "eos_token", "pad_token"), token)
