"""What the model thread is asked for and what it tells: a choice, and a message for each fact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message as Fact

from phi4local.errors import Phi4LocalError

if TYPE_CHECKING:
    from phi4local.actions import talk
    from phi4local.actions.chat import Opened
    from phi4local.actions.longer import Longer
    from phi4local.chats import Attachment, Message


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model to open: a name or a path (None: the best of the newest), and the conversation that it must hold."""

    name: str | None = None
    context_tokens: int | None = None
    kv_type: str = "f16"


@dataclass
class Loading(Fact):
    choice: ModelChoice


@dataclass
class Loaded(Fact):
    opened: Opened
    choice: ModelChoice


@dataclass
class LoadFailed(Fact):
    """`kept`: the model that is open all the same."""

    error: Phi4LocalError
    choice: ModelChoice
    kept: Opened | None


@dataclass
class Counted(Fact):
    """How many tokens a branch takes; None: it cannot be said."""

    leaf: int | None
    tokens: int | None


@dataclass
class AttachmentCounted(Fact):
    attachment: Attachment
    tokens: int


@dataclass
class Refused(Fact):
    """The question was not asked."""

    question: Message
    error: Phi4LocalError


@dataclass
class Begun(Fact):
    message: Message
    prompt_tokens: int


@dataclass
class Delta(Fact):
    """What was said since the last one; `tokens`: about how many there are in all, one for each piece."""

    message: int
    text: str
    thinking: str
    tokens: int


@dataclass
class Unsaved(Fact):
    error: Phi4LocalError


@dataclass
class Ended(Fact):
    """The answer as it stays: exactly one follows each `Begun`."""

    answered: talk.Answered


@dataclass
class Summarised(Fact):
    """What stands for the messages before `start`; an error instead of a text."""

    chat: int
    start: int
    text: str
    error: Phi4LocalError | None


@dataclass
class DropCounted(Fact):
    """With which message a shortened conversation would begin, and how many tokens it would take.

    `asked`: the number of the request; an answer to an earlier one may come late.
    """

    asked: int
    index: int
    tokens: int


@dataclass
class LongerFound(Fact):
    asked: int
    longer: Longer | str


@dataclass
class Bug(Fact):
    """What nobody expected: to be raised where it is seen."""

    error: BaseException
