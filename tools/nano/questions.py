"""Questions with their answers, kind by kind, and which of them training never sees."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from tools.nano.words import (
    AFTER_PHRASES,
    BEFORE_PHRASES,
    BEYOND_ANSWER,
    BEYOND_PHRASES,
    CAPITAL_OF,
    CAPITAL_PHRASES,
    COLOUR_OF,
    COLOUR_PHRASES,
    COMPARE_PHRASES,
    COUNT_PHRASES,
    DIFFERENCE_PHRASES,
    EXPLAIN_PHRASES,
    IDENTITY,
    LEGS_OF,
    LEGS_PHRASES,
    NAME_PHRASES,
    NAMES,
    ODD_CHARACTERS,
    OPPOSITE_OF,
    OPPOSITE_PHRASES,
    PARITY_PHRASES,
    RECALL_PHRASES,
    REPEAT_PHRASES,
    SOUND_OF,
    SOUND_PHRASES,
    SPEECHES,
    SPELL_PHRASES,
    SUM_PHRASES,
    UNKNOWN_ANSWER,
    UNKNOWN_PHRASES,
    WORDS,
)


@dataclass(frozen=True)
class Turn:
    """One question with its answer; `unseen` says whether the split keeps it out of training (None: no split)."""

    question: str
    answer: str
    unseen: bool | None = None


def held_out(a: int, b: int, op: str) -> bool:
    """Whether the sum (`op` "+") or difference ("-") of 0..99 `a` and `b` never occurs in training, in any phrasing.

    About a tenth are held out. Both orders of a pair share one fate: 17 + 25 must not teach 25 + 17. Two single digits
    and steps of 0 or 1 are never held out, because worked explanations and counting speak about them.
    """
    low, high = sorted((a, b))
    if low < 2 or high < 10:
        return False
    return _bucket(f"{high}{op}{low}", 10) == 0


def held_out_text(question: str) -> bool:
    """Whether a question of another kind is kept out of training; capitals and the last mark do not count."""
    return _bucket(question.lower().rstrip("?.! "), 20) == 0


def _bucket(text: str, count: int) -> int:
    """A stable number in 0..`count`-1 for `text`, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % count


def unseen_sums(n: int, seed: int) -> list[tuple[str, str]]:
    """`n` different sums and differences (results >= 0) that training never saw, as (question, expected answer)."""
    rng = random.Random(seed)
    pairs = [(a, b) for a in range(100) for b in range(100)]
    facts = [(a, b, "+") for a, b in pairs if held_out(a, b, "+")]
    facts += [(a, b, "-") for a, b in pairs if a >= b and held_out(a, b, "-")]
    return [(_phrase_sum(rng, *fact), _sum_answer(*fact)) for fact in rng.sample(facts, n)]


def _phrase_sum(rng: random.Random, a: int, b: int, op: str) -> str:
    """One of the trained phrasings of a + b or a - b."""
    phrases = SUM_PHRASES if op == "+" else DIFFERENCE_PHRASES
    # Nobody eats more apples than there are.
    usable = len(phrases) - (op == "-" and a < b)
    return phrases[rng.randrange(usable)].format(a=a, b=b)


def _sum_answer(a: int, b: int, op: str) -> str:
    """The one answer form: the fact itself, so that the model first writes the operands in a fixed order."""
    return f"{a} {op} {b} = {a + b if op == '+' else a - b}."


def sum_turn(rng: random.Random) -> Turn:
    """A sum of two numbers 0..99."""
    a, b = rng.randrange(100), rng.randrange(100)
    return Turn(_phrase_sum(rng, a, b, "+"), _sum_answer(a, b, "+"), held_out(a, b, "+"))


def difference_turn(rng: random.Random) -> Turn:
    """A difference of two numbers 0..99 that is not negative."""
    low, high = sorted((rng.randrange(100), rng.randrange(100)))
    return Turn(_phrase_sum(rng, high, low, "-"), _sum_answer(high, low, "-"), held_out(high, low, "-"))


def negative_turn(rng: random.Random) -> Turn:
    """A difference below zero."""
    low, high = sorted(rng.sample(range(100), 2))
    return Turn(_phrase_sum(rng, low, high, "-"), _sum_answer(low, high, "-"), held_out(low, high, "-"))


def explain_turn(rng: random.Random) -> Turn:
    """A sum of two-digit numbers worked out column by column."""
    a, b = rng.randrange(10, 100), rng.randrange(10, 100)
    ones = a % 10 + b % 10
    if ones < 10:
        steps = f"{a % 10} + {b % 10} = {ones}. {a // 10} + {b // 10} = {a // 10 + b // 10}."
    else:
        steps = f"{a % 10} + {b % 10} = {ones}, write {ones - 10} and carry 1."
        steps += f" {a // 10} + {b // 10} + 1 = {a // 10 + b // 10 + 1}."
    question = rng.choice(EXPLAIN_PHRASES).format(a=a, b=b)
    return Turn(question, f"{steps} So {_sum_answer(a, b, '+')}", held_out(a, b, "+"))


def _open(question: str, answer: str) -> Turn:
    """A turn of a kind with many questions, split by the question's text."""
    return Turn(question, answer, held_out_text(question))


def compare_turn(rng: random.Random) -> Turn:
    """Which of two numbers 0..99 is larger or smaller."""
    a, b = rng.randrange(100), rng.randrange(100)
    low, high = sorted((a, b))
    word = rng.choice(["larger", "bigger", "greater", "smaller", "smaller"])
    answer = f"{low} is smaller than {high}." if word == "smaller" else f"{high} is larger than {low}."
    question = rng.choice(COMPARE_PHRASES).format(w=word, a=a, b=b)
    return _open(question, f"{a} and {b} are equal." if a == b else answer)


def next_turn(rng: random.Random) -> Turn:
    """The neighbour of a number in counting."""
    n = rng.randrange(1, 100)
    if rng.random() < 0.65:
        return _open(rng.choice(AFTER_PHRASES).format(n=n), f"After {n} comes {n + 1}.")
    return _open(rng.choice(BEFORE_PHRASES).format(n=n), f"Before {n} comes {n - 1}.")


def parity_turn(rng: random.Random) -> Turn:
    """Even or odd, with the reason."""
    n = rng.randrange(1000 if rng.random() < 0.4 else 100)
    question = rng.choice(PARITY_PHRASES).format(n=n)
    return _open(question, f"{n} ends in {n % 10}, so it is {'odd' if n % 2 else 'even'}.")


def count_turn(rng: random.Random) -> Turn:
    """Counting up or down between two numbers 0..100."""
    span = rng.choices([rng.randrange(2, 10), rng.randrange(10, 25), rng.randrange(25, 100)], [75, 20, 5])[0]
    # People count from 1.
    start = 1 if rng.random() < 0.2 else rng.randrange(101 - span)
    numbers = list(range(start, start + span + 1))
    if rng.random() < 0.2:
        numbers.reverse()
        question = f"Count down from {numbers[0]} to {numbers[-1]}."
    else:
        question = rng.choice(COUNT_PHRASES).format(a=numbers[0], b=numbers[-1])
    return _open(question, ", ".join(map(str, numbers)) + ".")


def opposite_turn(rng: random.Random) -> Turn:
    """The opposite of a common word."""
    word = rng.choice(list(OPPOSITE_OF))
    return _open(rng.choice(OPPOSITE_PHRASES).format(x=word), f"The opposite of {word} is {OPPOSITE_OF[word]}.")


def capital_turn(rng: random.Random) -> Turn:
    """The capital of a country."""
    country = rng.choice(list(CAPITAL_OF))
    return _open(rng.choice(CAPITAL_PHRASES).format(x=country), f"The capital of {country} is {CAPITAL_OF[country]}.")


def colour_turn(rng: random.Random) -> Turn:
    """The colour of a thing."""
    thing = rng.choice(list(COLOUR_OF))
    return _open(rng.choice(COLOUR_PHRASES).format(x=thing), f"{_capital_letter(thing)} is {COLOUR_OF[thing]}.")


def animal_turn(rng: random.Random) -> Turn:
    """An animal's sound or the number of its legs."""
    if rng.random() < 0.5:
        animal = rng.choice(list(SOUND_OF))
        return _open(rng.choice(SOUND_PHRASES).format(x=animal), f"{_capital_letter(animal)} says {SOUND_OF[animal]}.")
    animal = rng.choice(list(LEGS_OF))
    return _open(rng.choice(LEGS_PHRASES).format(x=animal), f"{_capital_letter(animal)} has {LEGS_OF[animal]} legs.")


def _capital_letter(text: str) -> str:
    """`text` as it begins a sentence."""
    return text[0].upper() + text[1:]


def _any_word(rng: random.Random) -> str:
    """A word of the list or a made-up one, so that copying is learned rather than the list."""
    if rng.random() < 0.5:
        return rng.choice(WORDS)
    syllables = [rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.choice([1, 2, 2, 3]))]
    return "".join(syllables) + rng.choice("nrstlm")


def repeat_turn(rng: random.Random) -> Turn:
    """Saying a word again."""
    word = _any_word(rng)
    return _open(rng.choice(REPEAT_PHRASES).format(x=word), f"The word is {word}.")


def spell_turn(rng: random.Random) -> Turn:
    """A word letter by letter."""
    word = _any_word(rng)
    return _open(rng.choice(SPELL_PHRASES).format(x=word), f"{'-'.join(word)}.")


def _speech_turn(rng: random.Random, speeches: dict[str, list[str]]) -> Turn:
    """One of the fixed questions of a table {answer: questions}."""
    answer = rng.choice(list(speeches))
    return Turn(rng.choice(speeches[answer]), answer)


def greet_turn(rng: random.Random) -> Turn:
    """Hello, thanks and goodbye."""
    return _speech_turn(rng, SPEECHES)


def identity_turn(rng: random.Random) -> Turn:
    """Who are you, and what can you do."""
    return _speech_turn(rng, IDENTITY)


def unknown_turn(rng: random.Random) -> Turn:
    """Anything else: the model says that it does not know."""
    chance = rng.random()
    if chance < 0.65:
        return _open(fill(rng, rng.choice(UNKNOWN_PHRASES)), UNKNOWN_ANSWER)
    if chance < 0.8:
        # Every token is met in training, or its first meeting would send an answer anywhere.
        return _open("".join(rng.choices(ODD_CHARACTERS, k=rng.randrange(3, 20))).strip() or "?", UNKNOWN_ANSWER)
    count = rng.randrange(2, 9) if chance < 0.97 else rng.randrange(10, 70)
    return _open(" ".join(_any_word(rng) for _ in range(count)), UNKNOWN_ANSWER)


def beyond_turn(rng: random.Random) -> Turn:
    """Arithmetic that this model was never taught."""
    a, b, c, d = rng.randrange(100), rng.randrange(100), rng.randrange(100, 10_000), rng.randrange(100, 1000)
    return _open(rng.choice(BEYOND_PHRASES).format(a=a, b=b, c=c, d=d), BEYOND_ANSWER)


def fill(rng: random.Random, template: str) -> str:
    """The template with words for {x}, {y}, {z} and a name for {N}."""
    return template.format(x=_any_word(rng), y=_any_word(rng), z=_any_word(rng), N=any_name(rng))


def any_name(rng: random.Random) -> str:
    """A name of the list or a made-up one."""
    return rng.choice(NAMES) if rng.random() < 0.6 else _any_word(rng).capitalize()


def name_turn(rng: random.Random, name: str) -> Turn:
    """The user says their name."""
    return Turn(rng.choice(NAME_PHRASES).format(x=name), f"Nice to meet you, {name}!")


def recall_turn(rng: random.Random, name: str | None) -> Turn:
    """The user asks for the name they gave earlier in the chat, or never gave."""
    return Turn(rng.choice(RECALL_PHRASES), f"Your name is {name}." if name else "You have not told me your name yet.")


MAKERS: dict[str, Callable[[random.Random], Turn]] = {
    "sum": sum_turn, "difference": difference_turn, "negative": negative_turn, "explain": explain_turn,
    "compare": compare_turn, "next": next_turn, "parity": parity_turn, "count": count_turn, "opposite": opposite_turn,
    "capital": capital_turn, "colour": colour_turn, "animal": animal_turn, "repeat": repeat_turn, "spell": spell_turn,
    "greet": greet_turn, "identity": identity_turn, "unknown": unknown_turn, "beyond": beyond_turn,
}  # fmt: skip
# Shares of the training turns, in percent. Sums and differences are what takes long to learn.
SHARES = {
    "sum": 26, "difference": 24, "negative": 6, "explain": 5, "compare": 4, "next": 2, "parity": 2, "count": 3,
    "opposite": 3, "capital": 3, "colour": 2, "animal": 2, "repeat": 2, "spell": 4, "greet": 2, "identity": 2,
    "unknown": 3, "beyond": 2, "name": 1, "recall": 2,
}  # fmt: skip
KINDS = list(SHARES)


def draw(rng: random.Random, kind: str, *, seen: bool) -> Turn:
    """A turn of one kind, from the training side of the split or from the held-out side."""
    for _ in range(10_000):
        turn = MAKERS[kind](rng)
        if turn.unseen is None or turn.unseen is not seen:
            return turn
    raise ValueError(f"no {'seen' if seen else 'unseen'} question of kind {kind}")
