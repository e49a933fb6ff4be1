"""The tokenizer files of a checkpoint: a small byte-level BPE learned here, or a real one from its ranks file."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.shapes import O200K, Shape

_TEXT = """The quick brown fox jumps over the lazy dog while twelve wizards quietly mix jugs of black vinegar.
What is 12 + 30? The answer is 42, because ten and thirty are forty and two more make forty-two.
Write a function that returns the greatest common divisor of two integers and explain how it works.
def gcd(a: int, b: int) -> int:\n    while b:\n        a, b = b, a % b\n    return a
You are a helpful assistant. The user asks, the system answers; the assistant thinks step by step and then answers.
Let x be a real number such that x^2 - 5x + 6 = 0; then (x - 2)(x - 3) = 0, so x = 2 or x = 3.
<think> First, check the question. Second, compute 7 * 8 = 56. Third, verify: 56 / 8 = 7. </think> The result is 56.
It was a bright cold day in spring, and the clocks were striking; nobody in the village knew what would happen next.
{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}} returns {"temperature": 21, "sky": "clear"}
Machines that learn from examples need data, patience, and a careful hand; models of language predict the next word.
Rivers carry mountains to the sea; glaciers grind valleys, winds polish stone, and volcanoes build islands overnight.
Please translate the following sentence into French, German, Spanish and Japanese: good morning, how are you today?
SELECT name, population FROM cities WHERE country = 'Norway' AND population > 100000 ORDER BY population DESC;
Photosynthesis converts sunlight, water and carbon dioxide into sugar and oxygen inside the chloroplasts of leaves.
If a train leaves at 9:45 and travels 120 kilometres at 80 kilometres per hour, when does it arrive? At 11:15."""


def byte_alphabet() -> dict[int, str]:
    """Each byte's character in vocab.json, in id order: itself where printable, otherwise one from 256 up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@lru_cache
def learned_merges(count: int) -> tuple[tuple[str, str], ...]:
    """The first `count` merges of byte-level BPE on a fixed text: the most frequent pair first, ties by spelling."""
    alphabet = byte_alphabet()
    pieces = Counter(re.findall(r" ?[A-Za-z]+|[0-9]{1,3}| ?[^\sA-Za-z0-9]+|\s+", _TEXT))
    words = [(["".join(alphabet[b] for b in char.encode()) for char in piece], n) for piece, n in pieces.items()]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in words:
            for pair in pairwise(word):
                pairs[pair] += n
        if not pairs:
            raise ValueError(f"the text yields {len(merges)} merges, not {count}")
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [(_merged(word, best), n) for word, n in words]
    return tuple(merges)


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The word with every occurrence of the pair joined, from the left."""
    out: list[str] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


@dataclass(frozen=True)
class Vocabulary:
    """The ordinary tokens of a line, spelled in the byte alphabet, in id order, and the merges that build them."""

    tokens: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]


def small_vocabulary(shape: Shape, merges: int = 512) -> Vocabulary:
    """256 bytes and as many learned merges as fit before the shape's added tokens."""
    learned = learned_merges(min(merges, shape.first_added_id - 256))
    return Vocabulary((*byte_alphabet().values(), *(a + b for a, b in learned)), learned)


def cl100k_tokenizer(ranks_path: Path) -> Vocabulary:
    """The full vocabulary of the 14B line from `cl100k_base.tiktoken`: 100,256 tokens, 100,000 merges."""
    return _from_ranks(ranks_path)


def o200k_tokenizer(ranks_path: Path) -> Vocabulary:
    """The full vocabulary of the mini line from `o200k_base.tiktoken`: 199,998 tokens, 199,742 merges."""
    return _from_ranks(ranks_path)


def _from_ranks(path: Path) -> Vocabulary:
    """A ranks file, lines of base64 token and rank, as tokens and merges; a token's merge is the last step to it."""
    lines = (line.split() for line in path.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    alphabet = byte_alphabet()
    ordered = sorted(ranks, key=ranks.__getitem__)
    pairs = (_last_merge(ranks, token) for token in ordered if len(token) > 1)
    merges = tuple((_spell(a, alphabet), _spell(b, alphabet)) for a, b in pairs)
    return Vocabulary(tuple(_spell(token, alphabet) for token in ordered), merges)


def _spell(token: bytes, alphabet: Mapping[int, str]) -> str:
    return "".join(alphabet[byte] for byte in token)


def _last_merge(ranks: Mapping[bytes, int], token: bytes) -> tuple[bytes, bytes]:
    """The two parts that byte-pair encoding is left with just before it makes `token`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        rank, i = min((ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(pairwise(parts)))
        if rank >= ranks[token]:
            raise ValueError(f"no merges lead to the token of rank {ranks[token]}")
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def added_tokens(shape: Shape) -> list[dict[str, Any]]:
    """The shape's added tokens as tokenizer.json lists them."""
    line = shape.line
    return [
        {
            "id": shape.first_added_id + offset,
            "content": text,
            "single_word": False,
            "lstrip": line.lstrip,
            "rstrip": line.rstrip is None or text in line.rstrip,
            "normalized": False,
            "special": special,
        }
        for offset, text, special in line.tokens
    ]


def tokenizer_json(shape: Shape, vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer.json as a value."""
    added = added_tokens(shape)
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    if [token["id"] for token in added] != list(range(len(vocab), len(vocab) + len(added))):
        # The tokenizers library numbers added tokens on from the vocabulary, so ids after a gap must stand in it.
        vocab |= {token["content"]: token["id"] for token in added}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": shape.line.pattern}, "behavior": "Removed", "invert": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": dict(byte_level, trim_offsets=False) if shape.post_processor else None,
        "decoder": dict(byte_level, add_prefix_space=True, use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [list(pair) if shape.line.merges_as_pairs else " ".join(pair) for pair in vocabulary.merges],
        },
    }


def _tokenizer_config(shape: Shape) -> dict[str, Any]:
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in added_tokens(shape)}
    flags = {"add_bos_token": False, "add_eos_token": False} if shape.line == O200K else {}
    template = {} if shape.template_in_file else {"chat_template": shape.template}
    unknown = {"unk_token": shape.unk_token} if shape.unk_token else {}
    return (
        flags
        | {"add_prefix_space": False, "added_tokens_decoder": decoder, "bos_token": shape.bos_token}
        | template
        | {"clean_up_tokenization_spaces": False, "eos_token": shape.eos_token}
        | {"model_max_length": shape.max_position, "pad_token": shape.pad_token, "tokenizer_class": "GPT2Tokenizer"}
        | unknown
    )


def write_tokenizer(folder: Path, shape: Shape, vocabulary: Vocabulary) -> None:
    """The seven tokenizer files; the template in whichever place the shape names."""
    tokens = tokenizer_json(shape, vocabulary)
    special = {"bos_token": shape.bos_token, "eos_token": shape.eos_token, "pad_token": shape.pad_token}
    if shape.unk_token:
        special["unk_token"] = shape.unk_token
    write_json(folder / "tokenizer.json", tokens)
    write_json(folder / "tokenizer_config.json", _tokenizer_config(shape))
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary.tokens)}, indent=None)
    write_json(folder / "added_tokens.json", {t["content"]: t["id"] for t in tokens["added_tokens"]})
    merges = "".join(f"{a} {b}\n" for a, b in vocabulary.merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    if shape.template_in_file:
        (folder / "chat_template.jinja").write_text(shape.template, encoding="utf-8")


def write_json(path: Path, value: object, indent: int | None = 2) -> None:
    """A JSON file as the official folders have it: UTF-8, no escapes beyond the necessary."""
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
