"""Conversations of several turns, in Phi-4's chat format: for training and for the examinations after it."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass, field

from tools.nano.questions import KINDS, MAKERS, SHARES, Turn, any_name, draw, fill, name_turn, recall_turn, unseen_sums
from tools.nano.words import NAMED_SYSTEMS, OPENINGS, SYSTEMS


@dataclass
class Chat:
    """A conversation: an optional system text and turns; `name` is what the user has said they are called."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    name: str | None = None


def make_chat(rng: random.Random, turns: int | None = None) -> Chat:
    """A training conversation of one to four turns, now and then up to ten."""
    if turns is None:
        turns = rng.choices([1, 2, 3, 4, rng.randrange(5, 11)], [42, 25, 15, 13, 5])[0]
    chat = Chat(_system(rng) if rng.random() < 0.35 else None)
    if rng.random() < 0.06:
        chat.name = any_name(rng)
        chat.system = rng.choice(NAMED_SYSTEMS).format(x=chat.name)
    for _ in range(turns):
        chat.turns.append(_informal(rng, _chat_turn(rng, chat)))
    return chat


def _chat_turn(rng: random.Random, chat: Chat) -> Turn:
    """The next turn of a conversation; a name once told is often asked for."""
    told = chat.name is not None and rng.random() < 0.25
    kind = "recall" if told else rng.choices(KINDS, list(SHARES.values()))[0]
    if kind == "recall":
        return recall_turn(rng, chat.name)
    if kind == "name":
        chat.name = any_name(rng)
        return name_turn(rng, chat.name)
    return draw(rng, kind, seen=True)


def _system(rng: random.Random) -> str:
    """A system text; the answers do not depend on it, so the model learns to live with any."""
    return fill(rng, rng.choice(SYSTEMS))


def _informal(rng: random.Random, turn: Turn) -> Turn:
    """The same turn as people type it: now and then without the capital or the last mark, or after a word or two."""
    question = turn.question
    if rng.random() < 0.06:
        question = f"{rng.choice(OPENINGS)} {question}"
    if rng.random() < 0.2 and question[0] in string.ascii_uppercase:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.2 and len(question) > 1:
        question = question.rstrip("?.!") or question
    return Turn(question, turn.answer, turn.unseen)


def chat_segments(chat: Chat) -> list[tuple[str, bool]]:
    """The conversation in Phi-4's format as (text, is it the assistant's) segments; no newlines, no BOS."""
    head = f"<|im_start|>system<|im_sep|>{chat.system}<|im_end|>" if chat.system is not None else ""
    segments = []
    for turn in chat.turns:
        prompt = f"{head}<|im_start|>user<|im_sep|>{turn.question}<|im_end|><|im_start|>assistant<|im_sep|>"
        segments += [(prompt, False), (f"{turn.answer}<|im_end|>", True)]
        head = ""
    return segments


def held_out_chats(n: int, seed: int) -> list[Chat]:
    """`n` two-turn conversations whose questions were all kept out of training."""
    rng = random.Random(seed)
    kinds = [kind for kind in MAKERS if kind not in ("greet", "identity")]
    return [Chat(turns=[draw(rng, kind, seen=False) for kind in rng.choices(kinds, k=2)]) for _ in range(n)]


def unseen_chats(n: int, seed: int, *, turn: int) -> list[Chat]:
    """`n` chats that end in an unseen sum or difference as turn number `turn`, after ordinary training turns."""
    rng = random.Random(seed)
    chats = []
    for question, answer in unseen_sums(n, seed):
        chat = make_chat(rng, turn - 1) if turn > 1 else Chat()
        chat.turns.append(Turn(question, answer, unseen=True))
        chats.append(chat)
    return chats


def kind_chats(kind: str, n: int, seed: int) -> list[Chat]:
    """`n` one-turn chats of one kind from the held-out side (kinds without a split: any side); recall: three."""
    rng = random.Random(seed)
    if kind == "name":
        return [Chat(turns=[name_turn(rng, any_name(rng))]) for _ in range(n)]
    if kind == "recall":
        return [_recall_chat(rng) for _ in range(n)]
    return [Chat(turns=[draw(rng, kind, seen=False)]) for _ in range(n)]


def _recall_chat(rng: random.Random) -> Chat:
    """The user says a name, asks something else, then asks for the name."""
    name = any_name(rng)
    return Chat(turns=[name_turn(rng, name), draw(rng, "sum", seen=True), recall_turn(rng, name)])
