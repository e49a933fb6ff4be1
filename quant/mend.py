"""The repairs of `quant.repair`, made to a GGUF that somebody else has published: its header alone changes.

A header keeps every byte that is not repaired. It never gets shorter, so tensor bytes stay where they are or move
towards the end by a multiple of the alignment; their offsets in the table count from their own beginning and hold.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from phi4local.errors import FormatError
from quant.gguf import Header, align
from quant.repair import END_OF_TEXT, END_OF_TURN, PADDING, PHI4_TEMPLATE, Repair, repair_tokenizer
from quant.tokenizer import Tokenizer

# What a half-done download must agree on with the program that goes on with it.
VERSION = hashlib.sha256(PHI4_TEMPLATE.encode()).hexdigest()[:8]
_KINDS = {"eos": "tokenizer.ggml.eos_token_id", "pad": "tokenizer.ggml.padding_token_id"}
_TEMPLATE = "tokenizer.chat_template"
_FILLER = "phi4local.filler"  # spaces that keep the tensors where they are
_STRING, _UINT32 = 8, 4
_INTEGERS = {4: "<I", 5: "<i", 10: "<Q", 11: "<q"}


@dataclass(frozen=True, slots=True)
class Mended:
    """A repaired header, padded; what follows it in the file moves by `shift_bytes`."""

    header: bytes
    shift_bytes: int
    repairs: tuple[Repair, ...]


def find_repairs(header: Header) -> tuple[Repair, ...]:
    """What a published file's metadata needs; nothing for other families and for sound files."""
    if header.text("tokenizer.ggml.model") != "gpt2":
        return ()
    wanted = {END_OF_TEXT, END_OF_TURN, PADDING}
    tokens = header.items("tokenizer.ggml.tokens") or []
    added = {str(token): number for number, token in enumerate(tokens) if token in wanted}
    if "<|im_sep|>" not in tokens:  # other families end their turns with the same token
        return ()
    special = {kind: value for kind, key in _KINDS.items() if (value := header.count(key)) is not None}
    tokenizer = Tokenizer("", (), (), (), special, {}, header.text(_TEMPLATE), added)
    return repair_tokenizer(tokenizer)[1]


def mend(raw: bytes, header: Header, repairs: tuple[Repair, ...]) -> Mended:
    """The header with its repairs; `raw` is the file's beginning up to the first tensor's bytes."""
    values = {repair.key: repair.after for repair in repairs}
    pieces, position = [raw[:16], b"", b""], 24  # magic, version and tensor count; the number of keys comes between
    for key, (start, end) in sorted(header.spans.items(), key=lambda item: item[1]):
        if key in values:
            pieces += [raw[position:start], _value(values[key], raw[start:end])]
            position = end
        elif key == _FILLER:  # of an earlier mending; a new one is made if there is room
            pieces.append(raw[position : start - len(_text(key))])
            position = end
    added = [key for key in values if key not in header.spans]
    pieces += [raw[position : header.keys_end], *(_text(key) + _value(values[key], b"") for key in added)]
    table = raw[header.keys_end : header.end]
    keys = len(header.spans.keys() - {_FILLER}) + len(added)
    size = sum(map(len, pieces)) + 8 + len(table)
    if align(size, header.alignment) < header.data_offset:
        pieces.append(_filler(header.data_offset - size))
        size, keys = sum(map(len, pieces)) + 8 + len(table), keys + 1
    pieces[1] = struct.pack("<Q", keys)
    data_offset = align(size, header.alignment)
    mended = b"".join([*pieces, table]).ljust(data_offset, b"\0")
    return Mended(mended, data_offset - header.data_offset, repairs)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: str | int, old: bytes) -> bytes:
    """Type and value, of the old value's type where that is an integer."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    kind = int.from_bytes(old[:4], "little") if old else _UINT32
    if kind not in _INTEGERS:
        raise FormatError("A token id of the file is no integer", hint="phi4local pull NAME:BUILD --from official")
    return struct.pack("<I", kind) + struct.pack(_INTEGERS[kind], value)


def _filler(room: int) -> bytes:
    """A key of at most `room` bytes, or the shortest one."""
    empty = _text(_FILLER) + _value("", b"")
    return _text(_FILLER) + _value(" " * max(0, room - len(empty)), b"")
