"""Chats written to files and read from them: where a path that was typed leads, and failures in the user's words."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from phi4local.chats import Chat
from phi4local.errors import Phi4LocalError, UsageError
from phi4local.exchange import MOST_BYTES, file_name, from_json, to_json, to_markdown
from phi4local.files import atomic_write, read_bounded, writing_to
from phi4local.history import History


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write a chat; `text` makes the file's content."""

    name: str
    ending: str
    text: Callable[[History, int], str]

    def file_name(self, title: str) -> str:
        return file_name(title, self.ending)


def _markdown(history: History, chat: int) -> str:
    """The branch that was open last; where none was, the one that grew last."""
    about, messages = history.tree(chat)
    leaf = about.leaf if about.leaf is not None or not messages else messages[-1].id
    return to_markdown(about, [] if leaf is None else history.branch(leaf))


FORMATS = (
    Format("Markdown, to read: the branch that is open", ".md", _markdown),
    Format("JSON, to import again: all branches", ".json", to_json),
)


def current_folder() -> str:
    """Where a path without a folder leads, for people; nothing where that folder was removed."""
    try:
        return f"In {Path.cwd()}"
    except OSError:
        return ""


def target(typed: str, name: str) -> Path:
    """The file to write; in a folder it gets the name `name` (UsageError)."""
    path = _path(typed)
    try:
        if path.is_dir():
            path = path / name
        if not path.parent.is_dir():  # a folder that was mistyped is not to be made
            raise UsageError(f"No folder `{path.parent}`", hint="Choose a folder that is there, or make it first")
        if path.exists() and not path.is_file():
            raise UsageError(f"`{path}` is not a file", hint="Choose another name")
    except OSError as error:
        raise _failed(path, "reached", error) from None
    return path


def write_chat(history: History, chat: int, form: Format, path: Path) -> None:
    """The file is whole or as it was before (Phi4LocalError)."""
    data = form.text(history, chat).encode(errors="replace")
    try:
        with writing_to(path.parent, len(data)), atomic_write(path) as file:
            file.write(data)
    except OSError as error:
        raise _failed(path, "written", error) from None


def read_chat(history: History, typed: str) -> Chat:
    """A new chat of an exported file (NotFound, FormatError)."""
    path = _path(typed)
    try:
        data = read_bounded(path, MOST_BYTES)
    except OSError as error:
        raise _failed(path, "read", error) from None
    return from_json(history, data)


def _path(typed: str) -> Path:
    if not typed.strip():
        raise UsageError("No path was given", hint="Type a path like `~/chat.json`")
    return Path(os.path.expanduser(typed.strip()))  # noqa: PTH111  Path.expanduser raises for an unknown user


def _failed(path: Path, what: str, error: OSError) -> Phi4LocalError:
    return Phi4LocalError(f"`{path}` cannot be {what}: {error.strerror or error}", hint="Choose another path")
