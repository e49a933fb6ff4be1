"""What a chat can be set up for: a system prompt and how to choose tokens. Data, and what it means for a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SAMPLING = ("temperature", "top_k", "top_p", "seed", "max_tokens")  # what a chat may say otherwise than its model


@dataclass(frozen=True, slots=True)
class Preset:
    """`sampling` is for models that are greedy of their own accord; an empty preset is the model as it comes."""

    name: str
    title: str
    system: str
    sampling: Mapping[str, Any]


PRESETS = (
    Preset("", "Model's own", "", {}),
    Preset(
        "talk",
        "Plain talk",
        "You are a friendly, attentive partner in conversation. Answer in the language of the question, in plain words "
        "and short paragraphs, and without lists or headings unless they are asked for. Say so when you do not know "
        "something, and ask back when a question can mean several things.",
        # Greedy talk falls into the same phrases over and over.
        {"temperature": 0.7, "top_p": 0.95},
    ),
    Preset(
        "mathematics",
        "Mathematics",
        "You are a careful mathematician. Work step by step: say what is given and what is sought, give each step with "
        "its reason, and write formulas in LaTeX. Check the result by another way or by putting it in, and end with "
        "the result on a line of its own. Say so where the problem has no or more than one solution.",
        {"temperature": 0.0},
    ),
    Preset(
        "code",
        "Code",
        "You are an experienced software engineer. Give complete, working code in a fenced block that names its "
        "language, with types and errors handled where they matter, and explain in a few sentences only what is not "
        "obvious. Use the standard library unless another one is asked for, and never invent functions; say what you "
        "have assumed.",
        {"temperature": 0.0},
    ),
)


def sampling_of(preset: Preset, default_temperature: float) -> Mapping[str, Any]:
    """What a preset changes of a model's sampling.

    Nothing where the model is sampled of its own accord: that is a reasoning model, whose card prescribes how, and
    which at a lower temperature thinks in circles without end.
    """
    return {} if default_temperature > 0 else preset.sampling
