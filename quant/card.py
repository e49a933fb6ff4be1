"""The model card (README.md) and generation_config.json, read by the `gguf` package and believed only as far as typed.

The package takes what YAML gives it, so a licence can be a number or a date; what a GGUF cannot hold is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phi4local.errors import FormatError
from phi4local.files import read_bounded
from phi4local.printing import printable
from quant.gguf import header_bytes
from quant.safetensors import parse_json

CARD_LIMIT_BYTES = 10_000_000
_VALUE_LIMIT = 100_000  # YAML's aliases can repeat a list without end
_GENERATION = "generation_config.json"
_FRACTIONS = (
    *("top_p", "min_p", "xtc_probability", "xtc_threshold"),
    *("temperature", "penalty_repeat", "mirostat_tau", "mirostat_eta"),
)
_COUNTS = ("top_k", "penalty_last_n", "mirostat")


def check_generation(folder: Path) -> None:
    """Refuse a generation_config.json whose sampling a GGUF cannot hold (FormatError)."""
    path = folder / _GENERATION
    if not _is_there(path):
        return
    values = parse_json(read_bounded(path, CARD_LIMIT_BYTES), path)
    for key in _FRACTIONS:
        value = values.get(key)
        if value is not None and (type(value) not in (int, float) or not -1e30 < value < 1e30):
            raise _refusal(_GENERATION, key, "a number")
    for key in _COUNTS:
        value = values.get(key)
        if value is not None and (type(value) is not int or not -(1 << 31) <= value < 1 << 31):
            raise _refusal(_GENERATION, key, "a whole number of 32 bits")
    if not isinstance(values.get("sequence"), str | None):
        raise _refusal(_GENERATION, "sequence", "text")


def load_card(folder: Path, parameters: int) -> Any:
    """`gguf.Metadata` of a folder: what its card, config.json and its name say (FormatError)."""
    import gguf

    folder = folder.resolve()
    try:
        folder.name.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("The folder's name is not UTF-8", hint="Rename the folder") from None
    _check_card(_front_matter(folder))
    try:
        card = gguf.Metadata.load(None, folder, None, parameters)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise FormatError(f"`README.md` cannot be understood: {printable(str(error))}", hint=_HINT) from None
    if card.languages:
        card.languages = ["no" if language is False else language for language in card.languages]  # YAML's Norway
    _check_types(card)
    try:
        header_bytes("phi3", card.set_gguf_meta_model)
    except FormatError as error:
        raise FormatError(f"`README.md`: {error.message}", hint=_HINT) from None
    return card


def _front_matter(folder: Path) -> dict[str, Any]:
    import gguf
    import yaml

    path = folder / "README.md"
    if not _is_there(path):
        return {}
    read_bounded(path, CARD_LIMIT_BYTES)
    try:
        values: dict[str, Any] = gguf.Metadata.load_model_card(folder)
    except yaml.YAMLError as error:
        problem = printable(getattr(error, "problem", None) or type(error).__name__)
        raise FormatError(f"`README.md` begins with damaged YAML: {problem}", hint=_HINT) from None
    except UnicodeDecodeError:
        raise FormatError("`README.md` is not UTF-8", hint=_HINT) from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise FormatError(f"`README.md` cannot be read: {type(error).__name__}", hint=_HINT) from None
    return values


def _check_card(values: dict[str, Any]) -> None:
    for seen, _ in enumerate(_leaves(values)):
        if seen > _VALUE_LIMIT:
            raise FormatError("`README.md` holds more values than any card needs", hint=_HINT)
    for key in ("base_model", "base_models", "base_model_sources", "datasets", "dataset", "dataset_sources"):
        value = values.get(key)
        entries = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str | dict | None) for entry in entries):
            raise _refusal("README.md", key, "text or a list of texts")


def _leaves(values: Any) -> Iterator[Any]:
    """Every value and container, as often as it is referred to; a container may hold itself."""
    stack = [values]
    while stack:
        value = stack.pop()
        yield value
        stack.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def _check_types(card: Any) -> None:
    for key, value in vars(card).items():
        if value is None or key.startswith("sampling_") or key in ("base_models", "datasets"):
            continue
        if key in ("tags", "languages") or (key == "license" and isinstance(value, list)):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise _refusal("README.md", key, "a list of texts")
        elif not isinstance(value, str):
            raise _refusal("README.md", key, "text")


def _is_there(path: Path) -> bool:
    if path.exists() and not path.is_file():
        raise FormatError(f"`{path}` is not a file", hint=_HINT)
    return path.exists()


def _refusal(file: str, key: str, kind: str) -> FormatError:
    return FormatError(f"`{file}`: `{key}` is not {kind}", hint=_HINT)


_HINT = "Mend the file, or take it from the official repository"
