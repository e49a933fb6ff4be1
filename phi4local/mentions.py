"""Files that a message names with an `@`: what can follow the `@` while it is typed, and what it means when sent.

    @notes.txt  @src/main.py  @~/letter.pdf  @/etc/hosts  @"two words.txt"

Looks at names and kinds of files only; `phi4local.documents` reads them.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from phi4local.printing import printable

_ENTRY_LIMIT = 20_000  # of one folder
_MENTION_LIMIT = 1000  # a pasted program may hold more decorators than anybody has files in mind
# Nothing that an e-mail address has in front of its @; a name of other letters may follow one without a blank.
_MENTION = re.compile(r"""(?<![A-Za-z0-9._%+-])@(?:"([^"\n]{1,4096})"|([^\s@"]{1,4096}))""")
_UNQUOTED = re.compile(r'[^\s@"]*')
_NOT_UNICODE = re.compile(r"[\ud800-\udfff]")  # bytes of a name that are no UTF-8
_AFTER_A_NAME = 10  # most characters that can end the sentence instead of the name


def completions(typed: str, folder: Path, limit: int = 20) -> list[str]:
    """What can stand after an `@` of which `typed` is there: paths, at `/` or `~` or else below `folder`.

    Folders end with `/`. What has a blank is quoted, a folder without the closing quote, so that typing goes on.
    """
    quoted = typed.startswith('"')
    before, slash, name = typed.removeprefix('"').rpartition("/")
    before += slash
    home = ["~/"] if (before, name) == ("", "~") else []
    found = (_completion(before, entry, quoted) for entry in _ranked(_expanded(before, folder), name))
    return list(itertools.islice(itertools.chain(home, (one for one in found if one)), limit))


def mentions(text: str, folder: Path) -> list[tuple[int, int, Path]]:
    """Start, end and file of each `@path` and `@"path"` that names a file; the end of a sentence is no part of it."""
    found = []
    for match in itertools.islice(_MENTION.finditer(text), _MENTION_LIMIT):
        for name in [match[1]] if match[1] else _readings(match[2]):
            path = _expanded(name, folder)
            if not name.endswith(("/", "/.")) and _mode(path) == stat.S_IFREG:  # which a Path forgets
                end = match.end() if match[1] else match.start(2) + len(name)
                found.append((match.start(), end, path))
                break
    return found


def _readings(name: str) -> Iterator[str]:
    """A name without blanks, and then without what may be the end of the sentence that it stands in."""
    yield name
    for _ in range(_AFTER_A_NAME):
        if len(name) < 2 or name[-1].isalnum():
            break
        name = name[:-1]
        yield name


def _ranked(folder: Path, name: str) -> list[os.DirEntry[str]]:
    """The entries that can be meant, those that begin with `name` first; a folder that cannot be read has none."""
    wanted = name.casefold()
    try:
        with os.scandir(folder) as entries:
            some = [one for one in itertools.islice(entries, _ENTRY_LIMIT) if wanted in one.name.casefold()]
    except (OSError, ValueError):
        return []
    some = [one for one in some if name.startswith(".") or not one.name.startswith(".")]
    return sorted(some, key=lambda one: (not one.name.casefold().startswith(wanted), one.name.casefold(), one.name))


def _completion(before: str, entry: os.DirEntry[str], quoted: bool) -> str:
    """How the entry is written after an `@`; nothing if it cannot be, or is no file or folder."""
    kind = _mode(Path(entry.path))
    written = before + entry.name
    if kind not in (stat.S_IFDIR, stat.S_IFREG) or not _is_printable(entry.name) or '"' in written or written == "~":
        return ""
    end = "/" if kind == stat.S_IFDIR else ""
    if quoted or not _UNQUOTED.fullmatch(written):
        return f'"{written}{end}' if end else f'"{written}"'
    return written + end


def _mode(path: Path) -> int | None:
    """Of which kind the file is; None where there is none to see."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return None


def _expanded(text: str, folder: Path) -> Path:
    """The path that a user means by `text`."""
    return folder / (os.path.expanduser(text) if text.startswith("~/") else text)  # noqa: PTH111  never raises


def _is_printable(name: str) -> bool:
    """Nothing in it acts on a terminal, and all of it is Unicode."""
    return printable(name, limit=len(name)) == name and not _NOT_UNICODE.search(name)
