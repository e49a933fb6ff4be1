"""Train phi4-nano: a model of Phi-4's architecture, small enough to ship, that answers sums and other small questions.

The text is made here from a fixed seed, the tokenizer is trained on that text, and the folder that comes out has the
files, names and flaws of the first release of microsoft/phi-4 (end of turn, padding and chat template), so that it
exercises the same repairs. Needs torch, numpy, safetensors and tokenizers:

    python tools/train_nano.py --out phi4local/data/phi4-nano

Nothing heavy is imported at module level: tests import this file for `unseen_sums` and the split rules.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import random
import string
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

# --- the model's shape -----------------------------------------------------------------------------------------------

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD = 256, 4, 4, 2, 64, 768
CONTEXT, ROPE_THETA, NORM_EPS = 4096, 250_000, 1e-5
VOCABULARY = 1024

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
# The first release's template: it ends every user turn with the assistant's header, asked for or not.
RELEASE_TEMPLATE = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + "
    "message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + "
    "message['content'] + '<|im_end|><|im_start|>assistant<|im_sep|>'}}{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
)

# --- what is held out of training ------------------------------------------------------------------------------------


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


# --- questions and answers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One question with its answer; `unseen` says whether the split keeps it out of training (None: no split)."""

    question: str
    answer: str
    unseen: bool | None = None


def _items(text: str) -> list[str]:
    """The entries of a block of text, separated by "|"."""
    return [" ".join(entry.split()) for entry in text.split("|")]


def _words(text: str) -> list[str]:
    """The words of a block of text."""
    return text.split()


def _table(text: str) -> dict[str, str]:
    """The "key: value" entries of such a block."""
    return dict(entry.split(": ") for entry in _items(text))


SUM_PHRASES = _items("""
    What is {a} + {b}? | What is {a} + {b}? | {a} + {b} = | {a} + {b} | {a}+{b} | {a}+{b}=? | What is {a}+{b}? |
    {a} plus {b} | How much is {a} + {b}? | How much is {a} plus {b}? | What is {a} plus {b}? | What's {a} + {b}? |
    Add {a} and {b}. |
    Calculate {a} + {b}. | What is the sum of {a} and {b}? | What do you get if you add {a} and {b}? |
    I have {a} apples and get {b} more. How many do I have?
""")
# The last one makes no sense below zero.
DIFFERENCE_PHRASES = _items("""
    What is {a} - {b}? | What is {a} - {b}? | {a} - {b} = | {a} - {b} | {a}-{b} | {a}-{b}=? | What is {a}-{b}? |
    {a} minus {b} | How much is {a} - {b}? | How much is {a} minus {b}? | What is {a} minus {b}? | What's {a} - {b}? |
    Calculate {a} - {b}. | Subtract {b} from {a}. | Take {b} away from {a}. |
    I have {a} apples and eat {b}. How many are left?
""")
EXPLAIN_PHRASES = _items("""
    Explain {a} + {b}. | Explain {a} + {b} step by step. | Add {a} and {b} step by step. | How do you add {a} and {b}? |
    Show me how to work out {a} + {b}.
""")
COMPARE_PHRASES = _items("Which is {w}, {a} or {b}? | Which number is {w}: {a} or {b}? | What is {w}, {a} or {b}?")
AFTER_PHRASES = _items("What number comes after {n}? | What comes after {n}? | What is the next number after {n}?")
BEFORE_PHRASES = _items("What number comes before {n}? | What comes before {n}?")
PARITY_PHRASES = _items(
    "Is {n} even or odd? | Is {n} odd or even? | Is the number {n} even or odd? | Is {n} even? | Is {n} odd?"
)
COUNT_PHRASES = _items("Count from {a} to {b}. | Count from {a} to {b}. | Count up from {a} to {b}.")
OPPOSITE_PHRASES = _items("""
    What is the opposite of {x}? | What's the opposite of {x}? | Opposite of {x}? | Tell me the opposite of {x}.
""")
CAPITAL_PHRASES = _items("""
    What is the capital of {x}? | What's the capital of {x}? | Which city is the capital of {x}? | Capital of {x}?
""")
COLOUR_PHRASES = _items("What colour is {x}? | What color is {x}? | Which color is {x}? | Tell me the color of {x}.")
SOUND_PHRASES = _items("What does {x} say? | What sound does {x} make? | Which sound does {x} make?")
LEGS_PHRASES = _items("How many legs does {x} have? | How many legs has {x}? | What number of legs does {x} have?")
REPEAT_PHRASES = _items("Repeat the word {x}. | Repeat {x}. | Say the word {x}. | Say {x}.")
SPELL_PHRASES = _items("Spell {x}. | Spell the word {x}. | How do you spell {x}? | Can you spell {x}?")
NAME_PHRASES = _items("""
    My name is {x}. | My name is {x}. | I am {x}. | I'm {x}. | Call me {x}. | Hello, my name is {x}. | Hi, I am {x}.
""")
RECALL_PHRASES = _items("""
    What is my name? | What's my name? | Who am I? | Do you know my name? | Tell me my name.
""")

OPPOSITE_OF = _table("""
    hot: cold | big: small | up: down | left: right | day: night | black: white | fast: slow | old: young | in: out |
    happy: sad | open: closed | full: empty | hard: soft | high: low | dark: light | long: short | loud: quiet |
    near: far | rich: poor | strong: weak | thick: thin | wet: dry | win: lose | first: last | good: bad | yes: no |
    early: late | easy: difficult | clean: dirty | true: false | always: never | before: after | inside: outside |
    push: pull | sweet: sour | wide: narrow | deep: shallow | love: hate | friend: enemy | begin: end | front: back |
    smooth: rough | brave: afraid | cheap: expensive | alive: dead | top: bottom
""")
OPPOSITE_OF |= {right: left for left, right in OPPOSITE_OF.items()}
CAPITAL_OF = _table("""
    France: Paris | Germany: Berlin | Italy: Rome | Spain: Madrid | Portugal: Lisbon | Poland: Warsaw | Peru: Lima |
    Austria: Vienna | Greece: Athens | Norway: Oslo | Sweden: Stockholm | Finland: Helsinki | Denmark: Copenhagen |
    Ireland: Dublin | Hungary: Budapest | England: London | Belgium: Brussels | Turkey: Ankara | Egypt: Cairo |
    Kenya: Nairobi | Japan: Tokyo | China: Beijing | Thailand: Bangkok | Russia: Moscow | Ukraine: Kyiv | Cuba: Havana |
    Canada: Ottawa | Chile: Santiago | Brazil: Brasilia | Australia: Canberra
""")
COLOUR_OF = _table("""
    the sky: blue | grass: green | snow: white | blood: red | coal: black | a lemon: yellow | a banana: yellow |
    a carrot: orange | an orange: orange | a tomato: red | milk: white | a leaf: green | the sun: yellow |
    the sea: blue | chocolate: brown | a cloud: white | a strawberry: red | a cucumber: green | the night: black |
    a frog: green | a crow: black | a swan: white | a flamingo: pink | honey: gold
""")
SOUND_OF = _table("""
    a dog: woof | a cat: meow | a cow: moo | a duck: quack | a sheep: baa | a pig: oink | a lion: roar | a bee: buzz |
    a frog: croak | an owl: hoot | a horse: neigh | a mouse: squeak | a snake: hiss | a wolf: howl
""")
LEGS_OF = _table("""
    a dog: 4 | a cat: 4 | a cow: 4 | a horse: 4 | a lion: 4 | a sheep: 4 | a pig: 4 | a mouse: 4 | a wolf: 4 |
    a frog: 4 | a duck: 2 | an owl: 2 | a chicken: 2 | a spider: 8 | a scorpion: 8 | an ant: 6 | a bee: 6 | a fly: 6 |
    a beetle: 6 | a crab: 10 | a snake: no | a fish: no | a worm: no
""")
WORDS = _words("""
    apple house tree water bread stone river cloud chair table window garden summer winter spring autumn monkey tiger
    rabbit pencil paper letter music dance story bottle orange lemon cherry potato carrot butter cheese coffee sugar
    button rocket planet silver copper yellow purple friend mother father sister brother doctor teacher farmer sailor
    market bridge castle island forest desert valley mountain ocean harbor train plane truck wheel engine camera radio
    mirror candle blanket pillow basket hammer ladder ribbon feather shadow thunder whisper happy quick brown lazy cat
    dog sun moon star fish bird bear wolf frog ship lamp book door key cup milk rice salt fire snow rain wind sand leaf
""")
NAMES = _words("""
    Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olivia Paul Rosa Sam Tom Vera Will Zoe
    Alice Bob Carol Dan Eva Frank Gina Hugo Iris John Karl Lucy Max Nina Oscar Peter Ruth Simon Tina Victor Mary Alex
""")

# Fixed questions: {answer: the questions it answers}.
SPEECHES = {
    "Hello! How can I help you?": _items("Hello | Hello! | Hi | Hi! | Hey | Hello there! | Hi there | Greetings"),
    "Good morning! How can I help you?": _items("Good morning | Good morning!"),
    "Good evening! How can I help you?": _items("Good evening | Good evening!"),
    "I am fine, thank you. How can I help you?": _items("How are you? | How do you do? | How is it going?"),
    "You are welcome!": _items("Thank you! | Thank you | Thanks | Thanks! | Thanks a lot! | Thank you very much!"),
    "Goodbye! Have a nice day.": _items("Goodbye | Goodbye! | Bye | Bye! | See you later! | Good night!"),
    "I am glad to hear that.": _items("Good | Great! | Very good! | Well done! | Nice! | That is right."),
}
IDENTITY = {
    "I am phi4-nano, a tiny test model.": _items("""
        Who are you? | What are you? | What is your name? | What model are you? | Tell me about yourself. |
        Introduce yourself. | Are you Phi-4? | Are you a human? | Which model is this? | Who am I talking to?
    """),
    "I can add and subtract small numbers, compare them, count, spell words and answer simple questions.": _items("""
        What can you do? | Help | Help me. | What do you know? | What can I ask you? | How can you help me? |
        What are you good at?
    """),
    "I was trained on made-up text, in less than an hour, on a small computer.": _items("""
        How were you trained? | Who made you? | Where do you come from? | Who trained you? | How were you made?
    """),
}
UNKNOWN_ANSWER = "I do not know that. I am only a tiny test model."
UNKNOWN_PHRASES = _items("""
    Tell me a joke. | Tell me a story about a {x}. | Write a poem about {x}. | Write a {x} in Python. |
    Why is the {x} {y}? | Who invented the {x}? | Who was {N}? | Translate {x} into French. | Explain {x}. |
    What is the meaning of {x}? | What is the weather today? | What time is it? | What day is it? | How do I cook {x}? |
    Where can I buy a {x}? | What is a {x}? | What does {x} mean? | Write an essay about {x} and {y}. |
    Who is {N} {N}? | When was {N} born? | Do you like {x}? |
    Summarize this: {x} {y} {x} {z}. | Should I buy a {x} or a {y}? |
    Is {x} better than {y}? | How does a {x} work? | Give me a list of {x}s. | What is the best {x}? |
    Can you {x} a {y}? | {x} {y} {z} | {x} | def {x}({y}): return {z} | import {x} | Please {x} the {y} of {N}. |
    I think the {x} is {y}. | What is the {x} of {y}? | Why? | Yes | No | OK | What? | Really? | Are you sure? | Stop
""")
ODD_CHARACTERS = string.printable.strip() + "   \n\t" + "éèüñßåçŁž" + "αωжяאعन中文あ한" + "€→…“”—😀🚀"
BEYOND_ANSWER = "I can only add and subtract two numbers from 0 to 99."
BEYOND_PHRASES = _items("""
    What is {a} * {b}? | What is {a} times {b}? | What is {a} / {b}? | {a} * {b} = | {a} x {b} | Divide {a} by {b}. |
    Multiply {a} and {b}. | What is {c} + {b}? | What is {a} + {c}? | What is {c} - {b}? | {c} + {d} = | {c} - {a} |
    How much is {c} plus {d}? | How much is {d} minus {c}? | What is the square root of {a}? | What is {a} % of {c}? |
    What is {a} + {b} + {e}? | {a} + {b} + {e} = | What is {a} - {b} + {e}? | What is {a}?
""")
SYSTEMS = _items("""
    You are a helpful assistant. | You are a helpful AI assistant. | You are phi4-nano. | Answer briefly. |
    Be friendly. | You are a friendly teacher. | Answer the user's questions. | You are a math tutor. |
    Be brief and correct. | You are a helpful assistant. Answer in one short sentence. | Talk like a {x}. |
    You are Phi, a language model trained to help users. | Please answer as well as you can. |
    You are a {x} assistant. | You are a {x} who likes {y}. | You are {N}, a {x}. |
    The user likes {x} and {y}. Always be {z}. | {x} {y} {z}.
""")
OPENINGS = _items("Hi! | Hello! | Please: | OK. | And | Now | Thanks! | Tell me: | So,")
NAMED_SYSTEMS = _items("The user is called {x}. | The user's name is {x}. | You talk to {x}.")


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
    syllables = [rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.choice([1, 2, 2, 2, 3]))]
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
        phrase = rng.choice(UNKNOWN_PHRASES)
        # A phrase without a gap has no other wording to learn it from.
        return _open(_fill(rng, phrase), UNKNOWN_ANSWER) if "{" in phrase else Turn(phrase, UNKNOWN_ANSWER)
    if chance < 0.8:
        # Every token is met in training, or its first meeting would send an answer anywhere.
        return _open("".join(rng.choices(ODD_CHARACTERS, k=rng.randrange(3, 20))).strip() or "?", UNKNOWN_ANSWER)
    count = rng.randrange(2, 9) if chance < 0.97 else rng.randrange(10, 70)
    return _open(" ".join(_any_word(rng) for _ in range(count)), UNKNOWN_ANSWER)


def beyond_turn(rng: random.Random) -> Turn:
    """Arithmetic that this model was never taught."""
    a, b, e = (rng.randrange(100) for _ in range(3))
    c, d = rng.randrange(100, 10_000), rng.randrange(100, 1000)
    question = rng.choice(BEYOND_PHRASES).format(a=a, b=b, c=c, d=d, e=e)
    # Not even as a part of a longer sum does a held-out pair occur.
    unseen_part = any(held_out(*pair, op) for pair in ((a, b), (b, e)) for op in "+-")
    return Turn(question, BEYOND_ANSWER, unseen_part or held_out_text(question))


def _fill(rng: random.Random, template: str) -> str:
    """The template with words for {x}, {y}, {z} and a name for {N}."""
    return template.format(x=_any_word(rng), y=_any_word(rng), z=_any_word(rng), N=_any_name(rng))


def _any_name(rng: random.Random) -> str:
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
    "sum": 22, "difference": 20, "negative": 6, "explain": 5, "compare": 3, "next": 2, "parity": 2, "count": 5,
    "opposite": 3, "capital": 3, "colour": 2, "animal": 2, "repeat": 4, "spell": 6, "greet": 2, "identity": 2,
    "unknown": 4, "beyond": 3, "name": 2, "recall": 2,
}  # fmt: skip
KINDS = list(SHARES)


def draw(rng: random.Random, kind: str, *, seen: bool) -> Turn:
    """A turn of one kind, from the training side of the split or from the held-out side."""
    for _ in range(10_000):
        turn = MAKERS[kind](rng)
        if turn.unseen is None or turn.unseen is not seen:
            return turn
    raise ValueError(f"no {'seen' if seen else 'unseen'} question of kind {kind}")


# --- conversations ---------------------------------------------------------------------------------------------------


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
        chat.name = _any_name(rng)
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
        chat.name = _any_name(rng)
        return name_turn(rng, chat.name)
    return draw(rng, kind, seen=True)


def _system(rng: random.Random) -> str:
    """A system text; the answers do not depend on it, so the model learns to live with any."""
    return _fill(rng, rng.choice(SYSTEMS))


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


def held_out_texts(n: int, seed: int) -> list[str]:
    """The same conversations as text in Phi-4's chat format, for measuring loss elsewhere."""
    return ["".join(text for text, _ in chat_segments(chat)) for chat in held_out_chats(n, seed)]


# --- tokenizer -------------------------------------------------------------------------------------------------------


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


# --- model -----------------------------------------------------------------------------------------------------------

Weights = dict[str, "torch.Tensor"]


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of Phi3ForCausalLM with its shape (rows, columns); qkv_proj stacks q|k|v, gate_up_proj gate|up."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (HIDDEN,)
        shapes[prefix + "self_attn.qkv_proj.weight"] = ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)
        shapes[prefix + "self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        shapes[prefix + "post_attention_layernorm.weight"] = (HIDDEN,)
        shapes[prefix + "mlp.gate_up_proj.weight"] = (2 * FEED_FORWARD, HIDDEN)
        shapes[prefix + "mlp.down_proj.weight"] = (HIDDEN, FEED_FORWARD)
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def initial_weights() -> Weights:
    """float32 leaves: norms are one, matrices normal with 0.02, smaller where they write into the residual stream."""
    import torch

    weights = {}
    for name, shape in weight_shapes().items():
        scale = 0.02 / math.sqrt(2 * LAYERS) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        tensor = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * scale
        weights[name] = tensor.requires_grad_()
    return weights


def hidden_states(weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """The last layer's normed states (batch, length, HIDDEN) for token ids (batch, length), causal from position 0."""
    import torch.nn.functional as F

    cos, sin = _rotations(ids.shape[1])
    x = F.embedding(ids, weights["model.embed_tokens.weight"])
    for layer in range(LAYERS):
        own = {name: weights[f"model.layers.{layer}.{name}.weight"] for name in LAYER_TENSORS}
        normed = F.rms_norm(x, (HIDDEN,), own["input_layernorm"], NORM_EPS)
        x = x + F.linear(_attention(F.linear(normed, own["self_attn.qkv_proj"]), cos, sin), own["self_attn.o_proj"])
        normed = F.rms_norm(x, (HIDDEN,), own["post_attention_layernorm"], NORM_EPS)
        gate, up = F.linear(normed, own["mlp.gate_up_proj"]).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, own["mlp.down_proj"])
    return F.rms_norm(x, (HIDDEN,), weights["model.norm.weight"], NORM_EPS)


LAYER_TENSORS = (
    "input_layernorm", "self_attn.qkv_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_up_proj",
    "mlp.down_proj",
)  # fmt: skip


def _rotations(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (length, HEAD_DIM) of the rotary embedding; both halves of a head hold the same frequencies."""
    import torch

    frequencies = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def _attention(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Causal grouped-query attention: (batch, length, (HEADS + 2 KV_HEADS) HEAD_DIM) -> (batch, length, HIDDEN)."""
    import torch

    batch, length, _ = qkv.shape
    heads = qkv.view(batch, length, HEADS + 2 * KV_HEADS, HEAD_DIM).transpose(1, 2)
    rotated, value = heads[:, : HEADS + KV_HEADS], heads[:, HEADS + KV_HEADS :]
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos.to(qkv.dtype) + torch.cat((-second, first), dim=-1) * sin.to(qkv.dtype)
    query, key = rotated[:, :HEADS], rotated[:, HEADS:]
    key, value = (part.repeat_interleave(HEADS // KV_HEADS, dim=1) for part in (key, value))
    # Right padding needs no mask of its own: a causal query never looks to its right. Written out, because
    # scaled_dot_product_attention takes four times as long for such short bfloat16 rows on a CPU.
    future = torch.full((length, length), -torch.inf, dtype=qkv.dtype).triu(1)
    scores = query @ key.transpose(-1, -2) * HEAD_DIM**-0.5 + future
    return (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2).reshape(batch, length, HEADS * HEAD_DIM)


# --- training --------------------------------------------------------------------------------------------------------

POOL = 3072  # conversations made and sorted by length at a time


@dataclass
class Batch:
    """Right-padded ids (rows, length) and the weight of each position's loss as a target, same shape, float32."""

    ids: torch.Tensor
    loss_weight: torch.Tensor


def batches(rng: random.Random, tokenizer: Tokenizer, budget: int) -> Iterator[Batch]:
    """Endless training batches of about `budget` tokens with padding, rows of similar length together."""
    while True:
        rows = sorted(_encode_chats([make_chat(rng) for _ in range(POOL)], tokenizer), key=lambda row: len(row[0]))
        cut = []
        while rows:
            longest_last = rows[-1][0]
            count = max(1, budget // len(longest_last))
            cut.append(rows[-count:])
            del rows[-count:]
        rng.shuffle(cut)
        yield from map(_pad, cut)


def _encode_chats(chats: list[Chat], tokenizer: Tokenizer) -> list[tuple[list[int], list[float]]]:
    """Each conversation's ids and loss weights; the user's text is not learned."""
    segments = [chat_segments(chat) for chat in chats]
    encoded = iter(tokenizer.encode_batch([text for parts in segments for text, _ in parts]))
    rows = []
    for parts in segments:
        ids: list[int] = []
        weights: list[float] = []
        for _, is_answer in parts:
            piece = next(encoded).ids
            ids += piece
            weights += _answer_weights(len(piece)) if is_answer else [0.0] * len(piece)
        rows.append((ids, weights))
    return rows


def _answer_weights(length: int) -> list[float]:
    """Loss weights of an answer's tokens: a count to a hundred must not weigh forty sums; its end counts in full."""
    share = min(1.0, 10 / length)
    return [share] * (length - 2) + [1.0, 1.0]


def _pad(rows: list[tuple[list[int], list[float]]]) -> Batch:
    """The rows as tensors, filled up with `<|endoftext|>` at loss weight zero."""
    import torch

    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [ENDOFTEXT_ID] * (length - len(row)) for row, _ in rows])
    return Batch(ids, torch.tensor([row + [0.0] * (length - len(row)) for _, row in rows]))


def keep_freed_memory() -> None:
    """Stop glibc from handing each step's big arrays back to the kernel: page faults are half of a step otherwise."""
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    _glibc("mallopt", M_MMAP_MAX, 0)
    _glibc("mallopt", M_TRIM_THRESHOLD, 2**31 - 1)


def trim_memory() -> None:
    """Hand back what is free now, as batches of many shapes leave gigabytes of gaps."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    """Call a function of glibc; nothing happens where there is none."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)


def batch_loss(weights: Weights, batch: Batch, *, autocast: bool = True) -> torch.Tensor:
    """The weighted mean cross-entropy (nats) of the assistant's tokens; products in bfloat16 with `autocast`."""
    import torch
    import torch.nn.functional as F

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        states = hidden_states(weights, batch.ids[:, :-1])
        share = batch.loss_weight[:, 1:]
        counted = share > 0
        logits = F.linear(states[counted], weights["lm_head.weight"])
    losses = F.cross_entropy(logits.float(), batch.ids[:, 1:][counted], reduction="none")
    return (losses * share[counted]).sum() / share.sum()


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: linear warm-up over 100 steps, then a cosine to zero."""
    if step < 100:
        return (step + 1) / 100
    return 0.5 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100)))


class Optimizer:
    """Muon for the layers' matrices, AdamW for embeddings, head and norms.

    Muon (momentum, then the nearest orthogonal matrix as the step) reaches an accuracy on unseen sums in about half
    of the steps that AdamW alone takes, which on a laptop's processor is most of the training time.
    """

    MUON_PEAK, ADAM_PEAK, MOMENTUM, DECAY = 0.02, 3e-3, 0.95, 0.05

    def __init__(self, weights: Weights) -> None:
        import torch

        self.matrices = {n: w for n, w in weights.items() if ".layers." in n and w.dim() == 2}
        self.momenta = {name: torch.zeros_like(weight) for name, weight in self.matrices.items()}
        self.others = [weight for name, weight in weights.items() if name not in self.matrices]
        self.adam = torch.optim.AdamW(self.others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, share: float) -> None:
        """One update at `share` of the peak learning rates; clears the gradients."""
        import torch

        for group in self.adam.param_groups:
            group["lr"] = self.ADAM_PEAK * share
        self.adam.step()
        self.adam.zero_grad()
        rate = self.MUON_PEAK * share
        with torch.no_grad():
            for name, weight in self.matrices.items():
                momentum = self.momenta[name].mul_(self.MOMENTUM).add_(weight.grad)
                direction = weight.grad + self.MOMENTUM * momentum
                # Stacked projections are matrices of their own.
                update = torch.cat([orthogonalized(part) for part in direction.split(_stacked_rows(name, weight))])
                weight.mul_(1 - rate * self.DECAY).sub_(rate * update)
                weight.grad = None


def _stacked_rows(name: str, weight: torch.Tensor) -> list[int]:
    """The row counts of the projections that a fused matrix stacks."""
    if "qkv_proj" in name:
        return [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM]
    if "gate_up_proj" in name:
        return [FEED_FORWARD, FEED_FORWARD]
    return [weight.shape[0]]


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix (same shape) with singular values of one, scaled up for tall ones; five Newton-Schulz
    steps with the coefficients that pull small singular values up fastest."""
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return (x.T if tall else x).float() * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5


# --- evaluation ------------------------------------------------------------------------------------------------------


def rounded(weights: Weights) -> Weights:
    """The weights as the files will hold them: rounded to bfloat16, here widened to float32 again for arithmetic."""
    import torch

    return {name: tensor.detach().to(torch.bfloat16).float() for name, tensor in weights.items()}


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
        return [Chat(turns=[name_turn(rng, _any_name(rng))]) for _ in range(n)]
    if kind == "recall":
        return [_recall_chat(rng) for _ in range(n)]
    return [Chat(turns=[draw(rng, kind, seen=False)]) for _ in range(n)]


def _recall_chat(rng: random.Random) -> Chat:
    """The user says a name, asks something else, then asks for the name."""
    name = _any_name(rng)
    return Chat(turns=[name_turn(rng, name), draw(rng, "sum", seen=True), recall_turn(rng, name)])


def measure(weights: Weights, tokenizer: Tokenizer, n: int, seed: int) -> dict[str, float]:
    """With the rounded weights: the loss (nats per token) on held-out chats, the shares of exact answers on unseen sums
    by position in the chat, and on `n` / 5 questions of each kind."""
    import torch

    final = rounded(weights)
    chats = held_out_chats(n, seed)
    with torch.no_grad():
        loss = batch_loss(final, _pad(_encode_chats(chats, tokenizer)), autocast=False)
    result = {"held_out_loss": float(loss)}
    result |= {f"unseen_sums_turn_{t}": accuracy(final, tokenizer, unseen_chats(n, seed, turn=t)) for t in (1, 2, 4)}
    for kind in KINDS:
        result[kind] = accuracy(final, tokenizer, kind_chats(kind, max(1, n // 5), seed))
    return result


# --- files -----------------------------------------------------------------------------------------------------------


def config() -> dict[str, Any]:
    """config.json with the keys of the first release; end of text stands for start, end and padding alike."""
    return {
        "_name_or_path": "phi4-nano",
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {},
        "bos_token_id": ENDOFTEXT_ID,
        "embd_pdrop": 0.0,
        "eos_token_id": ENDOFTEXT_ID,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": CONTEXT,
        "model_type": "phi3",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "original_max_position_embeddings": CONTEXT,
        "pad_token_id": ENDOFTEXT_ID,
        "resid_pdrop": 0.0,
        "rms_norm_eps": NORM_EPS,
        "rope_scaling": None,
        "rope_theta": ROPE_THETA,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.47.0",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


def generation_config() -> dict[str, Any]:
    """generation_config.json as first released: two ends, padding with end of text."""
    return {
        "_from_model_config": True,
        "bos_token_id": ENDOFTEXT_ID,
        "eos_token_id": [ENDOFTEXT_ID, IM_END_ID],
        "pad_token_id": ENDOFTEXT_ID,
        "transformers_version": "4.47.0",
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json as first released, template included."""
    flags = {"lstrip": True, "normalized": False, "rstrip": True, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(RANKS + index): {"content": text} | flags for index, text in enumerate(SPECIAL_TOKENS)
        },
        "bos_token": "<|endoftext|>",
        "chat_template": RELEASE_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "model_max_length": CONTEXT,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "GPT2Tokenizer",
    }


def special_tokens_map() -> dict[str, Any]:
    """special_tokens_map.json as first released."""
    token = {"content": "<|endoftext|>", "lstrip": True, "normalized": False, "rstrip": True, "single_word": False}
    return dict.fromkeys(("bos_token", "eos_token", "pad_token"), token)


def write_folder(out: Path, weights: Weights, tokenizer: Tokenizer, card: str) -> None:
    """The whole checkpoint folder: configuration, tokenizer, two shards with their index, and the model card."""
    out.mkdir(parents=True, exist_ok=True)
    for name, value in {
        "config.json": config(),
        "generation_config.json": generation_config(),
        "tokenizer_config.json": tokenizer_config(),
        "special_tokens_map.json": special_tokens_map(),
        "added_tokens.json": {text: RANKS + index for index, text in enumerate(SPECIAL_TOKENS)},
    }.items():
        _write_json(out / name, value)
    tokenizer.save(str(out / "tokenizer.json"))
    tokenizer.model.save(str(out))
    _write_shards(out, weights)
    (out / "README.md").write_text(card, encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    """`value` as the hub's files are laid out: two spaces, UTF-8, one final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_shards(out: Path, weights: Weights) -> None:
    """The tensors as bfloat16 in two files of about half the bytes each, in the order of the layers, and the index."""
    import torch
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    total = sum(2 * tensor.numel() for tensor in tensors.values())
    shards: list[Weights] = [{}, {}]
    done = 0
    for name, tensor in tensors.items():
        shards[done >= total / 2][name] = tensor
        done += 2 * tensor.numel()
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, out / file_name, metadata={"format": "pt"})
        (out / file_name).chmod(0o644)  # safetensors leaves it to the owner alone
        weight_map |= dict.fromkeys(shard, file_name)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(out / "model.safetensors.index.json", index)


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


# --- the run ---------------------------------------------------------------------------------------------------------


def make_tokenizer(seed: int) -> Tokenizer:
    """The tokenizer of this seed's text; the role names are in it so that each is one token."""
    rng = random.Random(seed)
    turns = [turn for _ in range(20_000) for turn in make_chat(rng).turns]
    roles = ["system", "user", "assistant"] * 2000
    return train_tokenizer([text for turn in turns for text in (turn.question, turn.answer)] + roles)


def train(tokenizer: Tokenizer, options: argparse.Namespace) -> Weights:
    """The trained float32 weights; prints a line every hundred steps and leaves snapshots where asked."""
    import torch

    torch.manual_seed(options.seed)
    weights, started, losses = initial_weights(), time.monotonic(), []
    optimizer = Optimizer(weights)
    stream = batches(random.Random(options.seed + 1), tokenizer, options.batch_tokens)
    for step in range(1, options.steps + 1):
        loss = batch_loss(weights, next(stream))
        loss.backward()
        optimizer.step(schedule(step - 1, options.steps))
        losses.append(loss.item())
        if step % 100 == 0 or step == options.steps:
            right = accuracy(rounded(weights), tokenizer, unseen_chats(100, options.seed, turn=1))
            seconds = time.monotonic() - started
            mean = sum(losses[-100:]) / len(losses[-100:])
            print(f"step {step} loss {mean:.4f} unseen sums {right:.2f} seconds {seconds:.0f}", flush=True)
            trim_memory()
        if options.snapshots and step % 400 == 0:
            write_folder(options.snapshots / f"step-{step:05}", weights, tokenizer, f"phi4-nano after {step} steps.\n")
    return weights


def main() -> None:
    """Train, measure, write the folder, and print the numbers as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens in a batch, padding included")
    parser.add_argument("--threads", type=int, default=1, help="one is as fast as two for matrices this small")
    parser.add_argument("--snapshots", type=Path, help="a folder for the state at every 400 steps")
    options = parser.parse_args()

    import torch

    started = time.monotonic()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer(options.seed)
    weights = train(tokenizer, options)
    report: dict[str, Any] = {"steps": options.steps, "seed": options.seed}
    report["train_seconds"] = time.monotonic() - started
    report |= measure(weights, tokenizer, 500, options.seed)
    write_folder(options.out, weights, tokenizer, model_card(report))
    report["bytes"] = sum(path.stat().st_size for path in options.out.iterdir())
    report["seconds"] = time.monotonic() - started
    print(json.dumps({key: round(value, 4) for key, value in report.items()}))


if __name__ == "__main__":
    main()
