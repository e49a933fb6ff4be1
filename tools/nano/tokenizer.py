"""The tokenizer: a small vocabulary in the manner of Phi-4, with the 96 added tokens of the 14B line."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tools.nano.conversations import make_chat
from tools.nano.model import VOCABULARY

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The 96 added tokens of the 14B line, in their order; they fill the vocabulary's last ids.
SPECIAL_TOKENS = [
    "<|dummy_0|>", "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    *[f"<|dummy_{n}|>" for n in range(1, 4)],
    "<|im_start|>", "<|im_end|>", "<|im_sep|>",
    *[f"<|dummy_{n}|>" for n in range(4, 13)],
    "<|endofprompt|>",
    *[f"<|dummy_{n}|>" for n in range(13, 88)],
]  # fmt: skip
RANKS = VOCABULARY - len(SPECIAL_TOKENS)
ENDOFTEXT_ID = RANKS + SPECIAL_TOKENS.index("<|endoftext|>")
IM_END_ID = RANKS + SPECIAL_TOKENS.index("<|im_end|>")

# cl100k's pre-tokenizer pattern.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(seed: int) -> Tokenizer:
    """The tokenizer of this seed's text; the role names are in it so that each is one token."""
    rng = random.Random(seed)
    turns = [turn for _ in range(20_000) for turn in make_chat(rng).turns]
    roles = ["system", "user", "assistant"] * 2000
    return train_tokenizer([text for turn in turns for text in (turn.question, turn.answer)] + roles)


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of `RANKS` ids trained on `texts`, then the 96 special tokens; no token holds two digits."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    # Only the training splits digits apart; with no merge for them, the published pattern does the same.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, digits, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=RANKS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != RANKS:
        raise ValueError(f"the text gave {tokenizer.get_vocab_size()} ranks, not {RANKS}")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(text, lstrip=True, rstrip=True, normalized=False, special=True) for text in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(added)
    return tokenizer
