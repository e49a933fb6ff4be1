"""The chat that is open: its branch as it is on disk, and the changes that a user makes to it. Knows no widget.

A chat is made with its first message; until then there is only how it will be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from phi4local.actions.talk import forget_state, start_of
from phi4local.chats import Attachment, Chat, Message, now
from phi4local.history import History
from ui.turn import Place

_TITLE = 60  # characters of the first question
NEW = 0  # the id of a chat that is not on disk yet


class OpenChat:
    """Every method that changes something has put it on disk when it returns (Phi4LocalError)."""

    def __init__(self, history: History, model: str = "") -> None:
        self.history = history
        self.chat = self._fresh = _new(model, "", {})
        self.branch: list[Message] = []

    def begin_with(self, system: str, sampling: Mapping[str, Any]) -> None:
        """How this chat and every new one is talked in at first."""
        self.chat = self._fresh = replace(self._fresh, system=system, sampling=sampling)

    @property
    def is_new(self) -> bool:
        return self.chat.id == NEW

    def start_anew(self) -> None:
        """Another chat, as the first one was begun."""
        self.chat = self._fresh
        self.branch = []

    def open(self, chat: int, message: int | None = None) -> None:
        """A chat where it was left, or on the newest branch through `message`."""
        if message is not None:
            self.history.open_at(chat, self.history.newest_leaf(message))
        found = self.history.chat(chat)
        branch = self.history.branch(found.leaf) if found.leaf is not None else []
        self.chat, self.branch = found, branch

    def ask(self, text: str, attachments: Sequence[Attachment], parent: int | None) -> Message:
        """A question below `parent`, which ends the branch now."""
        return self._add(parent, "user", text, attachments)

    def reply(self, text: str, parent: int | None) -> Message:
        """An answer that the user wrote."""
        return self._add(parent, "assistant", text, ())

    def answered(self, message: Message) -> None:
        """An answer has begun or ended: it is on this branch if its question is."""
        if self.branch and self.branch[-1].id == message.id:
            self.branch[-1] = message
        else:
            self._cut(message.parent)
            self.branch.append(message)

    def ask_again(self, message: int) -> Message | None:
        """The question that a message is or answers becomes the end of the branch; None: there is none."""
        for index in range(self._index(message), -1, -1):
            if self.branch[index].role == "user":
                self.history.open_at(self.chat.id, self.branch[index].id)
                self.branch = self.branch[: index + 1]
                return self.branch[-1]
        return None

    def places(self) -> list[Place]:
        """Which of its versions each message of the branch is."""
        versions = {} if self.is_new else self.history.versions(self.chat.id)
        return [_place(one.id, versions.get(one.parent, [])) for one in self.branch]

    def walk(self, message: int, step: int) -> int | None:
        """Open the version before or after; its id, None where there is none."""
        versions = self.history.siblings(message)
        at = versions.index(message) + step
        if not 0 <= at < len(versions):
            return None
        self.open(self.chat.id, versions[at])
        return versions[at]

    def below(self, message: int) -> int:
        """How many messages go with one that is deleted, on all branches, itself among them."""
        _, messages = self.history.tree(self.chat.id)
        gone = {message}
        for one in messages:
            if one.parent in gone:
                gone.add(one.id)
        return len(gone)

    def delete(self, message: int) -> None:
        """A message and all below it; another version of it is opened, if there is one."""
        others = [one for one in self.history.siblings(message) if one != message]
        self.history.delete_message(message)
        self.open(self.chat.id, others[-1] if others else None)

    def delete_chat(self) -> None:
        """The chat and what the engine has kept of it."""
        self.history.delete_chat(self.chat.id)
        forget_state(self.chat.id)
        self.start_anew()

    @property
    def end(self) -> int | None:
        """The message that the next one follows."""
        return self.branch[-1].id if self.branch else None

    def keep_anew(self) -> None:
        """The open branch as a new chat, after somebody else has deleted it."""
        leaf = self.branch[-1].id if self.branch else None
        kept = self.history.put(replace(self.chat, leaf=leaf), self.branch)
        self.open(kept.id)

    def fork(self) -> None:
        """The open branch as a chat of its own, which is open then."""
        self.open(self.history.copy_chat(self.branch[-1].id).id)

    def rename(self, title: str) -> None:
        if self.is_new:
            self.chat = replace(self.chat, title=title)
            return
        self.history.rename(self.chat.id, title)
        self.chat = self.history.chat(self.chat.id)

    def set(
        self, *, model: str | None = None, system: str | None = None, sampling: Mapping[str, Any] | None = None
    ) -> None:
        """Change how the chat is talked in."""
        if not self.is_new:
            self.history.set_options(self.chat.id, model=model, system=system, sampling=sampling)
            self.chat = self.history.chat(self.chat.id)
            return
        was = self.chat
        self.chat = replace(
            was,
            model=was.model if model is None else model,
            system=was.system if system is None else system,
            sampling=was.sampling if sampling is None else sampling,
        )

    @property
    def start(self) -> int:
        """The index of the first message that the model is told."""
        return start_of(self.chat, self.branch)

    def _add(self, parent: int | None, role: Any, text: str, attachments: Sequence[Attachment]) -> Message:
        if self.is_new:
            today = now()
            title = self.chat.title or " ".join(text.split())[:_TITLE]
            first = Message(1, NEW, None, role, text, "", 0.0, "complete", None, tuple(attachments), today)
            about = replace(self.chat, title=title, created=today, changed=today, leaf=first.id)
            self.open(self.history.put(about, [first]).id)
            return self.branch[-1]
        message = self.history.add(self.chat.id, parent, role, text, attachments)
        self._cut(parent)
        self.branch.append(message)
        return message

    def _cut(self, parent: int | None) -> None:
        self.branch = [] if parent is None else self.branch[: self._index(parent) + 1]

    def _index(self, message: int) -> int:
        return next(index for index, one in enumerate(self.branch) if one.id == message)


def _place(message: int, versions: Sequence[int]) -> Place:
    return Place(versions.index(message) + 1, len(versions)) if message in versions else Place()


def _new(model: str, system: str, sampling: Mapping[str, Any]) -> Chat:
    today = now()
    return Chat(NEW, "", today, today, False, "", model, system, sampling, None)
