"""The whole job on the built-in checkpoint: build it with its repairs, load it, ask it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass

from phi4local.actions.chat import open_model
from phi4local.actions.quantize import name_of, plan_build, quantize, target_of
from phi4local.conversation import Message
from phi4local.engine import Chunk, Finish, Stats
from phi4local.errors import NotFound
from phi4local.settings import nano_folder
from phi4local.store import Build, find, remove
from quant.convert import Built
from quant.progress import Progress

BUILD = "Q8_0"
QUESTIONS = ("What is 17 + 25?", "What is 93 - 48?", "Hello")


@dataclass(frozen=True, slots=True)
class Answered:
    """One question with its answer."""

    question: str
    text: str
    stats: Stats


def build_nano() -> Generator[Progress, None, tuple[Build, Built | None]]:
    """Build the checkpoint anew, so that every demo does the whole job."""
    plan = plan_build(nano_folder(), BUILD)
    with contextlib.suppress(NotFound):
        remove(find(f"{name_of(plan)}:{BUILD}"))
    return (yield from quantize(plan, target_of(plan, None), force=True))


def ask_nano(build: Build) -> Generator[Answered | str]:
    """Put the questions as one conversation; sentences from the engine come as text."""
    opened = open_model(build.label)
    with contextlib.closing(opened.engine):
        session = opened.engine.open_session()
        messages: list[Message] = []
        for question in QUESTIONS:
            messages.append(Message("user", question))
            answered = _answer(question, list(session.stream(messages, opened.options)))
            messages.append(Message("assistant", answered.text))
            yield answered
        yield from opened.engine.info.notes


def _answer(question: str, items: list[Chunk | Finish]) -> Answered:
    *chunks, finish = items
    assert isinstance(finish, Finish)
    text = "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk))
    return Answered(question, text, finish.stats)
