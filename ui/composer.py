"""Where a question is made: its text, the files that go along, and the files that `@` may mean.

What is asked for is handed on as `Asked` once every file is read; the text stays until its owner says `sent`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import OptionList

from phi4local.chats import Attachment
from phi4local.documents import read_document
from phi4local.errors import Phi4LocalError
from phi4local.mentions import completions, mentions
from ui import told
from ui.attachments import Attachments, File
from ui.prompt import Prompt, show_choices


class Composer(Vertical):
    """The prompt and what belongs to it."""

    @dataclass
    class Asked(Message):
        """A question is whole; `typed` is the text as it stands in the prompt."""

        typed: str
        files: tuple[Attachment, ...]

    @dataclass
    class Uncounted(Message):
        """Somebody should count what a file costs, and say it with `counted`."""

        file: Attachment

    @dataclass
    class Trouble(Message):
        """A file cannot be attached, or something is to be known about one that was."""

        title: str
        text: str
        failed: bool

    @dataclass
    class _Read(Message):
        """A file was read, or it cannot be."""

        source: object
        found: Attachment | Phi4LocalError
        notes: tuple[str, ...]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._files: dict[object, File] = {}  # by the path that the text names, or by a number for those given by hand
        self._declined: set[Path] = set()  # named in the text, and taken out again
        self._given = 0
        self._asking: str | None = None  # the text that goes as soon as its files are read

    def compose(self) -> ComposeResult:
        files = OptionList(id="files", compact=True, markup=False)
        files.can_focus = False
        yield files
        yield Attachments(id="attachments")
        yield Prompt(id="prompt")

    def on_mount(self) -> None:
        self.prompt.choices = self.query_one("#files", OptionList)
        self.prompt.choices.display = False
        self._show()

    @property
    def prompt(self) -> Prompt:
        return self.query_one(Prompt)

    # ---- the text ----

    def begin(self, text: str, files: Sequence[Attachment], title: str = "") -> None:
        """Start from this text and these files; `title` says what for."""
        self._files, self._declined, self._asking = {}, set(), None
        for file in files:
            self._give(file)
        self.prompt.border_title = title
        self.prompt.take(text)
        self._show()

    def sent(self, typed: str) -> None:
        """The question is on disk."""
        self.prompt.border_title = ""
        self._files, self._declined, self._asking = {}, set(), None
        self.prompt.sent(typed)
        self._show()

    def give_up_asking(self) -> bool:
        """Do not ask when the files are read; whether that was to be done."""
        waited, self._asking = self._asking is not None, None
        return waited

    def close_choices(self) -> bool:
        """Take the list of files away; whether there was one."""
        return self.prompt.close_choices()

    @property
    def can_be_stopped(self) -> bool:
        """Whether Esc has something to do here."""
        return self._asking is not None or self.prompt.is_choosing

    @on(Prompt.Sent)
    def _send(self, event: Prompt.Sent) -> None:
        event.stop()
        self._follow(event.text)
        self._asking = event.text
        self._ask_if_read()

    def _ask_if_read(self) -> None:
        files = [file.attachment for file in self._files.values()]
        if self._asking is not None and all(files):
            typed, self._asking = self._asking, None
            if typed.strip() or files:
                self.post_message(self.Asked(typed, tuple(one for one in files if one)))

    @on(Prompt.Typing)
    def _typed(self, event: Prompt.Typing) -> None:
        event.stop()
        if self._asking is not None and self.prompt.text != self._asking:
            self._asking = None  # another text than the one that was to go
        here = current_folder()
        paths = completions(event.mention, here) if event.mention is not None and here else []
        assert self.prompt.choices is not None
        show_choices(self.prompt.choices, paths, here)
        if event.mention is None:
            self._follow(self.prompt.text)

    @on(OptionList.OptionSelected, "#files")
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.prompt.write_mention(str(event.option.id))
        self.prompt.focus()

    # ---- the files ----

    def attach(self, attachment: Attachment) -> None:
        """A text that is a file of its own."""
        self._give(attachment)
        self._show()

    def attach_path(self, path: Path) -> None:
        """A file that the user chose."""
        self._given += 1
        self._read(self._given, path)

    def counted(self, file: Attachment, tokens: int) -> None:
        """What a file costs is known."""
        for source, one in self._files.items():
            if one.attachment is file:
                self._files[source] = File(one.name, replace(file, tokens=tokens))
        self._show()

    def _give(self, attachment: Attachment) -> None:
        self._given += 1
        self._files[self._given] = File(attachment.name, attachment)
        if not attachment.tokens:
            self.post_message(self.Uncounted(attachment))

    def _follow(self, text: str) -> None:
        """Read the files that the text names now, and let go of those that it no longer names."""
        here = current_folder()
        named = {path for _, _, path in mentions(text, here) if path.is_file()} if here and "@" in text else set()
        for source in [one for one in self._files if isinstance(one, Path) and one not in named]:
            del self._files[source]
        self._declined &= named
        by_hand = {file.name for source, file in self._files.items() if not isinstance(source, Path)}
        for path in sorted(named - self._declined - self._files.keys()):
            if path.name not in by_hand:
                self._read(path, path)
        self._show()

    def _read(self, source: object, path: Path) -> None:
        """Read a file without keeping the screen waiting; a PDF may take seconds."""
        self._files[source] = File(path.name, None)
        self._show()
        threading.Thread(target=self._read_now, args=(source, path), daemon=True).start()

    def _read_now(self, source: object, path: Path) -> None:
        try:
            document = read_document(path)
        except Phi4LocalError as error:
            self.post_message(self._Read(source, error, ()))
        except BaseException as error:  # noqa: BLE001  it is raised again in the screen's thread
            self.post_message(told.Bug(error))
        else:
            attachment = Attachment(document.name, document.bytes, 0, document.text)
            self.post_message(self._Read(source, attachment, document.notes))

    @on(_Read)
    def _was_read(self, event: _Read) -> None:
        if event.source not in self._files:
            return  # the text no longer names it
        if isinstance(event.found, Phi4LocalError):
            del self._files[event.source]
            if isinstance(event.source, Path):
                self._declined.add(event.source)
            self._asking = None  # the question may make no sense without it
            hint = f"\n{event.found.hint}" if event.found.hint else ""
            self.post_message(self.Trouble("Not attached", f"{event.found.message}{hint}", failed=True))
        else:
            self._files[event.source] = File(event.found.name, event.found)
            self.post_message(self.Uncounted(event.found))
            for note in event.notes:
                self.post_message(self.Trouble(event.found.name, note, failed=False))
        self._show()
        self._ask_if_read()

    @on(Attachments.Removed)
    def _removed(self, event: Attachments.Removed) -> None:
        event.stop()
        source = list(self._files)[event.index]
        del self._files[source]
        if isinstance(source, Path):
            self._declined.add(source)
        self._show()
        if not self._files:
            self.prompt.focus()

    @on(Prompt.Pasted)
    def _pasted(self, event: Prompt.Pasted) -> None:
        event.stop()
        self.attach(Attachment("pasted text", len(event.text.encode(errors="replace")), 0, event.text))

    def _show(self) -> None:
        if self.is_mounted:
            self.query_one(Attachments).show(self._files.values())

    @property
    def files(self) -> list[Attachment]:
        """What was read."""
        return list(self._attached())

    def _attached(self) -> Iterator[Attachment]:
        return (file.attachment for file in self._files.values() if file.attachment)


def current_folder() -> Path | None:
    """Where the program was started; None where that folder is gone."""
    try:
        return Path.cwd()
    except OSError:
        return None
