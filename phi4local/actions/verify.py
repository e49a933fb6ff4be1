"""Whether the builds that are here are still what their manifests say."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from phi4local.errors import FormatError
from phi4local.store import find, is_there, manifest_files, read_manifest, unlisted_files
from quant.check import hashing
from quant.progress import Progress


@dataclass(frozen=True, slots=True)
class Damage:
    """A build that is not what its manifest says; `got` is None where there is nothing to hash."""

    path: Path
    expected: str | None
    got: str | None
    problem: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result: how many builds were looked at, and which are damaged."""

    checked: int
    damaged: tuple[Damage, ...]


def verify(label: str | None) -> Generator[Progress, None, Verdict]:
    """Hash one build (a name, or the path of a file with a manifest), or all of them."""
    lost: list[Damage] = []
    if label is None:
        paths = list(manifest_files())
        lost = [Damage(path, None, None, "it has no manifest, so it is no build") for path in unlisted_files()]
    elif label.endswith(".gguf"):
        paths = [Path(label)]
    else:
        paths = [find(label, missing=True).path]
    damaged = list(lost)
    for path in paths:
        damage = yield from _check(path)
        if damage:
            damaged.append(damage)
    return Verdict(len(paths) + len(lost), tuple(damaged))


def _check(path: Path) -> Generator[Progress, None, Damage | None]:
    try:
        expected = read_manifest(path).sha256
    except FormatError as error:
        return Damage(path, None, None, error.message)
    if not is_there(path):
        return Damage(path, expected, None, "the file is missing")
    got = yield from hashing(path, path.name)
    return None if got == expected else Damage(path, expected, got, "the content has changed")
