"""What is here: builds with their manifests.

    models/<name>/<name>-<build>.gguf
    models/<name>/<name>-<build>.gguf.manifest.json     written last; a file without one does not exist for us
    models/<name>/<name>-mlx-<bits>/                    an MLX build is a folder; its manifest lies beside it, too

The manifest beside a build is the truth about it. Manifests are read as distrustfully as any other file.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi4local import __version__
from phi4local.errors import FormatError, NotFound, UsageError
from phi4local.files import atomic_write, delete, read_bounded, take_lock
from phi4local.settings import models_folder
from quant.journal import aside_path, journal_path, lock_path, partial_path

if TYPE_CHECKING:
    from quant.gguf import Header

_SUFFIX = ".manifest.json"
_LIMIT_BYTES = 10_000_000
_SHOWN = 8  # builds that a hint lists
_NAME = re.compile(r"[a-z0-9][a-z0-9.\-]{0,99}")
_BUILD = re.compile(r"[A-Za-z0-9][\w.\-]{0,59}", re.ASCII)
_MLX = "mlx-"  # how the name of a build begins that is a folder
_FILE = re.compile(r"[A-Za-z0-9_][\w.\-]{0,199}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A build's birth certificate; JSON as in the command contract, with `path` kept out of the file.

    `files` are those of a build that is a folder; `bytes` is then their sum, `sha256` that of their list.
    """

    name: str
    build: str
    format: str
    bytes: int
    sha256: str
    bpw: float
    types: dict[str, int]
    repairs: list[dict[str, Any]]
    source: dict[str, Any]
    fingerprint: str
    versions: dict[str, str]
    created: str
    files: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Build:
    """A file, or a folder, and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def label(self) -> str:
        return f"{self.manifest.name}:{self.manifest.build}"


def build_path(name: str, build: str) -> Path:
    """Where a build belongs (UsageError for a name that is no plain name)."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"`{name}` cannot be a model's name", hint="Use small letters, digits, `.` and `-`")
    if not _BUILD.fullmatch(build):
        raise UsageError(f"`{build}` cannot be a build's name", hint="Use letters, digits, `.`, `_` and `-`")
    return models_folder() / name / f"{name}-{build}{'' if build.startswith(_MLX) else '.gguf'}"


def is_build_name(name: str) -> bool:
    """Whether a file or folder of that name can be a build of the store."""
    return name.endswith(".gguf") or f"-{_MLX}" in name


def manifest_path(path: Path) -> Path:
    """The manifest beside a build."""
    return path.with_name(path.name + _SUFFIX)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Make a build visible."""
    with atomic_write(manifest_path(path)) as file:
        file.write(json.dumps(asdict(manifest), indent=1).encode() + b"\n")


def manifest_of(
    label: tuple[str, str],
    header: Header,
    sha256: str,
    *,
    source: dict[str, Any],
    fingerprint: str,
    repairs: Sequence[dict[str, Any]] = (),
) -> Manifest:
    """The manifest of a whole GGUF that was not made here; `label` is its name and its build."""
    weights = sum(math.prod(tensor.shape) for tensor in header.tensors)
    return Manifest(
        name=label[0],
        build=label[1],
        format="gguf",
        bytes=header.size_bytes,
        sha256=sha256,
        bpw=round(8 * sum(tensor.size_bytes for tensor in header.tensors) / weights, 4),
        types=dict(Counter(tensor.type.name for tensor in header.tensors).most_common()),
        repairs=list(repairs),
        source=source,
        fingerprint=fingerprint,
        versions={"phi4local": __version__},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def read_manifest(path: Path) -> Manifest:
    """The manifest of the build at `path` (NotFound, FormatError)."""
    try:
        data = read_bounded(manifest_path(path), _LIMIT_BYTES)
    except NotFound:
        raise NotFound(f"`{path}` has no manifest", hint="`phi4local list` shows the builds that have one") from None
    try:
        values = json.loads(data)
        older = {"files": []} | values  # manifests of GGUFs did not always have it
        manifest = Manifest(**{key: older[key] for key in Manifest.__annotations__})
    except (ValueError, TypeError, KeyError, RecursionError):
        raise FormatError(f"The manifest of `{path.name}` is damaged", hint="Build or pull it again") from None
    if not _is_sound(manifest):
        raise FormatError(f"The manifest of `{path.name}` is damaged", hint="Build or pull it again")
    return manifest


def _is_sound(manifest: Manifest) -> bool:
    """Whether every value has the kind that the rest of the program relies on."""
    texts = (manifest.name, manifest.build, manifest.format, manifest.sha256, manifest.fingerprint, manifest.created)
    files = manifest.source.get("files") if isinstance(manifest.source, dict) else None
    return (
        all(isinstance(text, str) for text in texts)
        and type(manifest.bytes) is int
        and 0 <= manifest.bytes < 1 << 62
        and isinstance(manifest.bpw, float | int)
        and isinstance(manifest.types, dict)
        and isinstance(manifest.versions, dict)
        and _are_objects(manifest.repairs, {"key", "from", "to", "why"})
        and _are_objects(files, _FILE_KEYS)
        and _are_objects(manifest.files, _FILE_KEYS)
        and all(_is_plain(file) for file in manifest.files)
        and {"repo", "revision"} <= manifest.source.keys()
    )


_FILE_KEYS = {"name", "bytes", "sha256"}


def _is_plain(file: dict[str, Any]) -> bool:
    """Whether a file of a folder is named by a plain name, and its facts are of their kind."""
    is_named = isinstance(file["name"], str) and _FILE.fullmatch(file["name"]) is not None
    return is_named and type(file["bytes"]) is int and isinstance(file["sha256"], str)


def _are_objects(value: Any, keys: set[str]) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and keys <= item.keys() for item in value)


def builds() -> list[Build]:
    """Every complete build, sorted by name; a damaged manifest hides its build from here, not from `verify`."""
    return [build for build in _described() if is_there(build.path)]


def _described() -> list[Build]:
    """Every build with a sound manifest, whether or not its file is there."""
    found = []
    for path in manifest_files():
        try:
            found.append(Build(path, read_manifest(path)))
        except (FormatError, NotFound):
            continue
    return found


def is_there(path: Path) -> bool:
    """Whether a build's file can be seen; an imported one goes when the program that it belongs to deletes it."""
    # Unlike Path.is_file, this does not raise where a link leads into a closed folder.
    return os.path.isfile(path) or os.path.isfile(path / "config.json")  # noqa: PTH113


def is_complete(build: Build) -> bool:
    """Whether every file of a build is there in its size."""
    try:
        if build.manifest.files:
            return all((build.path / one["name"]).stat().st_size == one["bytes"] for one in build.manifest.files)
        return build.path.stat().st_size == build.manifest.bytes
    except OSError:
        return False


def own_bytes(build: Build) -> int:
    """How many bytes deleting the build frees: its files, but for links and what has another name as well."""
    path = build.path
    if path.is_dir() and not path.is_symlink():
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]  # noqa: PTH118
    else:
        files = [str(path)] if os.path.lexists(path) else []
    freed = 0
    for file in files:
        with contextlib.suppress(OSError):  # it went while we looked
            status = os.lstat(file)
            freed += status.st_size if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0
    return freed


def is_own(build: Build) -> bool:
    """Whether deleting the build frees room."""
    return own_bytes(build) > 0


def manifest_files() -> Iterator[Path]:
    """The build path of every manifest in the store, whether or not either can be read."""
    for path in sorted(models_folder().glob(f"*/*{_SUFFIX}")):
        yield path.with_name(path.name.removesuffix(_SUFFIX))


def unlisted_files() -> list[Path]:
    """GGUFs and MLX folders in the store that have no manifest, and so are no builds."""
    files = [path for path in models_folder().glob("*/*.gguf") if path.is_file()]
    folders = [path for path in models_folder().glob(f"*/*-{_MLX}*") if (path / "config.json").is_file()]
    builds = [path for path in folders if path.suffix not in (".partial", ".replaced", ".source")]
    return [path for path in sorted(files + builds) if not os.path.lexists(manifest_path(path))]


def path_meant(label: str) -> Path | None:
    """The path that a label is: a GGUF's, or a folder's. One without a manifest may be called as a model."""
    if label.endswith(".gguf"):
        return Path(label)
    path = Path(label).absolute()  # `.` has no name of its own
    is_meant = path.is_dir() and (os.sep in label or os.path.lexists(manifest_path(path)))
    return path if is_meant else None


def find(label: str, *, missing: bool = False) -> Build:
    """The build called NAME or NAME:BUILD (NotFound with the nearest name, UsageError where NAME has several).

    `missing`: also a build whose file is gone.
    """
    name, _, build = label.partition(":")
    here = _described() if missing else builds()
    named = [entry for entry in here if entry.manifest.name.lower() == name.lower()]
    matches = [entry for entry in named if not build or entry.manifest.build.lower() == build.lower()]
    if len(matches) == 1:
        return matches[0]
    if matches:
        choices = ", ".join(entry.label for entry in matches)
        raise UsageError(f"There are {len(matches)} builds of `{name}` here", hint=f"Say which: {choices}")
    if not missing and (gone := _gone(label)):
        raise gone
    if named:
        raise NotFound(f"No build `{build}` of `{name}` is here", hint=f"There is {_nearest(build, named)}")
    near = difflib.get_close_matches(label.lower(), [entry.label.lower() for entry in here], 1, 0.5)
    known = f"Did you mean {near[0]}?" if near else "Run `phi4local list` to see what is here"
    raise NotFound(f"No model called `{label}` is here", hint=known)


def _nearest(wanted: str, named: Sequence[Build]) -> str:
    """What there is of a model, the most similar name first."""
    near = difflib.SequenceMatcher(b=wanted.lower())

    def likeness(build: Build) -> float:
        near.set_seq1(build.manifest.build.lower())
        return near.ratio()

    labels = [build.label for build in sorted(named, key=likeness, reverse=True)]
    return ", ".join(labels[:_SHOWN]) + (f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else "")


def _gone(label: str) -> NotFound | None:
    """What to say where there is a manifest of that name, and only its file, or one of its files, is missing."""
    try:
        build = find(label, missing=True)
    except (NotFound, UsageError):
        return None
    missing = [one["name"] for one in build.manifest.files if not os.path.lexists(build.path / one["name"])]
    if missing and build.path.is_dir():
        hint = (
            f"`phi4local verify {build.label}` tells how to get it again; `phi4local remove {build.label}` deletes it"
        )
        return NotFound(f"`{missing[0]}` of {build.label} is missing in `{build.path}`", hint=hint)
    owner = build.manifest.source.get("path")
    was = f"; it was imported from `{owner}`" if owner else ""
    return NotFound(f"The file of {build.label} is gone{was}", hint=f"`phi4local remove {build.label}` forgets it")


def remove(build: Build) -> None:
    """Delete a build (UsageError while another process is at work on it).

    Its file is put under its partial name first, so that a kill in here leaves nothing that looks like a build. Of an
    imported build this deletes the link; the other program's file stays.
    """
    lock = take_lock(lock_path(build.path))
    if lock is None:
        raise UsageError(f"Another process is at work on {build.label}", hint="Wait until it has finished")
    with lock:
        journal_path(build.path).unlink(missing_ok=True)
        if partial_path(build.path).is_dir():  # no folder takes the place of one that is not empty
            delete(partial_path(build.path))
        with contextlib.suppress(FileNotFoundError):
            build.path.rename(partial_path(build.path))
        manifest_path(build.path).unlink(missing_ok=True)
        delete(partial_path(build.path))
        delete(aside_path(build.path))
    with contextlib.suppress(OSError):  # not empty
        build.path.parent.rmdir()
