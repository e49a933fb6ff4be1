"""Whether the builds that are here are still what their manifests say."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from phi4local.errors import FormatError
from phi4local.store import Manifest, find, is_there, manifest_files, path_meant, read_manifest, unlisted_files
from quant.check import hashing
from quant.progress import Progress


@dataclass(frozen=True, slots=True)
class Damage:
    """A build that is not what its manifest says; `got` is None where there is nothing to hash.

    `path` is the damaged file, which of a build that is a folder is one in it; `build` is the path of the build.
    """

    path: Path
    expected: str | None
    got: str | None
    problem: str
    build: Path


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result: how many builds were looked at, and which are damaged."""

    checked: int
    damaged: tuple[Damage, ...]


def verify(label: str | None) -> Generator[Progress, None, Verdict]:
    """Hash one build (a name, or the path of a file or folder with a manifest), or all of them."""
    lost: list[Damage] = []
    if label is None:
        paths = list(manifest_files())
        lost = [Damage(path, None, None, "it has no manifest, so it is no build", path) for path in unlisted_files()]
    elif path := path_meant(label):
        paths = [path]
    else:
        paths = [find(label, missing=True).path]
    damaged = list(lost)
    for path in paths:
        damaged += yield from damages(path)
    return Verdict(len(paths) + len(lost), tuple(damaged))


def damages(path: Path) -> Generator[Progress, None, list[Damage]]:
    """All that is wrong with the build at `path`, every byte of it read (NotFound: it has no manifest)."""
    try:
        manifest = read_manifest(path)
    except FormatError as error:
        return [Damage(path, None, None, error.message, path)]
    if manifest.files:
        return (yield from _folder_damages(path, manifest))
    if not is_there(path):
        return [Damage(path, manifest.sha256, None, "the file is missing", path)]
    damage = yield from _damage(path, manifest.sha256, path)
    return [damage] if damage else []


def _folder_damages(folder: Path, manifest: Manifest) -> Generator[Progress, None, list[Damage]]:
    if not folder.is_dir():
        return [Damage(folder, manifest.sha256, None, "the folder is missing", folder)]
    found = []
    for file in manifest.files:
        path = folder / file["name"]
        if not path.is_file():
            found.append(Damage(path, file["sha256"], None, "the file is missing", folder))
        elif damage := (yield from _damage(path, file["sha256"], folder)):
            found.append(damage)
    known = {file["name"] for file in manifest.files}
    # What begins with a dot is no file that mlx-lm reads; desktops leave such files wherever they look.
    extra = sorted(path for path in folder.iterdir() if path.name not in known and not path.name.startswith("."))
    return found + [Damage(path, None, None, "it does not belong to the build", folder) for path in extra]


def _damage(path: Path, expected: str, build: Path) -> Generator[Progress, None, Damage | None]:
    try:
        got = yield from hashing(path, path.name)
    except FileNotFoundError:
        return Damage(path, expected, None, "the file is missing", build)
    return None if got == expected else Damage(path, expected, got, "the content has changed", build)
