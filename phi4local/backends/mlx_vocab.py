"""The vocabulary of an MLX folder: which tokens control, which end, what each one writes.

Read by the same code as for a GGUF build (`quant.tokenizer`), so that both backends see the same tokens; only the
splitting of plain text is the `tokenizers` library's. Import in a child process only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Splitter

from phi4local.backends.prompt import CONTROL_LOOK
from phi4local.errors import FormatError
from phi4local.files import read_bounded
from phi4local.printing import printable
from quant.repair import STOPS
from quant.tokenizer import CONTROL, NORMAL, TOKENIZER_LIMIT_BYTES, USER_DEFINED, Tokenizer


class FolderVocabulary:
    """The `prompt.Vocabulary` and `worker.Vocabulary` of a folder's tokenizer files."""

    def __init__(self, tokenizer: Tokenizer, folder: Path) -> None:
        self.size = len(tokenizer.tokens)
        self.controls = _controls(tokenizer)
        self.bos, self.eos = (self._text(tokenizer, kind) for kind in ("bos", "eos"))
        self.leading = tokenizer.special_ids.get("bos") if tokenizer.add_flags.get("bos") else None
        self._tokenizer = tokenizer
        self._splitter = _splitter(folder)
        ends = {tokenizer.added.get(text) for text in STOPS} | {tokenizer.special_ids.get("eos")}
        self.end_ids = frozenset(token for token in ends if token is not None)

    @staticmethod
    def _text(tokenizer: Tokenizer, kind: str) -> str:
        token = tokenizer.special_ids.get(kind)
        return "" if token is None else tokenizer.tokens[token]

    def ends(self, token: int) -> bool:
        """Whether the answer is over when the model says this token."""
        return token in self.end_ids

    def piece(self, token: int) -> bytes:
        """The bytes that a token writes; a control token writes its name, padding nothing."""
        text, kind = self._tokenizer.tokens[token], self._tokenizer.token_types[token]
        if kind == NORMAL:
            return b"".join(_BYTES.get(letter) or letter.encode(errors="replace") for letter in text)
        return text.encode(errors="replace") if kind in (CONTROL, USER_DEFINED) else b""

    def tokenise(self, text: str) -> list[int]:
        """Token ids of plain text."""
        ids: list[int] = self._splitter.encode(text.encode(errors="replace").decode(), add_special_tokens=False).ids
        return ids


def _controls(tokenizer: Tokenizer) -> dict[str, int]:
    """All tokens marked CONTROL, and those marked USER_DEFINED that look like it."""
    found = {}
    for token, (text, kind) in enumerate(zip(tokenizer.tokens, tokenizer.token_types, strict=True)):
        if len(text) > 1 and (kind == CONTROL or (kind == USER_DEFINED and CONTROL_LOOK.fullmatch(text))):
            found[text] = token
    return found


def _splitter(folder: Path) -> Splitter:
    """The library's tokenizer without the added tokens, so that it finds none of them in what somebody wrote.

    Nor does it cut or fill up a text, as a file asks for that was saved in the middle of a training (FormatError).
    """
    values = json.loads(read_bounded(folder / "tokenizer.json", TOKENIZER_LIMIT_BYTES))
    plain: dict[str, Any] = {
        "added_tokens": [],
        "post_processor": None,
        "decoder": None,
        "truncation": None,
        "padding": None,
    }
    try:
        return Splitter.from_str(json.dumps({**values, **plain}))
    except Exception as error:  # noqa: BLE001  the library raises nothing narrower
        reason = printable(str(error))
        raise FormatError(f"`tokenizer.json` cannot be used: {reason}", hint="Get another build") from None


def _byte_letters() -> dict[str, bytes]:
    """GPT-2's letters for bytes: printable Latin-1 stands for itself, the rest are the letters from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): bytes([byte]) for byte in shown}
    return letters | {chr(0x100 + place): bytes([byte]) for place, byte in enumerate(hidden)}


_BYTES = _byte_letters()
