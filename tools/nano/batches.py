"""Conversations as batches of token ids, rows of similar length together."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.nano.conversations import Chat, chat_segments, make_chat
from tools.nano.tokenizer import ENDOFTEXT_ID

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

POOL = 3072  # conversations made and sorted by length at a time


@dataclass
class Batch:
    """Right-padded ids (rows, length) and the weight of each position's loss as a target, same shape, float32."""

    ids: torch.Tensor
    loss_weight: torch.Tensor


def batches(rng: random.Random, tokenizer: Tokenizer, budget: int) -> Iterator[Batch]:
    """Endless training batches of about `budget` tokens with padding, rows of similar length together."""
    while True:
        rows = sorted(encode_chats([make_chat(rng) for _ in range(POOL)], tokenizer), key=lambda row: len(row[0]))
        cut = []
        while rows:
            longest_last = rows[-1][0]
            count = max(1, budget // len(longest_last))
            cut.append(rows[-count:])
            del rows[-count:]
        rng.shuffle(cut)
        yield from map(pad, cut)


def encode_chats(chats: list[Chat], tokenizer: Tokenizer) -> list[tuple[list[int], list[float]]]:
    """Each conversation's ids and loss weights: nothing for the user's text, at most ten tokens' worth per answer."""
    segments = [chat_segments(chat) for chat in chats]
    encoded = iter(tokenizer.encode_batch([text for parts in segments for text, _ in parts]))
    rows = []
    for parts in segments:
        ids: list[int] = []
        weights: list[float] = []
        for _, is_answer in parts:
            piece = next(encoded).ids
            ids += piece
            # A count to a hundred must not weigh forty sums.
            weights += [min(1.0, 10 / len(piece)) if is_answer else 0.0] * len(piece)
        rows.append((ids, weights))
    return rows


def pad(rows: list[tuple[list[int], list[float]]]) -> Batch:
    """The rows as tensors, filled up with `<|endoftext|>` at loss weight zero."""
    import torch

    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [ENDOFTEXT_ID] * (length - len(row)) for row, _ in rows])
    return Batch(ids, torch.tensor([row + [0.0] * (length - len(row)) for _, row in rows]))
