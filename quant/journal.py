"""What a killed build had finished: one JSON line a fact, each written after the bytes that it speaks of are on disk.

{"fingerprint": "..."}                     the first line: which plan of which source
{"tensor": "blk.0.attn_qkv.weight"}        all its rows are in the partial file
{"file": "model-00001...", "sha256": ".."} the whole shard has been read and hashed
{"note": "shift", "value": "128"}          what a download must remember of a file that it changes on arrival
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from phi4local.files import sync_folder, write_all

_LIMIT_BYTES = 16 << 20  # a line for each tensor and shard needs a hundredth of it


def partial_path(target: Path) -> Path:
    """Where a build grows before it is whole."""
    return target.with_name(target.name + ".partial")


def aside_path(target: Path) -> Path:
    """Where an older build that is a folder waits for its deletion while the new one takes its name."""
    return target.with_name(target.name + ".replaced")


def journal_path(target: Path) -> Path:
    """What a killed build had finished."""
    return target.with_name(target.name + ".journal")


def lock_path(target: Path) -> Path:
    """Who holds it is the only one that makes this build."""
    return target.with_name(target.name + ".lock")


class Journal:
    """An open journal; its build's lock is held by the caller.

    `finished`, `hashes` and `notes` are what an earlier run left for the same fingerprint.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.finished: set[str] = set()
        self.hashes: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        self._fingerprint = fingerprint
        if not self._read():
            self.restart()

    def restart(self) -> None:
        """Forget what an earlier run had done."""
        self.finished.clear()
        self.hashes.clear()
        self.notes.clear()
        os.ftruncate(self._fd, 0)
        self.append({"fingerprint": self._fingerprint})
        sync_folder(self.path.parent)

    def forget(self, tensors: Iterable[str]) -> None:
        """Tensors that turned out not to count."""
        finished, hashes, notes = self.finished.difference(tensors), dict(self.hashes), dict(self.notes)
        if finished == self.finished:
            return
        self.restart()
        facts = [{"tensor": name} for name in sorted(finished)]
        facts += [{"file": name, "sha256": value} for name, value in hashes.items()]
        self.append(*facts, *({"note": name, "value": value} for name, value in notes.items()))

    def note(self, name: str, value: str) -> None:
        """Remember something else."""
        self.append({"note": name, "value": value})

    def _read(self) -> bool:
        """Take over an earlier run's facts; the last line may be cut off, an unknown one ends the reading."""
        lines = _read_all(self._fd).split(b"\n")[:-1]
        facts = [_fact(line) for line in lines]
        if not facts or facts[0] != {"fingerprint": self._fingerprint}:
            return False
        self._take(facts[1:])
        os.ftruncate(self._fd, sum(len(line) + 1 for line in lines))
        return True

    def _take(self, facts: Iterable[dict[str, str]]) -> None:
        for fact in facts:
            if "tensor" in fact:
                self.finished.add(fact["tensor"])
            elif "file" in fact and "sha256" in fact:
                self.hashes[fact["file"]] = fact["sha256"]
            elif "note" in fact and "value" in fact:
                self.notes[fact["note"]] = fact["value"]

    def append(self, *facts: dict[str, str]) -> None:
        """Add facts and make them durable."""
        data = "".join(json.dumps(fact) + "\n" for fact in facts).encode()
        os.lseek(self._fd, 0, os.SEEK_END)
        write_all(self._fd, data)
        os.fsync(self._fd)
        self._take(facts)

    def close(self) -> None:
        os.close(self._fd)

    def remove(self) -> None:
        """The build is done; nothing is left to resume."""
        self.path.unlink(missing_ok=True)


def _read_all(fd: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        return file.read(_LIMIT_BYTES)


def _fact(line: bytes) -> dict[str, str]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        return {}
    return value
