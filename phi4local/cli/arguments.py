"""Arguments that several commands have: how they are read and refused."""

from __future__ import annotations

import argparse

from phi4local.backends.load_settings import KV_TYPES

_MOST_TOKENS = 1 << 24


def tokens(text: str) -> int:
    """A number of tokens: `8192`, or `8k` for the same."""
    number, scale = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
    if not (number.isascii() and number.isdecimal()) or not 0 < int(number[:9]) * scale <= _MOST_TOKENS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens")
    return int(number) * scale


def add_context(parser: argparse.ArgumentParser) -> None:
    """`--context` and `--kv`: what a model's memory of a conversation may take."""
    parser.add_argument(
        "--context", type=tokens, metavar="N", help="context in tokens, 16384 or 16k (default: at most 8192)"
    )
    parser.add_argument(
        "--kv", choices=KV_TYPES, default="f16", metavar="TYPE", help=f"type of the KV cache: {', '.join(KV_TYPES)}"
    )
