"""The family's tokenizer files as GGUF wants them: tokens, their types, merges, special ids, the chat template.

Both lines are byte-level BPE without a beginning token. The pre-tokenizer, which GGUF names instead of storing, is
recognised by its pattern, so a tokenizer whose pattern was lost in a re-save is refused instead of silently wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi4local.errors import FormatError, NotFound
from phi4local.files import read_bounded
from phi4local.printing import printable
from quant.config import Config
from quant.flash import FlashConfig
from quant.safetensors import parse_json

TOKENIZER_LIMIT_BYTES = 32_000_000  # the mini line's, the longest, has 16 MB
CONFIG_LIMIT_BYTES = 10_000_000
TEMPLATE_LIMIT_BYTES = 1_000_000

# Token types of the GGUF specification (`tokenizer.ggml.token_type`).
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_CL100K_TAIL = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    # the pattern in tokenizer.json -> llama.cpp's name for it
    _CONTRACTION + _CL100K_TAIL: "dbrx",
    "(?i:[sdmt]|ll|ve|re)" + _CL100K_TAIL: "dbrx",
    "'(?i:[sdmt]|ll|ve|re)" + _CL100K_TAIL: "dbrx",
    _O200K: "gpt-4o",
}

_SPECIAL_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """One token for every row of the embedding; `special_ids` and `add_flags` by kind (bos, eos, pad ...)."""

    pre: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    special_ids: dict[str, int]
    add_flags: dict[str, bool]
    chat_template: str | None
    added: dict[str, int] = field(repr=False)


def read_tokenizer(folder: Path, config: Config | FlashConfig) -> Tokenizer:
    """The tokenizer of an official folder (NotFound, FormatError)."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise NotFound(f"No `tokenizer.json` in `{folder}`", hint="Download all files of the official repository")
    main = parse_json(read_bounded(path, TOKENIZER_LIMIT_BYTES), path)
    extra = _optional_json(folder / "tokenizer_config.json")
    for name in ("chat_template.jinja", "chat_template.json"):
        if (folder / name).exists() and not (folder / name).is_file():
            raise FormatError(f"`{folder / name}` is not a file", hint=_TEMPLATE)
    model = main.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise FormatError("`tokenizer.json` does not hold a byte-level BPE, which every Phi-4 has", hint=_OFFICIAL)
    added = _added_tokens(main, extra)
    tokens, types = _tokens(model.get("vocab"), added, config.vocabulary)
    ids = {text: entry["id"] for text, entry in added.items()}
    return Tokenizer(
        pre=_pre_tokenizer(main.get("pre_tokenizer")),
        tokens=tokens,
        token_types=types,
        merges=_merges(model.get("merges")),
        special_ids=_special_ids(extra, ids, config),
        add_flags=_add_flags(main.get("post_processor"), extra),
        chat_template=_chat_template(folder, extra),
        added=ids,
    )


_OFFICIAL = "Take tokenizer.json from the official repository"


def _optional_json(path: Path) -> dict[str, Any]:
    return parse_json(read_bounded(path, CONFIG_LIMIT_BYTES), path) if path.exists() else {}


def _pre_tokenizer(value: Any) -> str:
    """llama.cpp's name of the pattern that splits text before BPE."""
    steps = _steps(value, "pretokenizers")
    patterns = [str(step["pattern"].get("Regex")) for step in steps if _has_pattern(step)]
    for pattern in patterns:
        if pattern in PRE_TOKENIZERS:
            return PRE_TOKENIZERS[pattern]
    found = f"`{printable(patterns[0])[:60]}...`" if patterns else "none"
    raise FormatError(f"`tokenizer.json` splits text by a pattern that no Phi-4 has ({found})", hint=_OFFICIAL)


def _steps(value: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or the one step that stands in its place."""
    steps = value.get(key, [value]) if isinstance(value, dict) else []
    if not isinstance(steps, list):
        raise FormatError(f"`tokenizer.json`: `{key}` is not a list", hint=_OFFICIAL)
    return [step for step in steps if isinstance(step, dict)]


def _has_pattern(step: dict[str, Any]) -> bool:
    return step.get("type") == "Split" and isinstance(step.get("pattern"), dict)


def _added_tokens(main: dict[str, Any], extra: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Added tokens by text; tokenizer_config.json overrides tokenizer.json, as transformers does it."""
    listed = main.get("added_tokens") or []
    decoder = extra.get("added_tokens_decoder") or {}
    if not isinstance(listed, list) or not isinstance(decoder, dict):
        raise FormatError("The added tokens are not a list", hint=_OFFICIAL)
    try:
        entries = [*listed, *({**entry, "id": int(token_id)} for token_id, entry in decoder.items())]
    except (TypeError, ValueError):
        raise FormatError("`added_tokens_decoder` is damaged", hint=_OFFICIAL) from None
    added: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or type(entry.get("id")) is not int:
            raise FormatError("An added token has no text or no id", hint=_OFFICIAL)
        added[entry["content"]] = entry
    return added


def _tokens(vocab: Any, added: dict[str, dict[str, Any]], size: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Text and type of every id; ids that no token has are padding of the embedding, `[PADn]`, unused."""
    if not isinstance(vocab, dict) or not vocab:
        raise FormatError("`tokenizer.json` has no vocabulary", hint=_OFFICIAL)
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    claimed: dict[int, str] = {}
    for text, token_id in [*vocab.items(), *((text, entry["id"]) for text, entry in added.items())]:
        if type(token_id) is not int or not 0 <= token_id < size:
            raise FormatError(f"Token `{printable(text)}` has id {token_id}; config.json allows {size} ids")
        if claimed.setdefault(token_id, text) != text:
            raise FormatError(f"Tokens `{printable(claimed[token_id])}` and `{printable(text)}` share id {token_id}")
        tokens[token_id], types[token_id] = text, NORMAL
    for text, entry in added.items():
        types[entry["id"]] = CONTROL if entry.get("special") is True or _looks_special(text) else USER_DEFINED
    if len(set(tokens)) != size:
        raise FormatError("`tokenizer.json` has one token under two ids", hint=_OFFICIAL)
    return tuple(tokens), tuple(types)


def _looks_special(text: str) -> bool:
    """llama.cpp's rule for role and tool markers that the tokenizer does not call special."""
    return text.startswith("<|") and text.endswith("|>")


def _merges(value: Any) -> tuple[str, ...]:
    """Merges as `left right`; transformers since 4.45 writes pairs."""
    if not isinstance(value, list) or not value:
        raise FormatError("`tokenizer.json` has no merges", hint=_OFFICIAL)
    return tuple(map(_merge, value))


def _merge(value: Any) -> str:
    if isinstance(value, str) and value.count(" ") == 1:
        return value
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(part, str) for part in value):
        raise FormatError(f"`tokenizer.json` has a damaged merge: {printable(str(value))[:60]}", hint=_OFFICIAL)
    # A space inside a part is stored as its byte-level stand-in, U+0120, because the space separates the parts.
    return " ".join(part.replace(" ", "\u0120") for part in value)


def _special_ids(extra: dict[str, Any], ids: dict[str, int], config: Config | FlashConfig) -> dict[str, int]:
    """Special ids by kind: tokenizer_config.json first, config.json where it is silent."""
    special: dict[str, int] = {}
    for kind in _SPECIAL_KINDS:
        entry = extra.get(f"{kind}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str) and text in ids:
            special[kind] = ids[text]
        elif kind in config.special_ids:
            special[kind] = config.special_ids[kind]
    for kind, token_id in special.items():
        if token_id >= config.vocabulary:
            raise FormatError(f"The {kind} token has id {token_id}; config.json allows {config.vocabulary} ids")
    return special


def _add_flags(post_processor: Any, extra: dict[str, Any]) -> dict[str, bool]:
    """Whether a beginning or an end is added to every text: a byte-level post-processor adds neither."""
    plain = any(step.get("type") == "ByteLevel" for step in _steps(post_processor, "processors"))
    flags = {"bos": False, "eos": False} if plain else {}
    said = {kind: extra.get(f"add_{kind}_token") for kind in _SPECIAL_KINDS}
    return flags | {kind: flag for kind, flag in said.items() if isinstance(flag, bool)}


_TEMPLATE = "Take it from the official repository"


def _chat_template(folder: Path, extra: dict[str, Any]) -> str | None:
    """The template in tokenizer_config.json, else the file beside it."""
    template = extra.get("chat_template")
    if isinstance(template, list):  # several named templates: the default one
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((entry.get("template") for entry in named if entry.get("name") == "default"), None)
    if template is None and (folder / "chat_template.jinja").exists():
        data = read_bounded(folder / "chat_template.jinja", TEMPLATE_LIMIT_BYTES)
        try:
            template = data.decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError("`chat_template.jinja` is not UTF-8", hint=_TEMPLATE) from None
    if template is None:
        template = _optional_json(folder / "chat_template.json").get("chat_template")
    if template is not None and not isinstance(template, str):
        raise FormatError("The chat template is not text", hint=_TEMPLATE)
    return template
