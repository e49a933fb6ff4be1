"""Foreign text (names, answers, error messages of others) made safe for a terminal. Standard library only."""

from __future__ import annotations

_REORDERING = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)))


def printable(text: str, *, limit: int = 200) -> str:
    """One bounded line: controls, line breaks and marks that reorder text are shown as escapes."""
    return "".join(c if _is_safe(c) else f"\\x{ord(c):02x}" for c in text[:limit])


def printable_lines(text: str) -> str:
    """Text of any length whose line breaks and tabs stay; what could act on a terminal becomes U+FFFD."""
    return "".join(c if c in "\n\t" or _is_safe(c) else "\ufffd" for c in text)


def _is_safe(character: str) -> bool:
    """Neither a C0 or C1 control nor a mark that reorders text; joiners and unknown letters are harmless."""
    code = ord(character)
    return not (code < 0x20 or 0x7F <= code < 0xA0 or character in _REORDERING)
