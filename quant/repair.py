"""The first Phi-4 release's flaws, and their repair: end of turn, padding, template.

As first published, phi-4 ended its turns with <|endoftext|>, padded with the same token and opened an assistant turn
after every question, asked for or not. Microsoft mended all three later, but old copies circulate. A repair touches
metadata only and says what it changed, from what, to what and why; a mended copy gets none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from quant.tokenizer import Tokenizer

END_OF_TEXT, END_OF_TURN, PADDING = "<|endoftext|>", "<|im_end|>", "<|dummy_85|>"
STOPS = (END_OF_TURN, "<|end|>", END_OF_TEXT)  # what ends an answer in this family; the end of a turn first

END_WHY = f"a turn ends with {END_OF_TURN}; with {END_OF_TEXT} as its end the model runs on"
PADDING_WHY = f"padding must not be a token that has a meaning; Microsoft's repair chose {PADDING}"
TEMPLATE_WHY = "an assistant turn must open only when an answer is asked for"
NO_TEMPLATE_WHY = "none was published"

_TURN = "message['content'] + '<|im_end|>'"
PHI4_TEMPLATE = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + " + _TURN + "}}"
    "{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + " + _TURN + "}}"
    "{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>' + " + _TURN + "}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Repair:
    """One changed metadata key; `before` and `after` as a user would read them."""

    key: str
    before: str | int | None
    after: str | int
    why: str

    def as_json(self) -> dict[str, str | int | None]:
        return {"key": self.key, "from": self.before, "to": self.after, "why": self.why}


def repair_tokenizer(tokenizer: Tokenizer) -> tuple[Tokenizer, tuple[Repair, ...]]:
    """The tokenizer as it should have been published, and what that changed (nothing for the mini line)."""
    special, template = dict(tokenizer.special_ids), tokenizer.chat_template
    ids = tokenizer.added
    repairs: list[Repair] = []
    if END_OF_TURN not in ids:
        return tokenizer, ()
    if special.get("eos") in (None, ids.get(END_OF_TEXT)):
        repairs.append(Repair("tokenizer.ggml.eos_token_id", special.get("eos"), ids[END_OF_TURN], END_WHY))
        special["eos"] = ids[END_OF_TURN]
    if PADDING in ids and special.get("pad") in (ids.get(END_OF_TEXT), ids[END_OF_TURN]):
        repairs.append(Repair("tokenizer.ggml.padding_token_id", special.get("pad"), ids[PADDING], PADDING_WHY))
        special["pad"] = ids[PADDING]
    if template is None or _always_opens_a_turn(template):
        why = TEMPLATE_WHY if template else NO_TEMPLATE_WHY
        repairs.append(Repair("tokenizer.chat_template", template, PHI4_TEMPLATE, why))
        template = PHI4_TEMPLATE
    return dataclasses.replace(tokenizer, special_ids=special, chat_template=template), tuple(repairs)


def _always_opens_a_turn(template: str) -> bool:
    """Whether this is the first release's template (a reasoning model's own, with its system text, is left alone)."""
    return "<|im_sep|>" in template and "add_generation_prompt" not in template and "<think>" not in template
