"""Arguments that several commands have: how they are read and refused."""

from __future__ import annotations

import argparse

from phi4local.backends.load_settings import KV_TYPES


def tokens(text: str) -> int:
    """A number of tokens."""
    if not text.isdecimal() or not 0 < int(text) <= 1 << 24:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens")
    return int(text)


def add_context(parser: argparse.ArgumentParser) -> None:
    """`--context` and `--kv`: what a model's memory of a conversation may take."""
    parser.add_argument("--context", type=tokens, metavar="N", help="context in tokens (default: at most 8192)")
    parser.add_argument(
        "--kv", choices=KV_TYPES, default="f16", metavar="TYPE", help=f"type of the KV cache: {', '.join(KV_TYPES)}"
    )
