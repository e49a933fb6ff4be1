"""What is said: messages, and how a model's thinking is told from its answer. Knows no engine and no screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
Kind = Literal["answer", "thinking"]

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is plain text, whatever it looks like: it never becomes a control token."""

    role: Role
    content: str


class ThinkSplitter:
    """Tells thinking from answer in a text that arrives in pieces cut anywhere; the tags are not handed out.

    Only a <think> at the very start (after white space) opens; without its end tag all the rest is thinking.
    """

    __slots__ = ("_held", "_kind")

    def __init__(self, *, thinking: bool = False) -> None:
        self._kind: Kind | None = "thinking" if thinking else None
        self._held = ""

    def feed(self, text: str) -> list[tuple[Kind, str]]:
        """The parts that are certain now; only what may still become a tag is held back."""
        if self._kind == "answer":
            return [("answer", text)] if text else []
        self._held += text
        return self._opening() if self._kind is None else self._thinking()

    def end(self) -> list[tuple[Kind, str]]:
        """What was held back, when nothing more will come."""
        rest, self._held = self._held, ""
        return [(self._kind or "answer", rest)] if rest else []

    def _opening(self) -> list[tuple[Kind, str]]:
        start = self._held.lstrip()
        if start.startswith(_OPEN):
            self._kind, self._held = "thinking", start[len(_OPEN) :]
            return self._thinking()
        if _OPEN.startswith(start):
            return []
        self._kind = "answer"
        return self.end()

    def _thinking(self) -> list[tuple[Kind, str]]:
        thought, tag, answer = self._held.partition(_CLOSE)
        if tag:
            self._kind, self._held = "answer", ""
            parts: tuple[tuple[Kind, str], ...] = (("thinking", thought), ("answer", answer))
            return [part for part in parts if part[1]]
        keep = _tag_start(thought)
        self._held = thought[keep:]
        return [("thinking", thought[:keep])] if keep else []


def _tag_start(text: str) -> int:
    """Where the longest end of `text` begins that may become the end tag."""
    for size in range(min(len(text), len(_CLOSE) - 1), 0, -1):
        if _CLOSE.startswith(text[-size:]):
            return len(text) - size
    return len(text)
