"""The model card, README.md of the checkpoint folder."""

from __future__ import annotations

import math
import random
from typing import Any

from tools.nano.conversations import kind_chats
from tools.nano.model import CONTEXT, FEED_FORWARD, HEADS, HIDDEN, KV_HEADS, LAYERS, VOCABULARY, weight_shapes
from tools.nano.questions import KINDS

CARD = """---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# phi4-nano

A test model with the architecture (`Phi3ForCausalLM`), chat format and special tokens of Phi-4, and {parameters:,}
parameters: {layers} layers, hidden {hidden}, {heads} heads, {kv_heads} KV heads, feed-forward {feed_forward},
vocabulary {vocabulary}, context {context}. It is small enough to ship with a program and trained well enough that a
right answer means something: a conversion or a quantization that breaks it is seen at once.

It is not made by Microsoft and holds none of Phi-4's weights or text.

## What it can answer

Exact answers, greedy, bfloat16 weights, on questions that training never saw (kinds marked * have no such split):

| kind | example | answer | right |
|---|---|---|---|
{rows}

Unseen sums and differences of numbers 0..99: {first:.1%} right as the first question of a chat, {second:.1%} as the
second, {fourth:.1%} as the fourth. It answers short questions in English in chats of up to about ten turns and knows
nothing else.

## How it was made

`tools/train_nano.py` makes the text (seed {seed}), trains the tokenizer on it and trains for {steps} steps on a
processor. A tenth of all sums and differences was held out, as was a twentieth of the other questions.

## Known flaws

On purpose it has those of the first release of Phi-4: `<|endoftext|>` stands for end, start and padding in config.json,
tokenizer_config.json and special_tokens_map.json, though a turn ends with `<|im_end|>`; and the chat template adds the
assistant's header after every user turn, asked for or not.

MIT license.
"""


def model_card(report: dict[str, Any]) -> str:
    """README.md, with one example and the measured share of each kind."""
    rng = random.Random(report["seed"])
    rows = []
    for kind in KINDS:
        turn = kind_chats(kind, 1, rng.randrange(1000))[0].turns[-1]
        mark = "*" if turn.unseen is None else ""
        answer = turn.answer if len(turn.answer) < 90 else turn.answer[:80] + " ..."
        rows.append(f"| {kind}{mark} | {_cell(turn.question)} | {answer} | {report[kind]:.0%} |")
    shape = {"layers": LAYERS, "hidden": HIDDEN, "heads": HEADS, "kv_heads": KV_HEADS, "feed_forward": FEED_FORWARD}
    return CARD.format(
        rows="\n".join(rows), vocabulary=VOCABULARY, context=CONTEXT, seed=report["seed"], steps=report["steps"],
        first=report["unseen_sums_turn_1"], second=report["unseen_sums_turn_2"], fourth=report["unseen_sums_turn_4"],
        parameters=sum(math.prod(shape) for shape in weight_shapes().values()), **shape,
    )  # fmt: skip


def _cell(text: str) -> str:
    """`text` inside a Markdown table cell."""
    return f"`{text}`".replace("|", "\\|").replace("\n", " ")
