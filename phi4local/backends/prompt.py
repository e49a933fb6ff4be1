"""From messages to token ids, so that text never becomes a control token and an answer keeps the ids it was made of.

Control strings (`<|im_end|>`) in a message are broken by a guard character before the template runs. In what the
template wrote, an unbroken one is therefore the template's own. Guards are taken out again; then the rest is tokenised
as plain text. An answer that the model gave before travels between two marks and gets its own ids back. Knows no
engine: the vocabulary is a protocol.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from phi4local.template import ChatTemplate

CONTROL_LOOK = re.compile(r"<\|.+\|>", re.DOTALL)  # of a token that acts, whatever it is marked as
_REMEMBERED_TOKENS = 1 << 18
# Code points that no text should hold: first the noncharacters, then the private planes.
_UNUSUAL = (range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class Vocabulary(Protocol):
    """What a prompt needs of a model: `controls` are the control strings (two characters or more) and their ids."""

    @property
    def controls(self) -> Mapping[str, int]: ...

    @property
    def leading(self) -> int | None:
        """The token that every prompt begins with, when the model wants one."""

    def tokenise(self, text: str) -> list[int]:
        """Token ids of plain text; nothing in it is taken for a control token that the engine can keep apart."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as text: control strings unbroken where the template wrote them, guarded where a message held them."""

    text: str
    guard: str
    marks: tuple[str, str]
    answers: Mapping[str, Sequence[int]]

    @property
    def thinking(self) -> bool:
        """Whether the template has opened the answer's <think> itself."""
        return self.text.rstrip().endswith("<think>")


class Prompts:
    """Writes prompts with one model's template and vocabulary, and remembers the answers that came of them."""

    def __init__(self, template: ChatTemplate, vocabulary: Vocabulary) -> None:
        self._template = template
        self._vocabulary = vocabulary
        self._controls = ControlStrings(vocabulary.controls)
        self._answers: OrderedDict[str, Sequence[int]] = OrderedDict()

    def remember(self, answer: str, ids: Sequence[int]) -> None:
        """Keep an answer's own ids; the oldest answers are forgotten."""
        if answer:
            self._answers[answer] = ids
            self._answers.move_to_end(answer)
        while sum(map(len, self._answers.values())) > _REMEMBERED_TOKENS:
            self._answers.popitem(last=False)

    def remembered(self) -> list[tuple[str, Sequence[int]]]:
        """The answers and their own ids, the oldest first."""
        return list(self._answers.items())

    def render(self, messages: Sequence[Mapping[str, str]]) -> Rendered:
        """Run the template over guarded contents (FormatError, UsageError)."""
        unusual = _absent_from([self._template.source, *(message["content"] for message in messages)])
        guard, *marks = (next(unusual) for _ in range(3))
        answers: dict[str, Sequence[int]] = {}
        written = []
        for message in messages:
            content = message["content"]
            ids = self._answers.get(content) if message["role"] == "assistant" else None
            content = self._controls.guarded(content if ids else content.strip(), guard)
            if ids:
                answers[content] = ids
                content = f"{marks[0]}{content}{marks[1]}"
            written.append({"role": message["role"], "content": content})
        return Rendered(self._template.render(written), guard, (marks[0], marks[1]), answers)

    def ids(self, rendered: Rendered) -> list[int]:
        """The token ids of a rendered prompt."""
        first, last = rendered.marks
        ids: list[int] = []
        for part in re.split(f"({first}[^{first}{last}]*{last})", rendered.text):
            kept = rendered.answers.get(part[1:-1]) if part.startswith(first) and part.endswith(last) else None
            ids += kept or self._written_ids(part.replace(first, "").replace(last, ""), rendered.guard)
        leading = self._vocabulary.leading
        return ids if leading is None or ids[:1] == [leading] else [leading, *ids]

    def _written_ids(self, text: str, guard: str) -> Iterator[int]:
        for part in self._controls.split(text):
            control = self._vocabulary.controls.get(part)
            yield from self._text_ids(part, guard) if control is None else [control]

    def _text_ids(self, text: str, guard: str) -> list[int]:
        """Plain text's ids: in one go, or cut where a control string was broken, or cut everywhere.

        The later ways are for engines that find some control strings in plain text too (llama.cpp: USER_DEFINED).
        """
        plain = text.replace(guard, "")
        ids = self._vocabulary.tokenise(plain) if plain else []
        for parts in (text.split(guard), plain):
            if self._controls.ids.isdisjoint(ids):
                break
            ids = [i for part in parts if part for i in self._vocabulary.tokenise(part)]
        return ids


class ControlStrings:
    """Finds a vocabulary's control strings in text, and breaks those that a message holds."""

    def __init__(self, controls: Mapping[str, int]) -> None:
        self.ids = frozenset(controls.values())
        self._strings = sorted(controls, key=len, reverse=True)
        either = "|".join(map(re.escape, self._strings)) or r"(?!)"
        self._whole = re.compile(f"({either})")
        self._first = re.compile(f"(?=(?:{either}))(.)", re.DOTALL)  # finds overlapping ones too
        self._heads = tuple({string[:size] for string in controls for size in range(1, len(string))})
        self._tails = tuple({string[size:] for string in controls for size in range(1, len(string))})

    def split(self, text: str) -> list[str]:
        """`text` in parts, each a control string or free of them."""
        return [part for part in self._whole.split(text) if part]

    def guarded(self, content: str, guard: str) -> str:
        """`content` with a guard in every control string, and at an end that could become one with its neighbour."""
        if not content:
            return content
        broken = self._first.sub(rf"\1{guard}", content)
        inside = any(content in string for string in self._strings)
        before = guard if inside or content.startswith(self._tails) else ""
        after = guard if inside or content.endswith(self._heads) else ""
        return f"{before}{broken}{after}"


def _absent_from(texts: Sequence[str]) -> Iterator[str]:
    """Characters that occur in none of the texts."""
    used = set().union(*map(set, texts))
    return (character for character in map(chr, chain(*_UNUSUAL)) if character not in used)
