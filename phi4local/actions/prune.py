"""Frees what no finished build needs: what killed runs have left in the store, and the kept official weights if wanted.

Everything that belongs to a build is deleted under that build's lock, so that nothing of a running pull is touched. The
journal goes before what it speaks of: a run that comes after a kill in here starts afresh instead of trusting it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from phi4local.actions.official import source_folder
from phi4local.actions.ready import header_copy
from phi4local.files import delete, take_lock
from phi4local.settings import models_folder, sources_folder, state_folder
from phi4local.store import is_build_name, manifest_path, unlisted_files
from quant.journal import aside_path, journal_path, lock_path, partial_path

_PARTS = (journal_path, header_copy, partial_path, aside_path, source_folder)  # in the order in which they go
_TEMPORARY = ".*.tmp"
_OLD_SECONDS = 3600  # a small file is written in less, where no lock says whether somebody is at it


@dataclass(frozen=True, slots=True)
class Removed:
    """A file or folder that is gone, and the room on the disk that this made."""

    path: Path
    bytes: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was freed; `busy` was left alone because another process is at work on it, `unlisted` are builds unknown."""

    removed: tuple[Removed, ...]
    busy: tuple[Path, ...]
    unlisted: tuple[Path, ...]
    kept_sources_bytes: int

    @property
    def freed_bytes(self) -> int:
        return sum(one.bytes for one in self.removed)


def prune(*, sources: bool, dry_run: bool) -> Pruned:
    """Delete the leftovers, or only say what they are. A listed build is never one of them."""
    sweep = _Sweep(dry_run)
    for folder in sorted(path for path in models_folder().glob("*") if path.is_dir()):
        sweep.model(folder)
    for path in sorted(state_folder().glob(_TEMPORARY)):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime > _OLD_SECONDS:
                sweep.delete(path)
    kept = sources_folder()
    if sources and sweep.busy and kept.exists():  # who is at work may be reading them
        sweep.busy.append(kept)
    elif sources:
        for path in sorted(kept.glob("*/*")):
            if path.is_dir():
                sweep.kept(path)
        for path in sorted(kept.glob("*")):
            sweep.folder(path)
    stays = 0 if sources and kept not in sweep.busy else _disk_bytes(kept)
    return Pruned(tuple(sweep.removed), tuple(sweep.busy), tuple(unlisted_files()), stays)


class _Sweep:
    """One run: what it has deleted so far, or would have, and what it had to leave."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.removed: list[Removed] = []
        self.busy: list[Path] = []

    def model(self, folder: Path) -> None:
        """The leftovers of all builds of a model."""
        # Listed before the locks are looked at: who is writing one of these now holds its lock by then.
        temporary = sorted(folder.glob(_TEMPORARY))
        for target in _targets(folder):
            if _leftovers(target) or os.path.lexists(lock_path(target)):
                self._build(target)
        if all(_is_free(lock) for lock in folder.glob("*.lock")):
            for path in filter(os.path.lexists, temporary):
                self.delete(path)
        self.folder(folder)

    def _build(self, target: Path) -> None:
        lock = lock_path(target)
        had_lock = os.path.lexists(lock)
        with contextlib.ExitStack() as held:
            if not (_is_free(lock) if self.dry_run else _enter(held, lock)):
                self.busy.append(target)
                return
            for path in _leftovers(target):  # as they are now that nobody else is at it
                self.delete(path)
        if had_lock:
            self.removed.append(Removed(lock, 0))

    def kept(self, folder: Path) -> None:
        """Official weights that a pull may be reading."""
        with contextlib.ExitStack() as held:
            if not (_is_free(lock_path(folder)) if self.dry_run else _enter(held, lock_path(folder))):
                self.busy.append(folder)
                return
            self.delete(folder)

    def delete(self, path: Path) -> None:
        size = _disk_bytes(path)
        if not self.dry_run:
            delete(path)
        self.removed.append(Removed(path, size))

    def folder(self, folder: Path) -> None:
        """The model's own folder, when nothing else is in it."""
        gone = {one.path for one in self.removed} if self.dry_run else set()
        if folder.is_symlink() or any(path not in gone for path in folder.iterdir()):
            return
        if not self.dry_run:
            try:
                folder.rmdir()
            except OSError:  # somebody has just begun a build in it
                return
        self.removed.append(Removed(folder, 0))


def _enter(held: contextlib.ExitStack, lock_file: Path) -> bool:
    """Take the lock until the stack closes; whether that went."""
    try:
        lock = take_lock(lock_file)
    except OSError:  # a link or a folder under the lock's name: not ours to judge
        return False
    if lock:
        held.enter_context(lock)
    return lock is not None


def _is_free(lock_file: Path) -> bool:
    """Whether nobody holds the lock; unlike taking it, this leaves no trace."""
    import fcntl

    try:
        fd = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _targets(folder: Path) -> list[Path]:
    """The build that each of our files in the folder belongs to."""
    beside = (*_PARTS, lock_path, manifest_path)
    suffixes = [make(Path("x")).name.removeprefix("x") for make in beside]
    found = set()
    for name in os.listdir(folder):  # noqa: PTH208  names alone are wanted
        stem = next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)
        if is_build_name(stem):
            found.add(folder / stem)
    return sorted(found)


def _leftovers(target: Path) -> list[Path]:
    """What lies there for a build and is not the finished build."""
    found = [path for path in (make(target) for make in _PARTS) if os.path.lexists(path)]
    manifest, listed = manifest_path(target), os.path.lexists(target)
    if not os.path.lexists(manifest):  # no kill of ours leaves such a file; a user may have put it there
        return found
    if not listed:
        return [*found, manifest]
    return [*found, manifest, target] if _leads_nowhere(target) else found


def _leads_nowhere(path: Path) -> bool:
    """Whether this is a link to a file that was deleted; where it cannot be followed, the file may be whole."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _disk_bytes(path: Path) -> int:
    """How much room deleting it makes: blocks, since partial files have holes; nothing for one name of several."""
    return sum(one.st_blocks * 512 for one in _statuses(path) if one.st_nlink == 1)


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Those of the files in a folder, or of a file."""
    if path.is_dir() and not path.is_symlink():
        for folder, _, names in os.walk(path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    yield (Path(folder) / name).lstat()
        return
    with contextlib.suppress(FileNotFoundError):
        yield path.lstat()
