"""The keys of a build, as llama.cpp's own converter writes them for the Phi-3 architecture (`conversion/phi.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.card import check_generation, load_card
from quant.config import Config, LongRope
from quant.gguf import Header
from quant.repair import Repair
from quant.tokenizer import Tokenizer

if TYPE_CHECKING:
    import gguf

ARCHITECTURE = "phi3"
# llama.cpp treats a model so named as a Phi-3 and looks for tokens that a Phi-4 does not have (llama-vocab.cpp).
_MISREAD_NAMES = ("phi-3", "phi3")


def add_architecture(writer: gguf.GGUFWriter, config: Config, file_type: int) -> None:
    """Sizes and rope. A sliding window of 0 tells loaders that this is a Phi-4 (llama.cpp PR 10817)."""
    writer.add_context_length(config.context)
    writer.add_rope_scaling_orig_ctx_len(config.original_context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_block_count(config.layers)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_epsilon)
    writer.add_rope_dimension_count(config.rotary_dimensions)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_file_type(file_type)
    writer.add_sliding_window(config.sliding_window)
    if config.long_rope:
        writer.add_rope_scaling_attn_factors(config.attention_factor)


def config_of(header: Header) -> Config | None:
    """The model of a build, read back from what `add_architecture` wrote; None for another architecture.

    The rope factors are not in the header: there are as many as needed, all 1.
    """
    if header.text("general.architecture") != ARCHITECTURE:
        return None
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    counts = {key: header.count(f"{ARCHITECTURE}.{name}") for key, name in _COUNTS.items()}
    theta, epsilon = (header.metadata.get(f"{ARCHITECTURE}.{name}") for name in _NUMBERS)
    embedding, factors = shapes.get("token_embd.weight"), shapes.get("rope_factors_long.weight")
    if None in counts.values() or embedding is None or not isinstance(theta, float) or not isinstance(epsilon, float):
        return None
    return Config(
        **{key: count for key, count in counts.items() if count is not None},
        vocabulary=embedding[-1],
        rope_theta=theta,
        rms_epsilon=epsilon,
        long_rope=LongRope((1.0,) * factors[0], (1.0,) * factors[0]) if factors else None,
        sliding_window=header.count(f"{ARCHITECTURE}.attention.sliding_window") or 0,
        tied="output.weight" not in shapes,
        special_ids={},
    )


_COUNTS = {
    "hidden": "embedding_length",
    "intermediate": "feed_forward_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "context": "context_length",
    "original_context": "rope.scaling.original_context_length",
    "rotary_dimensions": "rope.dimension_count",
}
_NUMBERS = ("rope.freq_base", "attention.layer_norm_rms_epsilon")


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Vocabulary, merges, special ids, template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.token_types)
    writer.add_token_merges(tokenizer.merges)
    for kind, token_id in tokenizer.special_ids.items():
        getattr(writer, f"add_{kind}_token_id")(token_id)
    for kind, flag in tokenizer.add_flags.items():
        if add := getattr(writer, f"add_add_{kind}_token", None):
            add(flag)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def read_card(folder: Path, parameters: int) -> tuple[Any, tuple[Repair, ...]]:
    """Name, licence, sampling and the like from the folder's name, its card and generation_config.json (FormatError).

    A name that llama.cpp would take for a Phi-3's is changed, and that is told as a repair.
    """
    import gguf

    check_generation(folder)
    card = load_card(folder, parameters)
    card.name = card.name or folder.resolve().name
    if card.size_label is None:
        card.size_label = gguf.size_label(parameters, parameters, 0, 0)
    misread = any(name in card.name.lower() for name in _MISREAD_NAMES)
    if not misread:
        return card, ()
    repair = Repair("general.name", card.name, "Phi-4", "llama.cpp would take a model of this name for a Phi-3")
    card.name = repair.after
    return card, (repair,)
