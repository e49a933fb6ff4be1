"""A loaded model's vocabulary: which tokens control, which end, what each one writes.

Import in a child process only.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as llama

from phi4local.backends.prompt import CONTROL_LOOK
from quant.repair import STOPS

_PIECE_BYTES = 256


class LlamaVocabulary:
    """The `prompt.Vocabulary` of a llama.cpp model."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._piece = ctypes.create_string_buffer(_PIECE_BYTES)
        self.size: int = llama.llama_vocab_n_tokens(handle)
        self.controls = self._read_controls()
        bos = llama.llama_vocab_bos(handle)
        self.bos = self.text(bos)
        self.eos = self.text(llama.llama_vocab_eos(handle))
        self.leading: int | None = bos if bos >= 0 and llama.llama_vocab_get_add_bos(handle) else None

    def _read_controls(self) -> dict[str, int]:
        """All tokens marked CONTROL, and those marked USER_DEFINED that look like it."""
        found = {}
        for token in range(self.size):
            attributes = llama.llama_vocab_get_attr(self._handle, token)
            if attributes & (llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_USER_DEFINED):
                text = self.text(token)
                if len(text) > 1 and (attributes & llama.LLAMA_TOKEN_ATTR_CONTROL or CONTROL_LOOK.fullmatch(text)):
                    found[text] = token
        return found

    def text(self, token: int) -> str:
        """A token as the vocabulary spells it; empty for no token."""
        if token < 0:
            return ""
        spelled: bytes = llama.llama_vocab_get_text(self._handle, token)
        return spelled.decode(errors="replace")

    def ends(self, token: int) -> bool:
        """Whether the answer is over when the model says this token."""
        return llama.llama_vocab_is_eog(self._handle, token) or self.text(token) in STOPS

    def piece(self, token: int) -> bytes:
        """The bytes that a token writes; a control token writes its name."""
        size = llama.llama_token_to_piece(self._handle, token, self._piece, len(self._piece), 0, True)
        if size < 0:
            self._piece = ctypes.create_string_buffer(-size)
            size = llama.llama_token_to_piece(self._handle, token, self._piece, -size, 0, True)
        return self._piece.raw[:size]

    def tokenise(self, text: str) -> list[int]:
        """Token ids of plain text; llama.cpp still finds tokens marked USER_DEFINED in it."""
        data = text.encode(errors="replace")
        room = len(data) + 16
        ids = (ctypes.c_int32 * room)()
        count = llama.llama_tokenize(self._handle, data, len(data), ids, room, False, False)
        if count < 0:  # a tokenizer may write more tokens than bytes
            ids = (ctypes.c_int32 * -count)()
            count = llama.llama_tokenize(self._handle, data, len(data), ids, -count, False, False)
        return ids[:count]
