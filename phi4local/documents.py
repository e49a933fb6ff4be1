"""Files that are attached to a message: their text, and how the model is shown it.

Every file is distrusted: only regular files are opened, reads and texts are bounded, and a PDF is parsed by a process
of its own (`phi4local.pdf`). Whoever reads one waits for it. Knows no chat and no engine.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from phi4local.errors import FormatError, InsufficientResources, NotFound, Phi4LocalError, UsageError
from phi4local.printing import printable
from phi4local.units import file_size

MOST_TEXT_BYTES, MOST_PDF_BYTES = 16_000_000, 64_000_000
# More than any model of the family takes in, and in JSON never more than a message may hold (`chats.MOST_TEXT`).
MOST_CHARACTERS = 2_000_000
_PAGES_SHARE = 0.75  # of the time that a PDF has; then the pages that were read until then have to do
_ANSWER_BYTES = 12 * MOST_CHARACTERS + 1000  # JSON writes a character in at most 12
_PDF_READER = Path(__file__).with_name("pdf.py")  # by its path, so that no other package of that name is run

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins with the mark of utf-16-le
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NO_TEXT = re.compile(r"[\x01-\x07\x0b\x0e-\x1a\x1c-\x1f\x7f-\x9f]")  # without what terminals' logs are full of
_MOST_NO_TEXT = 0.05  # of random bytes it is 12 %

_KINDS = {
    stat.S_IFDIR: ("a folder", "Name a file in it"),
    stat.S_IFIFO: ("a pipe", "Write what comes out of it to a file"),
    stat.S_IFSOCK: ("a socket", ""),
    stat.S_IFCHR: ("a device", ""),
    stat.S_IFBLK: ("a device", ""),
}
_TROUBLES: dict[int | None, tuple[type[Phi4LocalError], str, str]] = {
    errno.ENOENT: (NotFound, "There is no file `{}`", ""),
    errno.ENOTDIR: (NotFound, "There is no file `{}`", ""),
    errno.ELOOP: (NotFound, "`{}` is a link that leads back to itself", ""),
    errno.ENAMETOOLONG: (NotFound, "There is no file `{}`: the name is too long for one", ""),
    errno.EACCES: (UsageError, "You may not read `{}`", "Change its permissions, or copy it as somebody who may"),
    errno.EPERM: (UsageError, "You may not read `{}`", "Change its permissions, or copy it as somebody who may"),
}
_PDF_PROBLEMS: dict[str, tuple[type[Phi4LocalError], str, str]] = {
    "encrypted": (FormatError, "`{}` is encrypted", "Print it to a new PDF and attach that one"),
    "damaged": (FormatError, "`{}` is damaged, or no PDF", "Open it in a viewer and print it to a new PDF"),
    "memory": (InsufficientResources, "`{}` takes more memory to read than a PDF should", "Attach its text instead"),
    "overdue": (FormatError, "Reading `{}` takes too long", "Attach the pages that matter, or their text"),
    "textless": (
        FormatError,
        "`{}` holds no text that can be read: its pages may be pictures",
        "Run text recognition (OCR) over it first",
    ),
    "died": (FormatError, "`{}` cannot be read: the program that reads PDFs failed", "Attach its text instead"),
}

_NOT_UNICODE = re.compile(r"[\ud800-\udfff]")
_NAME_CHARACTERS = 255  # what a file system allows at most


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read; `notes` are sentences about what is not as the file has it."""

    name: str
    bytes: int
    text: str
    pages: int | None = None
    notes: tuple[str, ...] = ()


class Attached(Protocol):
    """What the model is shown of a file: a `chats.Attachment` or a Document."""

    @property
    def name(self) -> str: ...
    @property
    def text(self) -> str: ...


def read_document(path: Path, seconds: float = 20.0) -> Document:
    """The text of a file, or of a PDF within `seconds` (NotFound, UsageError, FormatError, InsufficientResources)."""
    shown = _shown(path)
    name = _shown(path.name)
    with _opened(path, shown) as file:
        size = os.fstat(file.fileno()).st_size
        data = _read(file, len(b"%PDF-"), shown)
        is_pdf = size > 0 and (data == b"%PDF-" or path.suffix.lower() == ".pdf")
        limit = MOST_PDF_BYTES if is_pdf else MOST_TEXT_BYTES
        if size > limit:
            raise _too_large(shown, limit)
        if is_pdf:
            return _pdf(file, Document(name, size, ""), shown, seconds)
        data += _read(file, limit + 1 - len(data), shown)  # some files tell no size and hold much, as in /proc
        if len(data) > limit:
            raise _too_large(shown, limit)
    return _text(data, name, shown)


def as_prompt(text: str, attachments: Sequence[Attached]) -> str:
    """The user's text as the model gets it: before it, each file as `File: NAME` and a Markdown code block.

    The block's fence is longer than any run of backticks in the file, so nothing in the file can end it.
    """
    return "".join(_block(one) for one in attachments) + text


@contextlib.contextmanager
def _opened(path: Path, shown: str) -> Iterator[io.FileIO]:
    """The regular file at `path`, unbuffered; nothing here waits for another process."""
    try:
        _check_kind(path.stat().st_mode, shown)  # a device may act on being opened
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise _trouble(error, path, shown) from None
    except ValueError:  # a NUL, or half of a surrogate pair
        raise NotFound(f"There is no file `{shown}`") from None
    with io.FileIO(fd, "rb") as file:
        _check_kind(os.fstat(fd).st_mode, shown)
        yield file


def _check_kind(mode: int, shown: str) -> None:
    if not stat.S_ISREG(mode):
        kind, hint = _KINDS.get(stat.S_IFMT(mode), ("something else", ""))
        raise UsageError(f"`{shown}` is {kind}, not a file", hint=hint)


def _trouble(error: OSError, path: Path, shown: str) -> Phi4LocalError:
    if error.errno == errno.ENOENT and path.is_symlink():
        return NotFound(f"`{shown}` is a link to a file that does not exist")
    kind, words, hint = _TROUBLES.get(error.errno, (FormatError, f"`{{}}` cannot be read: {error.strerror}", ""))
    return kind(words.format(shown), hint=hint)


def _too_large(shown: str, limit_bytes: int) -> UsageError:
    words = f"`{shown}` is larger than {file_size(limit_bytes)}, more than any model takes in"
    return UsageError(words, hint="Attach the part that matters")


def _read(file: io.FileIO, limit_bytes: int, shown: str) -> bytes:
    """What is there, up to `limit_bytes`."""
    pieces: list[bytes] = []
    while limit_bytes > 0:
        try:
            piece = file.read(min(limit_bytes, 1 << 20))
        except OSError as error:
            raise FormatError(f"`{shown}` cannot be read: {error.strerror}") from None
        if not piece:  # None where a read would have to wait
            break
        pieces.append(piece)
        limit_bytes -= len(piece)
    return b"".join(pieces)


def _text(data: bytes, name: str, shown: str) -> Document:
    """The document that a text file's bytes are."""
    decoded, note = _decoded(data)
    odd = len(_NO_TEXT.findall(decoded)) + (decoded.count("\ufffd") if note else 0)
    if "\0" in decoded or odd > _MOST_NO_TEXT * len(decoded):
        raise FormatError(f"`{shown}` is not a text", hint="Text, program code and PDFs can be attached")
    text, cut = _bounded(_clean(decoded))
    if not text.strip():
        raise UsageError(f"`{shown}` is empty")
    return Document(name, len(data), text, notes=tuple(filter(None, (note, cut))))


def _decoded(data: bytes) -> tuple[str, str]:
    """The text as its mark says or as UTF-8, else as Windows-1252; and a note about what that cost."""
    mark, encoding = next((one for one in _MARKS if data.startswith(one[0])), (b"", "utf-8"))
    data = data.removeprefix(mark)
    with contextlib.suppress(UnicodeDecodeError):
        return data.decode(encoding), ""
    text = data.decode(encoding, "replace")
    bad = text.count("\ufffd")
    if mark or bad <= len(re.findall(r"[^\x00-\x7f\ufffd]", text)):  # a UTF-8 file with a few bad bytes
        return text, f"Damaged characters that were replaced: {bad}"
    return data.decode("cp1252", "replace"), "Read as Windows-1252, as it is not UTF-8"


def _clean(text: str) -> str:
    """Line breaks as `\\n`, page breaks too, and U+FFFD for every other control character."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n"))


def _bounded(text: str) -> tuple[str, str]:
    if len(text) <= MOST_CHARACTERS:
        return text, ""
    return text[:MOST_CHARACTERS], f"Only the first {MOST_CHARACTERS:,} of {len(text):,} characters were taken"


def _pdf(file: io.FileIO, known: Document, shown: str, seconds: float) -> Document:
    """The document that a PDF is, as the process says that reads it."""
    file.seek(0)
    answer = _ask_reader(file, seconds)
    problem = answer.get("problem", "" if answer.get("text") else "textless")
    if problem:
        kind, words, hint = _PDF_PROBLEMS[problem]
        raise kind(words.format(shown), hint=hint)
    pages, taken, failed = answer["pages"], answer["taken"], answer["failed"]
    notes = (
        f"Only the first {taken} of {pages} pages were taken" if taken < pages else "",
        f"Only the first {MOST_CHARACTERS:,} characters were taken" if answer["cut"] else "",
        f"{failed} of {taken} pages could not be read" if failed else "",
    )
    return replace(known, text=_clean(answer["text"]), pages=pages, notes=tuple(filter(None, notes)))


def _ask_reader(file: io.FileIO, seconds: float) -> dict[str, Any]:
    """What `phi4local.pdf` answers; `problem` where it does not. It inherits the open file, not a name."""
    limits = (MOST_PDF_BYTES, MOST_CHARACTERS, _PAGES_SHARE * seconds)
    command = (sys.executable, "-P", "-W", "ignore", str(_PDF_READER), *map(str, limits))
    overdue = threading.Event()
    try:
        answer = json.loads(_output(command, file, seconds, overdue))
    except (OSError, ValueError):
        return {"problem": "overdue" if overdue.is_set() else "died"}
    return answer if isinstance(answer, dict) else {"problem": "died"}


def _output(command: Sequence[str], file: io.FileIO, seconds: float, overdue: threading.Event) -> bytes:
    """What the command prints about the file; it is ended, and `overdue` set, after `seconds`."""
    group = None if sys.platform == "win32" else 0  # Ctrl-C reaches this process alone
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=file, stdout=pipe, stderr=nothing, process_group=group) as child:

        def end() -> None:
            overdue.set()
            child.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        try:
            timer.start()
            assert child.stdout is not None
            return child.stdout.read(_ANSWER_BYTES)
        finally:
            timer.cancel()
            child.kill()


def _block(one: Attached) -> str:
    longest = max(map(len, re.findall("`+", one.text)), default=0)
    fence = "`" * max(3, longest + 1)
    end = "" if one.text.endswith("\n") else "\n"
    return f"File: {_shown(one.name)}\n{fence}\n{one.text}{end}{fence}\n\n"


def _shown(text: str | Path) -> str:
    """A name as one line of printable text; bytes that are none become U+FFFD."""
    return printable(_NOT_UNICODE.sub("\ufffd", str(text)), limit=_NAME_CHARACTERS)
