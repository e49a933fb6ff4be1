"""The first cut of a tool's or the kernel's text: lines, pairs, numbers, sizes, JSON. No exception for any text.

Damage never becomes a wrong number: a line without its newline was cut short and is not read, a size without its unit
is unknown, JSON that does not close says nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

# Every tool read here means powers of two, whatever it writes.
_UNITS = {"kB": 1 << 10, "KB": 1 << 10, "MB": 1 << 20, "MiB": 1 << 20, "GB": 1 << 30, "GiB": 1 << 30}


def lines(text: str) -> list[str]:
    """The whole lines of a text."""
    return [line.rstrip("\r") for line in text.split("\n")[:-1]]


def pairs(text: str, separator: str = ":") -> Iterator[tuple[str, str]]:
    """`key: value` lines."""
    for line in lines(text):
        key, found, value = line.partition(separator)
        if found:
            yield key.strip(), value.strip()


def number(text: str) -> int | None:
    """A natural number and nothing else."""
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else None


def size(text: str) -> int | None:
    """`size("12288 MiB")`; a bare number is no size."""
    match = re.fullmatch(r"([0-9]{1,12}) ([kKMG]i?B)", text)
    unit = _UNITS.get(match[2]) if match else None
    return int(match[1]) * unit if match and unit else None


def known(text: str) -> str | None:
    """None where a tool says in words that it does not know: `[N/A]`, `[Not Supported]`."""
    return None if not text or text.startswith("[") or text.upper() == "N/A" else text


def json_object(text: str) -> dict[str, object]:
    """The first JSON object in a text, which may begin with a warning; empty where there is none."""
    start = text.find("{")
    try:
        value = json.JSONDecoder().raw_decode(text, start)[0] if start >= 0 else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def plain_values(row: dict[str, object]) -> dict[str, str]:
    """The texts and numbers of a JSON object as texts, keys in lower case: releases of a tool differ in capitals."""
    return {key.lower(): str(value).strip() for key, value in row.items() if isinstance(value, str | int)}
