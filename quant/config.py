"""config.json of the Phi-4 family: what the model is, or a refusal that says what it is instead.

Both spellings are read: `rope_theta` and `rope_scaling` at the top level (transformers 4) and one `rope_parameters`
object (transformers 5). A model is known by `architectures` and `model_type`, never by its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi4local.errors import FormatError
from phi4local.files import read_bounded
from phi4local.printing import printable
from quant.safetensors import parse_json

CONFIG_LIMIT_BYTES = 1_000_000
ARCHITECTURE = "Phi3ForCausalLM"

_LIMITS = {  # far above any Phi, far below what could hurt
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "vocab_size": 1 << 20,
    "max_position_embeddings": 1 << 24,
}

_REFUSED = {
    "Phi4FlashForCausalLM": (
        "Phi-4-mini-flash-reasoning (SambaY: Mamba and differential attention), which llama.cpp cannot run",
        "`--to mlx-4bit` makes a build for MLX; for llama.cpp Phi-4-mini-reasoning is the nearest",
    ),
    "Phi4MMForCausalLM": (
        "Phi-4-multimodal-instruct, whose vision and speech adapters llama.cpp cannot run",
        "Phi-4-mini-instruct is the same language model without them",
    ),
    "Phi4MultimodalForCausalLM": (
        "Phi-4-multimodal-instruct (re-exported), whose vision and speech adapters llama.cpp cannot run",
        "Phi-4-mini-instruct is the same language model without them",
    ),
    "Phi4ForCausalLMV": (
        "Phi-4-reasoning-vision-15B, which needs an image encoder beside the language model",
        "Phi-4-reasoning is its language-only relative",
    ),
    "LlamaForCausalLM": (
        "a Llama-architecture checkpoint (re-uploads of Phi-4 with split projections look like this)",
        "Get the official repository, microsoft/phi-4, or a ready-made GGUF",
    ),
    "PhiForCausalLM": ("Phi-1 or Phi-2, not a Phi-4", "llama.cpp's own converter makes a GGUF of it"),
    "Phi3VForCausalLM": ("Phi-3-vision, not a Phi-4", "Phi-4-mini-instruct is the nearest model that runs here"),
    "PhiMoEForCausalLM": ("Phi-3.5-MoE, not a Phi-4", "llama.cpp's own converter makes a GGUF of it"),
}


@dataclass(frozen=True, slots=True)
class LongRope:
    """Longrope's factors (rotary_dimensions / 2 each): `short` up to the original context, `long` beyond."""

    long: tuple[float, ...]
    short: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """A dense Phi-3-architecture language model; sizes in elements, contexts in tokens."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    original_context: int
    rotary_dimensions: int
    rope_theta: float
    long_rope: LongRope | None
    rms_epsilon: float
    sliding_window: int
    tied: bool
    special_ids: dict[str, int]

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def attention_factor(self) -> float:
        """What longrope multiplies cos and sin by: sqrt(1 + ln(context / original) / ln(original))."""
        scale = self.context / self.original_context
        return math.sqrt(1 + math.log(scale) / math.log(self.original_context)) if scale > 1 else 1.0


class _Fields:
    """Typed access to a JSON object that names the missing or wrong key."""

    def __init__(self, values: dict[str, Any], file: str) -> None:
        self.values = values
        self.file = file

    def fail(self, key: str, problem: str) -> FormatError:
        return FormatError(f"`{self.file}`: `{key}` {problem}", hint=_OFFICIAL)

    def count(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if value is None:
            raise self.fail(key, "is missing")
        if type(value) is not int or not 0 < value <= _LIMITS.get(key, 1 << 24):
            raise self.fail(key, f"is not a sensible count: {printable(str(value))}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if value is None:
            raise self.fail(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-30 < value < 1e30:
            raise self.fail(key, f"is not a positive number: {printable(str(value))}")
        return float(value)

    def between(self, key: str, low: float, high: float) -> float:
        value = self.number(key)
        if not low <= value <= high:
            raise self.fail(key, f"is {value}, not between {low} and {high}")
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        values = self.values.get(key)
        if not isinstance(values, list) or len(values) != length:
            raise self.fail(key, f"is not a list of {length} numbers")
        return tuple(_Fields({key: value}, self.file).number(key) for value in values)


def read_config(folder: Path) -> Config:
    """The folder's config.json as a `Config` (NotFound, FormatError; a model that cannot be built is named)."""
    return config_of(read_values(folder))


def read_values(folder: Path) -> dict[str, Any]:
    """The folder's config.json as it is (NotFound, FormatError)."""
    return parse_json(read_bounded(folder / "config.json", CONFIG_LIMIT_BYTES), folder / "config.json")


def config_of(values: dict[str, Any]) -> Config:
    """config.json's values as a `Config` (FormatError)."""
    _refuse_others(values)
    fields = _Fields(values, "config.json")
    heads, hidden = fields.count("num_attention_heads"), fields.count("hidden_size")
    context = fields.count("max_position_embeddings")
    rope = _rope_values(values, fields, context)
    rotary = int(rope.number("partial_rotary_factor", 1.0) * hidden) // heads
    config = Config(
        hidden=hidden,
        intermediate=fields.count("intermediate_size"),
        layers=fields.count("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.count("num_key_value_heads"),
        vocabulary=fields.count("vocab_size"),
        context=context,
        original_context=rope.count("original_max_position_embeddings"),
        rotary_dimensions=rotary,
        rope_theta=rope.between("rope_theta", 1, 1e12),
        long_rope=_long_rope(rope, rotary),
        rms_epsilon=fields.between("rms_norm_eps", 1e-20, 0.999),
        sliding_window=0 if values.get("sliding_window") is None else fields.count("sliding_window"),
        tied=values.get("tie_word_embeddings", False) is True,
        special_ids=_special_ids(values),
    )
    _check_shape(config, fields)
    return config


def _refuse_others(values: dict[str, Any]) -> None:
    architectures = values.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if name is None:
        raise FormatError("`config.json` does not say which architecture this is", hint=_OFFICIAL)
    name = printable(str(name))
    if name in _REFUSED:
        what, instead = _REFUSED[name]
        raise FormatError(f"This is {what}", hint=instead)
    if name != ARCHITECTURE or values.get("model_type") != "phi3":
        kind = printable(str(values.get("model_type")))
        raise FormatError(f"This is not a Phi-4: architecture `{name}`, model type `{kind}`", hint=_OFFICIAL)
    if not isinstance(values.get("_name_or_path", ""), str | None):
        raise FormatError("`config.json`: `_name_or_path` is not text", hint=_OFFICIAL)
    if values.get("quantization_config") is not None:
        raise FormatError("These weights are already quantized", hint=_OFFICIAL)


_OFFICIAL = "Point at a folder with an official repository's files, such as microsoft/phi-4"


def _rope_values(values: dict[str, Any], fields: _Fields, context: int) -> _Fields:
    """One object for both spellings, with what stands at the top level as the default."""
    nested = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(nested, dict):
        raise fields.fail("rope_scaling", "is not an object")
    outer = {key: values[key] for key in _ROPE_KEYS if values.get(key) is not None}
    merged = outer | {key: value for key, value in nested.items() if value is not None}
    merged.setdefault("original_max_position_embeddings", context)
    merged["rope_type"] = merged.get("rope_type", merged.get("type", "default"))
    return _Fields(merged, fields.file)


_ROPE_KEYS = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def _long_rope(rope: _Fields, rotary: int) -> LongRope | None:
    kind = rope.values["rope_type"]
    if kind == "default":
        return None
    if kind not in ("longrope", "su"):
        raise rope.fail("rope_scaling.type", f"is `{printable(str(kind))}`; this family has `longrope` or none")
    return LongRope(rope.numbers("long_factor", rotary // 2), rope.numbers("short_factor", rotary // 2))


def _special_ids(values: dict[str, Any]) -> dict[str, int]:
    ids = {kind: values.get(f"{kind}_token_id") for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
    return {kind: value for kind, value in ids.items() if type(value) is int and value >= 0}


def _check_shape(config: Config, fields: _Fields) -> None:
    if config.hidden % config.heads:
        raise fields.fail("hidden_size", f"{config.hidden} does not divide by {config.heads} heads")
    if config.heads % config.kv_heads:
        raise fields.fail("num_key_value_heads", f"{config.kv_heads} does not divide {config.heads} heads")
    if config.rotary_dimensions % 2 or not 0 < config.rotary_dimensions <= config.head_size:
        raise fields.fail("partial_rotary_factor", f"gives {config.rotary_dimensions} of {config.head_size} dimensions")
    if config.long_rope and config.original_context < 2:
        raise fields.fail("original_max_position_embeddings", "is 1; longrope needs more")
    if config.original_context > config.context:
        raise fields.fail("original_max_position_embeddings", f"is above the context of {config.context}")
