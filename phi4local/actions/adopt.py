"""A GGUF that another program has brought to this disk becomes a build, without a second copy of its bytes.

A hard link where that works, which outlives the other program's own name for the file; else a symbolic link. The file
is shared, so it is never written to: what is wrong with its metadata is told and noted, not mended.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from phi4local.actions.choice import OFFICIAL, READY
from phi4local.catalog import find_model, models, shape_of, slug
from phi4local.errors import FormatError, NotFound, UsageError
from phi4local.files import publish, take_lock
from phi4local.foreign import Found, Place, find_foreign, place, shown
from phi4local.settings import models_folder
from phi4local.store import Build, Manifest, build_path, builds, is_there, manifest_of, read_manifest, write_manifest
from quant import mlx
from quant.check import hashing
from quant.ggml import BUILDS
from quant.gguf import Header
from quant.journal import lock_path
from quant.mend import find_repairs
from quant.metadata import config_of
from quant.progress import Progress
from quant.repair import Repair
from quant.sound import read_model_header

IMPORT = "import"
HARD, SYMBOLIC = "hard", "symbolic"
_UNKNOWN_BUILD = "GGUF"
_BUILDS_BY_FILE_TYPE = {file_type: build for build, file_type in BUILDS.items()}
_LABEL = re.compile(r"[-._]((?:UD[-_])?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))$", re.I | re.A)
_Identity = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Adopted:
    """A build that is here now; `link` is how it hangs on the other file, None where it was here already.

    `flaws` are the repairs that its metadata needs and does not get.
    """

    build: Build
    link: str | None
    flaws: tuple[Repair, ...]


@dataclass(frozen=True, slots=True)
class _File:
    """What is known before its bytes are read, and what it will be called."""

    path: Path
    header: Header
    place: Place
    name: str
    build: str

    @property
    def target(self) -> Path:
        return build_path(self.name, self.build)

    @property
    def is_linked(self) -> bool:
        """Whether what stands under the build's name is a link to this very file."""
        return is_there(self.target) and self.target.samefile(self.path)

    @property
    def flaws(self) -> tuple[Repair, ...]:
        return find_repairs(self.header)


def found_here() -> list[tuple[Found, str | None]]:
    """The other programs' files, each with the label under which it is imported already."""
    labels = {_identity(build.path.stat()): build.label for build in builds()}
    return [(found, labels.get(_identity(found.path.stat()))) for found in find_foreign()]


def adopt(path: Path, wanted: str | None) -> Generator[Progress, None, Adopted]:
    """Take in the file at `path` as `wanted`, NAME or NAME:BUILD (UsageError, NotFound, FormatError)."""
    header = _read(path)
    if wanted is None and path.parent.resolve().parent == models_folder().resolve():
        return Adopted(_stored(path), None, find_repairs(header))
    known = place(path)
    file = _File(path, header, known, *_named(wanted, header, known.title))
    lock = take_lock(lock_path(file.target))
    if lock is None:
        raise UsageError(f"Another process is at work on `{file.target.name}`", hint="Wait until it has finished")
    try:
        with lock:
            return (yield from _adopt(file))
    finally:
        with contextlib.suppress(OSError):  # the folder that the lock was made in, where nothing else is
            file.target.parent.rmdir()


def mended_from(build: Build) -> str | None:
    """From where `pull` gets a mended build of the same name, if it can."""
    name, label = build.manifest.name, build.manifest.build
    model = find_model(name)
    if model and model.config and label in BUILDS:
        return OFFICIAL
    return READY if model and any(file.is_gguf for file in model.ready.get(label, ())) else None


def _read(path: Path) -> Header:
    if mlx.is_mlx_folder(path):
        opened = path if path.is_absolute() else f"./{path}"  # with a separator it is no model's name
        raise UsageError(
            f"`{path}` is an MLX folder; import takes GGUF files",
            hint=f"It needs no import: `phi4local chat {opened}` opens it where it is",
        )
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder", hint=f"If it holds weights: phi4local quantize {path} --to Q4_K_M")
    try:
        return read_model_header(path)
    except NotFound as error:
        raise NotFound(error.message, hint="`phi4local import` lists what other programs have here") from None


def _stored(path: Path) -> Build:
    try:
        return Build(path, read_manifest(path))
    except NotFound:
        raise UsageError(
            f"`{path}` lies in the store and is no finished build",
            hint="Move it to another folder and import it from there",
        ) from None


def _named(wanted: str | None, header: Header, title: str) -> tuple[str, str]:
    """Name and build: what the user wants, else what the file says of itself, else what it is called."""
    label = _LABEL.search(title)
    name, separator, build = (wanted or "").partition(":")
    if wanted is not None and (not name or (separator and not build)):
        raise UsageError(f"`{wanted}` is neither a name nor NAME:BUILD", hint="--name phi-4-tuned, for example")
    if not build:
        known = _BUILDS_BY_FILE_TYPE.get(header.count("general.file_type") or 0)
        build = known or (label[1].upper() if label else _UNKNOWN_BUILD)
    return name or _model_name(header, _LABEL.sub("", title)), build


def _model_name(header: Header, title: str) -> str:
    """A name of the catalogue only for its shape under its spelling, so that a fine-tune never takes the original's.

    The title in the file comes before that of the file; one that only begins the other one does not count.
    """
    spelt = [slug(text) for text in (header.text("general.name"), title) if text and text.strip()]
    spelt = [text.removesuffix("-gguf").removeprefix("microsoft-").lstrip("-.") or text for text in spelt]
    titles = [text for text in spelt if not any(other.startswith(text + "-") for other in spelt)]
    config = config_of(header)
    for model in models():
        known = config and model.config and shape_of(model.config) == shape_of(config)
        if known and set(titles) & set(model.spellings):
            return model.name
    return titles[0]


def _adopt(file: _File) -> Generator[Progress, None, Adopted]:
    present = _present(file)
    sha256, identity = yield from _hash(file)
    if file.place.sha256 not in (None, sha256):
        raise FormatError(
            f"`{file.path.name}` is damaged: by its name its sha256 is {file.place.sha256}, but it is {sha256}",
            hint="Let the program that it belongs to get it again",
        )
    if present and present.sha256 == sha256:
        return Adopted(Build(file.target, present), None, file.flaws)
    if present and not file.is_linked:
        raise _taken(file)
    manifest = _manifest(file, sha256)
    link = _put(file, manifest, identity)
    return Adopted(Build(file.target, manifest), link, file.flaws)


def _present(file: _File) -> Manifest | None:
    """The manifest of the build that is there, if it may be this very file.

    A build whose file is gone, or has been written anew by its owner, may be replaced.
    """
    if not is_there(file.target):
        return None
    try:
        manifest = read_manifest(file.target)
    except NotFound:
        if file.is_linked:
            return None
        raise UsageError(
            f"`{file.target}` exists and is no finished build",
            hint="Move it away, or take another name with --name NAME:BUILD",
        ) from None
    if manifest.bytes != file.header.size_bytes and not file.is_linked:
        raise _taken(file)
    return manifest


def _taken(file: _File) -> UsageError:
    label = f"{file.name}:{file.build}"
    return UsageError(
        f"{label} is here already and is another file",
        hint=f"`phi4local remove {label}` deletes it; --name NAME:BUILD takes another name",
    )


def _hash(file: _File) -> Generator[Progress, None, tuple[str, _Identity]]:
    """sha256 of the bytes, and of which file they are."""
    before = file.path.stat()
    sha256 = yield from hashing(file.path, "check")
    if _identity(before) != _identity(file.path.stat()) or before.st_size != file.header.size_bytes:
        raise _changed(file)
    return sha256, _identity(before)


def _identity(status: os.stat_result) -> _Identity:
    """Equal for one file with, as far as its clock tells, one content."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _changed(file: _File) -> FormatError:
    return FormatError(f"`{file.path}` changed while it was read", hint="Run the command again")


def _put(file: _File, manifest: Manifest, identity: _Identity) -> str:
    """The link under a passing name, the manifest, then the name: a kill leaves no file without its manifest."""
    temporary = file.target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        link = _link(file.path.resolve(), temporary)
        if _identity(temporary.stat()) != identity:
            raise _changed(file)
        write_manifest(file.target, manifest)
        publish(temporary, file.target)
    finally:
        temporary.unlink(missing_ok=True)
    return link


def _link(real: Path, name: Path) -> str:
    try:
        os.link(real, name)
    except OSError:  # another file system, one without hard links, or a file of another user
        name.symlink_to(real)
        return SYMBOLIC
    return HARD


def _manifest(file: _File, sha256: str) -> Manifest:
    header = file.header
    repository, revision = _origin(file.place, sha256)
    return manifest_of(
        (file.name, file.build),
        header,
        sha256,
        source={
            "repo": repository,
            "revision": revision,
            "from": IMPORT,
            "path": shown(file.path.absolute()),
            "files": [{"name": shown(file.path.name), "bytes": header.size_bytes, "sha256": sha256}],
            "flaws": [repair.as_json() for repair in file.flaws],
        },
        fingerprint=f"{IMPORT} {sha256}",
    )


def _origin(known: Place, sha256: str) -> tuple[str | None, str | None]:
    """Repository and commit: those of the Hub's cache, else those of the published file that has these bytes."""
    if known.repository:
        return known.repository, known.revision
    published = (file for model in models() for files in model.ready.values() for file in files)
    same = next((file for file in published if file.sha256 == sha256), None)
    return (same.repository, same.revision) if same else (None, None)
