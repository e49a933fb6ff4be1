"""The small files of an MLX folder: the source's own, with what plain mlx-lm needs set right, and each change noted.

mlx-lm reads its end-of-turn from generation_config.json and the tokenizer, its rope from config.json's top level. The
repairs of `quant.repair` are made here in the files that those read; what nobody reads is copied as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from phi4local.files import read_bounded
from quant.config import Config, read_values
from quant.flash import FlashConfig, stays_float32
from quant.repair import END_OF_TEXT, END_OF_TURN, END_WHY, PADDING, PADDING_WHY, STOPS, TEMPLATE_WHY, Repair
from quant.safetensors import parse_json
from quant.source import Source
from quant.tokenizer import CONFIG_LIMIT_BYTES, TEMPLATE_LIMIT_BYTES, TOKENIZER_LIMIT_BYTES, Tokenizer

CONFIG, GENERATION, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
TOKENIZER, SPECIAL, TEMPLATE = "tokenizer.json", "special_tokens_map.json", "chat_template.jinja"

_ROPE_WHY = "mlx-lm reads it here alone, and without it computes other positions in silence"
_STOP_WHY = "plain mlx-lm stops at these ids; without them it runs on past the end of its turn"
_CODE_WHY = "it names code to be run, which nothing here needs"
_CLASS_WHY = "older versions do not know this name, and it is the same tokenizer"
_FLASH_WHY = "for a model type that transformers 5 does not know, the old name splits text by GPT-2's pattern"
_PLACE_WHY = "mlx-lm finds a template here"
_HALF_WHY = "with 32-bit vectors MLX computes in 32 bits, and the conversation takes twice the memory"
_NAME_WHY = "the type of the weights in a build of this name"
HALVES = {"float16": "F16", "bfloat16": "BF16"}  # types of 16 bits, as config.json and as safetensors call them


@dataclass(frozen=True, slots=True)
class Folder:
    """The mended JSON files by name, files that are copied as they are, and what was changed."""

    values: dict[str, dict[str, Any]]
    copies: dict[str, bytes]
    repairs: tuple[Repair, ...]

    @property
    def config(self) -> dict[str, Any]:
        return self.values[CONFIG]


def mended_folder(source: Source) -> Folder:
    """Read and mend the small files of a source (FormatError, NotFound)."""
    work = _Work(source.folder, source.tokenizer)
    config = work.read(CONFIG) or {}
    config.pop("_name_or_path", None)  # where its author kept it
    work.drop_code(CONFIG, config)
    if isinstance(source.config, Config):
        _set_rope(work, config, source.config)
    _set_special_ids(work, config)
    _set_stops(work)
    _mend_tokenizer(work, is_flash=isinstance(source.config, FlashConfig))
    return Folder(work.values, work.copies, tuple(work.repairs))


def in_16_bits(folder: Folder, dtypes: Mapping[str, str], *, is_whole: bool) -> tuple[Folder, str | None]:
    """The folder for weights of 16 bits, and the type in which mlx-lm is to see them; None: as they are.

    `dtypes` are the tensors' own, as safetensors calls them. `is_whole`: the build is bfloat16 by its name. Packed
    builds keep float16 where the source says so, as mlx-lm does.
    """
    config = folder.config
    stated = config.get("torch_dtype") or config.get("dtype")
    found = {dtype for name, dtype in dtypes.items() if not stays_float32(name)}
    if stated in ("float16", "bfloat16") and not is_whole:
        wanted = str(stated)
    elif is_whole or stated == "float32" or "F32" in found:
        wanted = "bfloat16"
    else:
        return folder, None
    repairs = []
    keys = [key for key in ("torch_dtype", "dtype") if config.get(key) is not None]
    if not keys and found != {HALVES[wanted]}:
        keys = ["torch_dtype"]
    for key in keys:
        if (before := config.get(key)) != wanted:
            config[key] = wanted
            repairs.append(Repair(f"{CONFIG} {key}", _told(before), wanted, _NAME_WHY if is_whole else _HALF_WHY))
    return replace(folder, repairs=(*folder.repairs, *repairs)), wanted


def finished_files(folder: Folder, quantization: Mapping[str, Any]) -> dict[str, bytes]:
    """Every small file's bytes; config.json says how the weights are packed, in mlx-lm's two places."""
    files = {name: _json_bytes(values) for name, values in folder.values.items() if name != CONFIG}
    packed = {"quantization": quantization, "quantization_config": quantization} if quantization else {}
    files[CONFIG] = _json_bytes(folder.config | packed)
    return dict(sorted((files | folder.copies).items()))


def _json_bytes(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=4, sort_keys=True, ensure_ascii=False).encode() + b"\n"


@dataclass(slots=True)
class _Work:
    """The files as they are changed, one after the other."""

    folder: Path
    tokenizer: Tokenizer
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    copies: dict[str, bytes] = field(default_factory=dict)
    repairs: list[Repair] = field(default_factory=list)

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file, to be changed; None where the source has none."""
        path = self.folder / name
        if not path.exists():
            return None
        self.values[name] = read_values(self.folder) if name == CONFIG else _read_json(path)
        return self.values[name]

    def set(self, name: str, key: str, after: Any, why: str) -> None:
        """Give a key of a file its value; noted where it had another."""
        values = self.values.setdefault(name, {})
        before = values.get(key)
        if key not in values or before != after:
            values[key] = after
            told = _told(after)
            self.repairs.append(Repair(f"{name} {key}", _told(before), "none" if told is None else told, why))

    def drop_code(self, name: str, values: dict[str, Any]) -> None:
        """Nothing may name code of a model's author."""
        if before := values.pop("auto_map", None):  # an empty one names none
            self.repairs.append(Repair(f"{name} auto_map", _told(before), "none", _CODE_WHY))


def _read_json(path: Path) -> dict[str, Any]:
    return parse_json(read_bounded(path, CONFIG_LIMIT_BYTES), path)


def _told(value: Any) -> str | int | None:
    """As a user would read it: of a special token its text."""
    if isinstance(value, dict) and "content" in value:
        value = value["content"]
    return value if value is None or type(value) in (str, int) else json.dumps(value, ensure_ascii=False)


def _set_rope(work: _Work, values: dict[str, Any], config: Config) -> None:
    """The top level as transformers 4 spelt it: mlx-lm's phi3 looks nowhere else, and has defaults for all of it."""
    if values.get("rope_theta") != config.rope_theta:
        work.set(CONFIG, "rope_theta", config.rope_theta, _ROPE_WHY)
    factor = values.get("partial_rotary_factor", 1.0)
    if not isinstance(factor, int | float) or int(config.head_size * factor) != config.rotary_dimensions:
        work.set(CONFIG, "partial_rotary_factor", config.rotary_dimensions / config.head_size, _ROPE_WHY)
    if config.long_rope is None:
        return
    if values.get("original_max_position_embeddings") != config.original_context:
        work.set(CONFIG, "original_max_position_embeddings", config.original_context, _ROPE_WHY)
    scaling = values.get("rope_scaling")
    if not isinstance(scaling, dict) or scaling.get("type") not in ("longrope", "su"):
        factors = {"long_factor": list(config.long_rope.long), "short_factor": list(config.long_rope.short)}
        work.set(CONFIG, "rope_scaling", factors | {"type": "longrope"}, _ROPE_WHY)


def _set_special_ids(work: _Work, config: dict[str, Any]) -> None:
    """The first release's end of turn and padding, in the two files that state them by id."""
    ids, special = work.tokenizer.added, work.tokenizer.special_ids
    generation = work.read(GENERATION)
    if END_OF_TURN not in ids:
        return
    if config.get("eos_token_id") in (None, ids.get(END_OF_TEXT)) and "eos" in special:
        work.set(CONFIG, "eos_token_id", special["eos"], END_WHY)
    wrong = (ids.get(END_OF_TEXT), ids[END_OF_TURN])
    for name, values in ((CONFIG, config), (GENERATION, generation)):
        if PADDING in ids and values and values.get("pad_token_id") in wrong and "pad" in special:
            work.set(name, "pad_token_id", special["pad"], PADDING_WHY)


def _set_stops(work: _Work) -> None:
    stops = [work.tokenizer.added[text] for text in STOPS if text in work.tokenizer.added]
    if stops:
        work.set(GENERATION, "eos_token_id", stops, _STOP_WHY)


def _mend_tokenizer(work: _Work, *, is_flash: bool) -> None:
    """The tokenizer's own files: special tokens by text, the class, the template in the place where it was."""
    work.copies[TOKENIZER] = read_bounded(work.folder / TOKENIZER, TOKENIZER_LIMIT_BYTES)
    settings = work.read(TOKENIZER_CONFIG)
    if settings is None:
        settings = work.values[TOKENIZER_CONFIG] = {}
    work.drop_code(TOKENIZER_CONFIG, settings)
    if is_flash:
        work.set(TOKENIZER_CONFIG, "tokenizer_class", "PreTrainedTokenizerFast", _FLASH_WHY)
    elif settings.get("tokenizer_class") in (None, "TokenizersBackend"):
        work.set(TOKENIZER_CONFIG, "tokenizer_class", "GPT2Tokenizer", _CLASS_WHY)
    for name in (TOKENIZER_CONFIG, SPECIAL) if work.read(SPECIAL) is not None else (TOKENIZER_CONFIG,):
        _set_special_tokens(work, name)
    _set_template(work, settings)


def _set_special_tokens(work: _Work, name: str) -> None:
    """End of turn and padding by text, where the tokenizer was mended or the file says something else than it."""
    for kind, why in (("eos", END_WHY), ("pad", PADDING_WHY)):
        token_id = work.tokenizer.special_ids.get(kind)
        if token_id is None or END_OF_TURN not in work.tokenizer.added:
            continue
        entry = work.values[name].get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if text != (wanted := work.tokenizer.tokens[token_id]):
            work.set(name, f"{kind}_token", wanted, why)


def _set_template(work: _Work, settings: dict[str, Any]) -> None:
    """One template wherever one was, and in the tokenizer's configuration where mlx-lm would find none."""
    template = work.tokenizer.chat_template
    if template is None:
        return
    known, path = settings.get("chat_template"), work.folder / TEMPLATE
    if path.exists():
        before = read_bounded(path, TEMPLATE_LIMIT_BYTES)
        work.copies[TEMPLATE] = template.encode()
        if before != work.copies[TEMPLATE]:
            work.repairs.append(Repair(TEMPLATE, before.decode(errors="replace"), template, TEMPLATE_WHY))
    if isinstance(known, list):  # several by name; the default one is ours, the others are left alone
        mended = [_named(entry, template) for entry in known]
        work.set(TOKENIZER_CONFIG, "chat_template", mended, TEMPLATE_WHY)
    elif known is not None or not path.exists():
        work.set(TOKENIZER_CONFIG, "chat_template", template, TEMPLATE_WHY if known else _PLACE_WHY)


def _named(entry: Any, template: str) -> Any:
    is_default = isinstance(entry, dict) and entry.get("name") == "default"
    return entry | {"template": template} if is_default else entry
