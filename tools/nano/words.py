"""The phrases, tables and words that questions are made of."""

from __future__ import annotations

import string


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
    {a} plus {b} | How much is {a} + {b}? | How much is {a} plus {b}? | What is {a} plus {b}? | Add {a} and {b}. |
    Calculate {a} + {b}. | What is the sum of {a} and {b}? | What do you get if you add {a} and {b}? |
    I have {a} apples and get {b} more. How many do I have?
""")
# The last one makes no sense below zero.
DIFFERENCE_PHRASES = _items("""
    What is {a} - {b}? | What is {a} - {b}? | {a} - {b} = | {a} - {b} | {a}-{b} | {a}-{b}=? | What is {a}-{b}? |
    {a} minus {b} | How much is {a} - {b}? | How much is {a} minus {b}? | What is {a} minus {b}? |
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
PARITY_PHRASES = _items("Is {n} even or odd? | Is {n} odd or even? | Is the number {n} even or odd?")
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
    I think the {x} is {y}. | What is the {x} of {y}?
""")
ODD_CHARACTERS = string.printable.strip() + "   \n\t" + "éèüñßåçŁž" + "αωжяאعन中文あ한" + "€→…“”—😀🚀"
BEYOND_ANSWER = "I can only add and subtract numbers from 0 to 99."
BEYOND_PHRASES = _items("""
    What is {a} * {b}? | What is {a} times {b}? | What is {a} / {b}? | {a} * {b} = | {a} x {b} | Divide {a} by {b}. |
    Multiply {a} and {b}. | What is {c} + {b}? | What is {a} + {c}? | What is {c} - {b}? | {c} + {d} = | {c} - {a} |
    How much is {c} plus {d}? | How much is {d} minus {c}? | What is the square root of {a}? | What is {a} % of {c}?
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
