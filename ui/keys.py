"""Which keys do what: gathered from the bindings of every screen and widget, and changed by the user's `keys.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from textual.app import App
from textual.binding import Binding, BindingType
from textual.keys import format_key

from phi4local.errors import FormatError, NotFound
from phi4local.files import read_bounded
from phi4local.settings import home_folder

_LIMIT_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Key:
    """A line of the help: `id` is what `keys.toml` calls it, `keys` are the ones that do it now."""

    id: str
    keys: str
    tooltip: str


def keys_file() -> Path:
    """The user's own keys; it need not exist."""
    return home_folder() / "keys.toml"


def sections() -> dict[str, type]:
    """The places whose keys can be changed, in the order of the help."""
    from ui.app import ChatApp
    from ui.attachments import Attachments
    from ui.build_list import BuildList
    from ui.chat import ChatScreen
    from ui.chats import ChatsScreen
    from ui.context import ContextScreen
    from ui.models import ModelsScreen
    from ui.offers import FolderForm, Offer
    from ui.prompt import Prompt
    from ui.settings import SettingsScreen
    from ui.status import StatusPanel
    from ui.transcript import Transcript

    return {
        "Everywhere": ChatApp,
        "Chat": ChatScreen,
        "Question": Prompt,
        "Messages": Transcript,
        "Attached files": Attachments,
        "Models": ModelsScreen,
        "Builds": BuildList,
        "Getting a build": Offer,
        "A build from a folder": FolderForm,
        "All chats": ChatsScreen,
        "Settings of a chat": SettingsScreen,
        "A full context": ContextScreen,
        "Status": StatusPanel,
    }


def keys_of(place: type, changed: Mapping[str, str]) -> list[Key]:
    """What the keys of a place do."""
    found = []
    for binding in bindings_of(place):
        if binding.id and binding.tooltip:
            keys = changed.get(binding.id, binding.key)
            found.append(
                Key(binding.id, ", ".join(format_key(key.strip()) for key in keys.split(",")), binding.tooltip)
            )
    return found


def bindings_of(place: type) -> Iterator[Binding]:
    """The bindings that a class itself declares."""
    declared: list[BindingType] = vars(place).get("BINDINGS", [])
    return (binding for binding in declared if isinstance(binding, Binding))


def read_keys(path: Path) -> dict[str, str]:
    """The user's keys by the name of what they do; none without a file (FormatError)."""
    try:
        table = tomllib.loads(read_bounded(path, _LIMIT_BYTES).decode())
    except NotFound:
        return {}
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"is not TOML: {error}") from None
    known = {binding.id for place in sections().values() for binding in bindings_of(place)}
    for name, keys in table.items():
        if name not in known:
            raise _wrong(path, f"names `{name}`, which nothing is called")
        if not isinstance(keys, str) or not keys.strip():
            raise _wrong(path, f"gives `{name}` no key")
    return table


def _wrong(path: Path, fact: str) -> FormatError:
    return FormatError(f"`{path}` {fact}", hint="F1 shows what there is; the keys stay as they were")


def use_keys(app: App[None]) -> dict[str, str]:
    """Let the user's keys do what they say (FormatError)."""
    keys = read_keys(keys_file())
    app.set_keymap(keys)
    return keys
