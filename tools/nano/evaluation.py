"""How well the model answers: the loss and the share of exact answers on questions that training never saw."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.nano.batches import encode_chats, pad
from tools.nano.conversations import Chat, chat_segments, held_out_chats, kind_chats, unseen_chats
from tools.nano.model import Weights, batch_loss, hidden_states
from tools.nano.questions import KINDS
from tools.nano.tokenizer import ENDOFTEXT_ID, IM_END_ID

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def measure(weights: Weights, tokenizer: Tokenizer, n: int, seed: int) -> dict[str, float]:
    """With the rounded weights: the loss (nats per token) on held-out chats, the shares of exact answers on unseen sums
    by position in the chat, and on `n` / 5 questions of each kind."""
    import torch

    final = rounded(weights)
    chats = held_out_chats(n, seed)
    with torch.no_grad():
        loss = batch_loss(final, pad(encode_chats(chats, tokenizer)), autocast=False)
    result = {"held_out_loss": float(loss)}
    result |= {f"unseen_sums_turn_{t}": accuracy(final, tokenizer, unseen_chats(n, seed, turn=t)) for t in (1, 2, 4)}
    for kind in KINDS:
        result[kind] = accuracy(final, tokenizer, kind_chats(kind, max(1, n // 5), seed))
    return result


def accuracy(weights: Weights, tokenizer: Tokenizer, chats: list[Chat]) -> float:
    """The share of chats whose last answer comes out exactly as expected."""
    expected = [chat.turns[-1].answer for chat in chats]
    limit = max(len(encoding.ids) for encoding in tokenizer.encode_batch(expected)) + 4
    right = 0
    for start in range(0, len(chats), 128):
        part = slice(start, start + 128)
        got = answers(weights, tokenizer, chats[part], limit)
        right += sum(a == b for a, b in zip(got, expected[part], strict=True))
    return right / len(chats)


def answers(weights: Weights, tokenizer: Tokenizer, chats: list[Chat], limit: int) -> list[str | None]:
    """The greedy answer to the last question of each chat, in float32; None where `<|im_end|>` does not come in time.

    The chats' last answers are not shown to the model. `limit` is in tokens.
    """
    import torch
    import torch.nn.functional as F

    prompts = ["".join(text for text, _ in chat_segments(chat)[:-1]) for chat in chats]
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(prompts)]
    starts = torch.tensor([len(ids) for ids in encoded])
    ids = torch.full((len(chats), int(starts.max()) + limit), ENDOFTEXT_ID)
    for row, prompt in enumerate(encoded):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ends, running = starts.clone(), torch.arange(len(chats))
    for _ in range(limit):
        last = ends[running] - 1
        with torch.no_grad():
            states = hidden_states(weights, ids[running, : int(last.max()) + 1])
            best = F.linear(states[torch.arange(len(running)), last], weights["lm_head.weight"]).argmax(dim=-1)
        ids[running, ends[running]] = best
        ends[running] += 1
        running = running[best != IM_END_ID]
        if not len(running):
            break
    spans = [ids[row, start:end].tolist() for row, (start, end) in enumerate(zip(starts, ends, strict=True))]
    return [tokenizer.decode(span[:-1]) if span[-1] == IM_END_ID else None for span in spans]


def rounded(weights: Weights) -> Weights:
    """The weights as the files will hold them: rounded to bfloat16, here widened to float32 again for arithmetic."""
    import torch

    return {name: tensor.detach().to(torch.bfloat16).float() for name, tensor in weights.items()}
