"""What is said: messages, and how a model's thinking is told from its answer. Knows no engine and no screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is plain text, whatever it looks like: it never becomes a control token."""

    role: Role
    content: str
