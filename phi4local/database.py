"""The file that chats are kept in: its tables, its opening, its transactions, and its failures in the user's words.

The file is distrusted: another program's database, a newer version and damage are FormatErrors that name the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from phi4local.errors import FormatError, Phi4LocalError, UsageError
from phi4local.files import disk_full, sync_folder

_WAIT_SECONDS = 5.0
_WAL_BYTES = 4_000_000  # what a write may need on disk beside its own text
_APPLICATION = 0x70346C63  # "p4lc" in the file's header

_MIGRATIONS = (
    (
        """CREATE TABLE chat (
            id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT NOT NULL, created TEXT NOT NULL, changed TEXT NOT NULL,
            pinned INTEGER NOT NULL, folder TEXT NOT NULL, model TEXT NOT NULL, system TEXT NOT NULL,
            sampling TEXT NOT NULL, leaf INTEGER REFERENCES message)""",
        # The long values come last: what is before them is read without them.
        """CREATE TABLE message (
            id INTEGER PRIMARY KEY AUTOINCREMENT, chat INTEGER NOT NULL REFERENCES chat,
            parent INTEGER REFERENCES message CHECK (parent < id), role TEXT NOT NULL, state TEXT NOT NULL,
            created TEXT NOT NULL, thinking_seconds REAL NOT NULL, stats TEXT, indexed INTEGER NOT NULL,
            text TEXT NOT NULL, thinking TEXT NOT NULL, attachments TEXT NOT NULL)""",
        "CREATE INDEX chat_leaf ON chat (leaf)",
        "CREATE INDEX message_tree ON message (chat, parent)",
        "CREATE INDEX message_parent ON message (parent)",
        "CREATE INDEX message_unindexed ON message (id) WHERE NOT indexed",
        """CREATE VIRTUAL TABLE words USING fts5(
            text, content=message, content_rowid=id, tokenize='unicode61 remove_diacritics 2', prefix='1')""",
        """CREATE TRIGGER word_in AFTER INSERT ON message WHEN new.indexed BEGIN
            INSERT INTO words (rowid, text) VALUES (new.id, new.text); END""",
        """CREATE TRIGGER word_out AFTER DELETE ON message WHEN old.indexed BEGIN
            INSERT INTO words (words, rowid, text) VALUES ('delete', old.id, old.text); END""",
        """CREATE TRIGGER word_again AFTER UPDATE OF text, indexed ON message BEGIN
            INSERT INTO words (words, rowid, text) SELECT 'delete', old.id, old.text WHERE old.indexed;
            INSERT INTO words (rowid, text) SELECT new.id, new.text WHERE new.indexed; END""",
        f"PRAGMA application_id = {_APPLICATION}",
    ),
)


class Database:
    """The open file with its one connection; any thread may begin a transaction, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with _explained(path):
            _create(path)
            self._db = sqlite3.connect(path, _WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def reading(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return self._transaction("BEGIN")

    def writing(self, size: int = 0) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """`size`: about how many bytes will be written, for the message when there is no room."""
        # IMMEDIATE waits for another writer now; a reader that wants to write later would be refused at once.
        return self._transaction("BEGIN IMMEDIATE", size)

    @contextlib.contextmanager
    def _transaction(self, begin: str, size: int = 0) -> Iterator[sqlite3.Connection]:
        with self._lock, _explained(self.path, size):
            self._db.execute(begin)
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _open(self) -> None:
        """Settings, then tables; that the file cannot be written is found here and not at the first message."""
        with _explained(self.path):
            # A flipped byte in a text costs that character, not the chat.
            self._db.text_factory = lambda data: data.decode("utf-8", "replace")
            self._db.execute("PRAGMA cell_size_check = ON")
            self._version()
            _write_ahead(self._db)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA fullfsync = ON")  # macOS: a plain fsync stops at the drive's own memory
            self._db.execute(f"PRAGMA journal_size_limit = {2 * _WAL_BYTES}")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute(
                "PRAGMA cache_size = -16000"
            )  # KiB: the list of all chats touches more than the usual 2 MB
        with self.writing() as db:
            version = self._version()
            for step in (step for steps in _MIGRATIONS[version:] for step in steps):
                db.execute(step)
            if version < len(_MIGRATIONS):
                db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    def _version(self) -> int:
        """Which migrations the file has had (FormatError where it is not ours or newer than this program)."""
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        owner = self._db.execute("PRAGMA application_id").fetchone()[0]
        tables = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if (owner, bool(tables), version > 0) not in ((_APPLICATION, True, True), (0, False, False)):
            raise FormatError(f"`{self.path}` is no chat history", hint=_move_away(self.path))
        if version > len(_MIGRATIONS):
            raise FormatError(
                f"The chats in `{self.path}` were kept by a newer phi4local",
                hint="Update phi4local, or move the file away to begin without chats",
            )
        return version


def _create(path: Path) -> None:
    """An empty file where there is none; chats are for nobody else to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise FormatError(f"`{path}` is not a file", hint="Move it away")
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        sync_folder(path.parent)


def _write_ahead(db: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; where two processes do that at once, SQLite refuses one without waiting."""
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


@contextlib.contextmanager
def _explained(path: Path, size: int = 0) -> Iterator[None]:
    """Translate what SQLite and the system raise; a wrong call of ours (ProgrammingError) keeps its traceback."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        raise _explanation(path, error, size) from None
    except UnicodeDecodeError:  # a damaged name within SQLite's own message
        raise _damaged(path, "unreadable names") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise disk_full(_existing(path), size + _WAL_BYTES) from None
        raise _unwritable(path, error.strerror or str(error)) from None


def _explanation(path: Path, error: sqlite3.DatabaseError, size: int) -> Phi4LocalError:
    """What is not listed comes from a file whose tables or values are not as they were written."""
    match _code(error):
        case sqlite3.SQLITE_FULL:
            return disk_full(path.parent, size + _WAL_BYTES)
        case sqlite3.SQLITE_IOERR:
            return _io_error(path, error, size)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return UsageError(
                f"Another program has held `{path}` for more than {_WAIT_SECONDS:.0f} s",
                hint="Close the other phi4local, or whatever else has opened the file, and try again",
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return _unwritable(path, str(error))
    if "no such module" in str(error):
        return Phi4LocalError(
            "This Python's SQLite cannot search texts (FTS5 is missing)", hint="Use the Python of python.org or of uv"
        )
    return _damaged(path, str(error))


def _io_error(path: Path, error: sqlite3.DatabaseError, size: int) -> Phi4LocalError:
    """Room for the log's index is asked for by a call whose failure SQLite does not call a full disk."""
    if shutil.disk_usage(path.parent).free < size + _WAL_BYTES:
        return disk_full(path.parent, size + _WAL_BYTES)
    return Phi4LocalError(f"The disk of `{path}` failed: {error}", hint="Look for a quota, or check the disk")


def _damaged(path: Path, reason: str) -> FormatError:
    return FormatError(f"The chats in `{path}` are damaged: {reason}", hint=_move_away(path))


def _unwritable(path: Path, reason: str) -> Phi4LocalError:
    return Phi4LocalError(
        f"`{path}` cannot be written: {reason}",
        hint="Make the file and its folder writable, or set PHI4LOCAL_HOME to a folder that is",
    )


def _move_away(path: Path) -> str:
    return f"Move `{path.name}` and the files called `{path.name}-…` out of `{path.parent}` to begin without chats"


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 for what was found by us."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _existing(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.exists())
