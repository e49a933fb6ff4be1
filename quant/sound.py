"""Whether a GGUF can be given to an engine: what llama.cpp itself does not check, or ends its process on."""

from __future__ import annotations

import math
from pathlib import Path

from phi4local.errors import FormatError
from quant.gguf import Header, read_header

_SIZES = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length")
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_SIZE_LIMIT = 1 << 24


def read_model_header(path: Path) -> Header:
    """The header of a model that can be loaded (NotFound, FormatError with the reason in one line)."""
    header = read_header(path)
    try:
        _check(header)
    except FormatError as error:
        hint = error.hint or "Get the file again"
        raise FormatError(f"`{path.name}` cannot be loaded: {error.message}", hint=hint) from None
    return header


def _check(header: Header) -> None:
    parts = header.count("split.count") or 1
    if parts > 1:
        raise FormatError(f"it is one of {parts} parts of a model", hint=_MERGE)
    architecture = header.text("general.architecture")
    if not architecture:
        raise FormatError("it does not say which architecture it holds")
    if not header.tensors:
        raise FormatError("it holds no tensors (a vocabulary or an adapter?)")
    for name in _SIZES:
        value = header.metadata.get(f"{architecture}.{name}")
        if type(value) is int and not 0 < value <= _SIZE_LIMIT:
            raise FormatError(f"`{architecture}.{name}` is {value}")
    for name in _EPSILONS:
        value = header.metadata.get(f"{architecture}.{name}")
        if isinstance(value, float) and not (math.isfinite(value) and 0 < value < 1):
            raise FormatError(f"`{architecture}.{name}` is {value}")
    _check_blocks(header, architecture)
    _check_vocabulary(header)
    if architecture == "phi3":
        _check_phi3(header)


_MERGE = "Merge the parts first: llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf"


def _check_blocks(header: Header, architecture: str) -> None:
    """A block count that does not fit the tensors ends llama.cpp's process."""
    claimed = header.count(f"{architecture}.block_count")
    parts = [tensor.name.split(".") for tensor in header.tensors]
    numbers = {int(part[1]) for part in parts if len(part) > 2 and part[0] == "blk" and part[1].isdecimal()}
    if claimed is None or claimed != len(numbers) or max(numbers, default=-1) != claimed - 1:
        raise FormatError(f"`{architecture}.block_count` is {claimed}, but there are {len(numbers)} blocks")


def _check_vocabulary(header: Header) -> None:
    tokens = header.items("tokenizer.ggml.tokens")
    embedding = next((t for t in header.tensors if t.name == "token_embd.weight"), None)
    if tokens is None or embedding is None:
        raise FormatError("it has no vocabulary or no token embedding")
    if len(embedding.shape) != 2 or embedding.shape[1] != len(tokens):
        raise FormatError(f"its vocabulary has {len(tokens)} tokens, its embedding the shape {list(embedding.shape)}")
    if len(set(tokens)) + max(tokens.count("") - 1, 0) != len(tokens):  # llama.cpp names empty tokens by their ids
        raise FormatError("its vocabulary has the same token twice")
    types = header.items("tokenizer.ggml.token_type")
    if types is not None and len(types) != len(tokens):
        raise FormatError(f"its vocabulary has {len(tokens)} tokens and {len(types)} token types")
    for kind in ("bos", "eos", "padding", "unknown"):
        token_id = header.metadata.get(f"tokenizer.ggml.{kind}_token_id")
        if token_id is not None and (type(token_id) is not int or not 0 <= token_id < len(tokens)):
            raise FormatError(f"its {kind} token is {token_id}, of {len(tokens)} tokens")


def _check_phi3(header: Header) -> None:
    """Every tensor must have the shape that the metadata calls for."""
    keys = ("embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv")
    width, inner, heads, kv_heads = (header.count(f"phi3.{key}") or 0 for key in keys)
    rotary = header.count("phi3.rope.dimension_count") or 0
    if not width or not inner or not heads or not kv_heads or width % heads or heads % kv_heads:
        raise FormatError(f"its sizes do not fit: width {width}, inner {inner}, heads {heads}, KV heads {kv_heads}")
    if rotary % 2 or not 0 < rotary <= width // heads:
        raise FormatError(f"`phi3.rope.dimension_count` is {rotary} of {width // heads}")
    expected = {
        "attn_norm": (width,),
        "ffn_norm": (width,),
        "attn_qkv": (width, width + 2 * kv_heads * (width // heads)),
        "attn_output": (width, width),
        "ffn_up": (width, 2 * inner),
        "ffn_down": (inner, width),
        "token_embd": (width,),
        "output": (width,),
        "output_norm": (width,),
    }
    for tensor in header.tensors:
        part = tensor.name.removesuffix(".weight").split(".")[-1]
        shape = expected.pop(part, None) if part in ("token_embd", "output", "output_norm") else expected.get(part)
        if shape and tensor.shape[: len(shape)] != shape:
            raise FormatError(f"tensor `{tensor.name}` has the shape {list(tensor.shape)}")
    if "token_embd" in expected or "output_norm" in expected:
        raise FormatError("it has no token embedding or no output norm")
