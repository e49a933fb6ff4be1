"""Files that are whole or absent: written beside the target, synced to disk, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from phi4local.errors import FormatError, InsufficientResources, NotFound
from phi4local.units import file_size

_ROUNDS = 100  # that a lock is tried for, in a folder that goes away again and again


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` only when the block ends well; nothing is left behind otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:  # unlike mkstemp's, with the permissions that the umask leaves
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Rename a synced file to its final name and sync the folder, in that order (a power cut keeps old or new)."""
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable. Windows cannot open a folder; there the rename is all that can be done."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte where the file stands; one call of the system may take fewer."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write every byte from `offset` on."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


class Lock:
    """A held lock on `path`; leaving the block removes the file. A process that dies gives its locks back."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._fd)


def take_lock(path: Path) -> Lock | None:
    """The lock that `path` stands for, or None while another process holds it."""
    import fcntl

    missed = 0
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # somebody removed the empty folder between the two lines
            missed += 1
            if missed == _ROUNDS:  # no, this is a folder in which nothing can be made
                raise
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:  # a file system without locks
            os.close(fd)
            raise
        # The one who held the lock may have finished and removed the file between our open and our lock.
        if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
            return Lock(path, fd)
        os.close(fd)


def disk_full(folder: Path, needed_bytes: int) -> InsufficientResources:
    """The error that says how much is needed and how much is free."""
    free = shutil.disk_usage(folder).free
    return InsufficientResources(
        f"The disk of `{folder}` is too full: {file_size(needed_bytes)} needed, {file_size(free)} free",
        hint="Make room and run the same command again",
    )


def occupied_bytes(path: Path) -> int:
    """What a file, or all files of a folder, take on the disk; nothing where there is none. A hole takes no room."""
    if not path.is_dir() or path.is_symlink():
        names = [path]
    else:
        names = [Path(folder) / name for folder, _, files in os.walk(path) for name in files]
    total = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            total += name.stat().st_blocks * 512
    return total


def delete(path: Path) -> None:
    """A file, a link or a folder with all that is in it; none is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_to(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Translate what a write in `folder` raises when the disk, a quota or a size limit is reached."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise disk_full(folder, needed_bytes) from None
        raise


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """The whole of a small file; a file larger than `limit_bytes` is refused before it is read (FormatError)."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise FormatError(f"`{path}` is not a file")
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"No file `{path}`") from None
    except OSError as error:
        raise FormatError(f"`{path}` cannot be read: {error.strerror}") from None
    if len(data) > limit_bytes:
        raise FormatError(f"`{path}` is larger than {limit_bytes} bytes, which no such file needs")
    return data
