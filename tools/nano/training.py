"""The training loop."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

from tools.nano.batches import batches
from tools.nano.conversations import unseen_chats
from tools.nano.evaluation import accuracy, rounded
from tools.nano.model import Weights, batch_loss, initial_weights
from tools.nano.optimizer import Optimizer, schedule

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_TOKENS = 4096  # in one batch, padding included


def train(tokenizer: Tokenizer, steps: int, seed: int) -> Weights:
    """The trained float32 weights; prints a line every hundred steps."""
    import torch

    torch.manual_seed(seed)
    weights, started, losses = initial_weights(), time.monotonic(), []
    optimizer = Optimizer(weights)
    stream = batches(random.Random(seed + 1), tokenizer, BATCH_TOKENS)
    for step in range(1, steps + 1):
        loss = batch_loss(weights, next(stream))
        loss.backward()
        optimizer.step(schedule(step - 1, steps))
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            right = accuracy(rounded(weights), tokenizer, unseen_chats(100, seed, turn=1))
            seconds = time.monotonic() - started
            mean = sum(losses[-100:]) / len(losses[-100:])
            print(f"step {step} loss {mean:.4f} unseen sums {right:.2f} seconds {seconds:.0f}", flush=True)
    return weights


def keep_freed_memory() -> None:
    """Stop glibc from handing each step's big arrays back to the kernel: page faults are half of a step otherwise."""
    import ctypes

    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
