"""The list of all chats with its search box: what is listed, and which chat the cursor is on. It changes no chat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Input, Label

from phi4local.chats import Hit, Summary
from phi4local.history import History
from ui.dialogs import Line, shown
from ui.errands import Errands
from ui.listing import ChatRow, HitRow, Note, chat_rows, counted, hit_rows, with_title
from ui.rows import Row, Rows

_PAUSE_SECONDS = 0.15  # without a key, before the messages are searched
_MOST_HITS = 200
_MOST_TITLES = 20


@dataclass(frozen=True, slots=True)
class Found:
    """What a text found: chats by their titles, and messages."""

    text: str
    titles: Sequence[Summary] = ()
    hits: Sequence[Hit] = ()


_NOTHING = Found("")


class SearchBox(Line):
    """Where the text to be found is typed; letters never reach the keys of the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Open", id="search.open", tooltip="Go on with the chat that the cursor is on"),
    ]


class Finder(Vertical):
    """All chats, those of a folder, or what the text in the search box finds; `errands` reads the history."""

    class Opened(Message):
        """Enter or a double click on the row that the cursor is on."""

    def __init__(self, history: History, errands: Errands, current: int | None) -> None:
        super().__init__()
        self.folder: str | None = None  # the one that is listed; None: all chats
        self._history = history
        self._errands = errands
        self._current = current
        self._chats: dict[int, Summary] = {}
        self._text = ""  # what is searched for; read by the thread, which leaves out what is outdated
        self._found = _NOTHING
        self._pause: Timer | None = None

    def compose(self) -> ComposeResult:
        with Horizontal(id="about"):
            yield Label("Chats", id="name")
            yield Label(id="count", markup=False)
        yield SearchBox(placeholder="Search in all messages and titles", compact=True)
        yield Rows()

    @property
    def rows(self) -> Rows:
        return self.query_one(Rows)

    @property
    def box(self) -> SearchBox:
        return self.query_one(SearchBox)

    @property
    def place(self) -> tuple[int, int | None] | None:
        """The chat and the found message under the cursor."""
        row = self.rows.row
        return (row.chat, row.message) if isinstance(row, ChatRow | HitRow) else None

    @property
    def here(self) -> Summary | None:
        """The chat under the cursor."""
        return None if self.place is None else self._chats.get(self.place[0])

    def folders(self) -> list[tuple[str, int]]:
        """Every folder by name and how many chats it has; the one without a name has the rest."""
        return sorted(Counter(one.chat.folder for one in self._chats.values()).items())

    def load(self, chat: int | None = None) -> None:
        """Read the chats anew; the cursor goes to `chat`, or stays where it is."""
        self._errands.run(self._history.chats, partial(self._loaded, chat))

    def filter(self, folder: str | None) -> None:
        """List the chats of one folder or all."""
        self.folder = folder
        self.rows.focus()
        self._forget()

    def leave(self) -> bool:
        """Back from a search to the list; False where there was none."""
        self.rows.focus()
        if not self.box.value:
            return False
        self._forget()
        return True

    def _forget(self) -> None:
        """List chats again, not what was found."""
        if self._pause is not None:
            self._pause.stop()
        self.box.value = self._text = ""
        self._found = _NOTHING
        self._list(self._current)

    def open(self) -> None:
        """What Enter does: open a row, but never one of an outdated search."""
        if self._text != self._found.text:
            self._search()
        elif self.place is not None:
            self.post_message(self.Opened())

    @on(Input.Submitted)
    @on(Rows.Chosen)
    def _entered(self) -> None:
        self.open()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        text = event.value.strip()
        if text == self._text:
            return
        if not text:
            self._forget()
            return
        self._text = text
        if self._pause is not None:
            self._pause.stop()
        self._pause = self.set_timer(_PAUSE_SECONDS, self._search)

    def _search(self) -> None:
        if self._pause is not None:
            self._pause.stop()
        self._errands.run(partial(self._find, self._text, list(self._chats.values())), self._show)

    def _find(self, text: str, chats: Sequence[Summary]) -> Found:
        """In the errands' thread; what is no longer wanted is not looked for."""
        if text != self._text:
            return _NOTHING
        return Found(text, with_title(chats, text)[:_MOST_TITLES], self._history.search(text, _MOST_HITS))

    def _show(self, found: Found) -> None:
        if found.text and found.text == self._text:
            is_again = found.text == self._found.text
            self._found = found
            self._list(None, stays=is_again)

    def _loaded(self, chat: int | None, summaries: Sequence[Summary]) -> None:
        self._chats = {one.chat.id: one for one in summaries}
        if self.folder not in {one.chat.folder for one in summaries}:
            self.folder = None
        if self._text:
            self._search()
        else:
            self._list(chat, stays=chat is None)

    def _list(self, chat: int | None, *, stays: bool = False) -> None:
        """Show what there is, with the cursor on a chat, where it was, or on the first row."""
        now = datetime.now().astimezone()
        rows: list[Row] = []
        if self._found.text:
            rows += chat_rows(self._found.titles, self._current, now)
            rows += hit_rows(self._found.hits, now, are_first=not rows)
        else:
            listed = (one for one in self._chats.values() if self.folder in (None, one.chat.folder))
            rows += chat_rows(listed, self._current, now)
        place = self.place if stays else None if chat is None else (chat, None)
        cursor = self.rows.cursor if stays else None
        self.rows.show(rows or [Note(self._nothing())], _index(rows, place, cursor or 0))
        self.query_one("#count", Label).update(shown(self._count(rows)))

    def _nothing(self) -> str:
        return "Nothing found" if self._found.text else "No chats yet: n begins one"

    def _count(self, rows: Sequence[Row]) -> str:
        """What is listed, in a few words."""
        found, total = self._found, len(self._chats)
        if found.text:
            newest = "the newest " if len(found.hits) == _MOST_HITS else ""
            chats = len({hit.chat for hit in found.hits})
            messages = f"{newest}{counted(len(found.hits), 'message')} in {counted(chats, 'chat')}"
            parts = (counted(len(found.titles), "title"), messages)
            return " and ".join(part for part in parts if not part.startswith("0 ")) or "nothing found"
        if self.folder is None:
            return counted(total, "chat")
        return f"{len(rows):,} of {counted(total, 'chat')}, {_in_folder(self.folder)}"


def _in_folder(folder: str) -> str:
    return f"in “{folder}”" if folder else "in no folder"


def _index(rows: Sequence[Row], place: tuple[int, int | None] | None, otherwise: int) -> int:
    """Where that chat or found message is listed now."""
    for index, row in enumerate(rows):
        if isinstance(row, ChatRow | HitRow) and (row.chat, row.message) == place:
            return index
    return otherwise
