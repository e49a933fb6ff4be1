"""Get a build: the published file or one made here from the official weights, checked to the last byte."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from phi4local.actions.choice import OFFICIAL, READY, Choice, is_mlx, offline_error
from phi4local.actions.official import Planned, build_official, check_room, plan_official, room_bytes, source_folder
from phi4local.actions.quantize import cores, make_manifest
from phi4local.actions.ready import Fetched, fetch_ready, header_copy
from phi4local.actions.ready_mlx import check_listed, folder_files, pull_folder
from phi4local.actions.verify import damages
from phi4local.backends import mlx_ask
from phi4local.catalog import ReadyMade
from phi4local.errors import FormatError, NotFound
from phi4local.files import Lock, publish, take_lock
from phi4local.hub.arrival import WrongBytesError
from phi4local.hub.repository import RemoteFile, Snapshot, is_offline, look_up
from phi4local.settings import sources_folder
from phi4local.store import Build, Manifest, is_complete, manifest_of, manifest_path, read_manifest, write_manifest
from quant import mend
from quant.convert import Built, check_disk
from quant.gguf import read_header
from quant.journal import Journal, journal_path, lock_path, partial_path
from quant.plan import Plan
from quant.progress import Progress

_POLL_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Pulled:
    """A build that is here now; nothing received where it was here already."""

    build: Build
    received_bytes: int = 0
    resumed_bytes: int = 0
    was_here: bool = False


@dataclass(frozen=True, slots=True)
class Preview:
    """What a pull would do."""

    repository: str
    revision: str
    files: tuple[RemoteFile, ...]
    plan: Plan | None

    @property
    def fetched_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def disk_bytes(self) -> int:
        """What it takes on the disk at most, while it is made."""
        sizes = [file.bytes for file in self.files]
        return room_bytes(self.plan, sizes, keep=False) if self.plan else sum(sizes)


def preview(choice: Choice, *, offline: bool = False) -> Generator[Progress, None, Preview]:
    """What `pull` would fetch and make; of official weights the headers are fetched for it, and stay for the pull.

    (DownloadError, FormatError, NotFound)
    """
    if offline or is_offline():
        raise offline_error(choice.label)
    if choice.ready:
        snapshot = look_up(choice.ready.repository, choice.ready.revision)
        files = (check_listed(choice, snapshot),) if choice.ready.is_gguf else folder_files(choice, snapshot)
        return Preview(snapshot.repository, snapshot.revision, files, None)
    _check_maker(choice)
    with (yield from _locked(choice.target)):
        snapshot = look_up(choice.model.repository, choice.model.revision)
        planned = yield from plan_official(snapshot, choice.build, choice.target, keep=None)
        files = tuple(snapshot.file(name) for name in planned.shards.sizes)
    return Preview(snapshot.repository, snapshot.revision, files, planned.plan)


def pull(
    choice: Choice, source: str | None, *, keep_source: bool = False, offline: bool = False
) -> Generator[Progress, None, Pulled]:
    """Get the build, unless it is here undamaged (DownloadError, FormatError, InsufficientResources, NotFound).

    Another process that pulls the same build is waited for. Closing the generator stops the work; the same call goes
    on from there.
    """
    target = choice.target
    with (yield from _locked(target)):
        present = yield from _present(target, source)
        if present:
            return Pulled(present, was_here=True)
        if offline or is_offline():
            raise offline_error(choice.label)
        if choice.ready and not choice.ready.is_gguf:
            return Pulled(*(yield from pull_folder(choice, look_up(choice.ready.repository, choice.ready.revision))))
        if choice.ready:
            return (yield from _pull_ready(choice, choice.ready))
        _check_maker(choice)
        return (yield from _pull_official(choice, keep_source))


def _check_maker(choice: Choice) -> None:
    """Refuse before the first byte what cannot be made because MLX is not installed (BackendError)."""
    if is_mlx(choice.build):
        mlx_ask.check_installed()


def _locked(target: Path) -> Generator[Progress, None, Lock]:
    while (lock := take_lock(lock_path(target))) is None:
        yield Progress("wait", 0, 0)
        time.sleep(_POLL_SECONDS)
    return lock


def _present(target: Path, source: str | None) -> Generator[Progress, None, Build | None]:
    """The build that is here, if its bytes are those of its manifest and it came from where it is wanted from."""
    try:
        manifest = read_manifest(target)
    except (NotFound, FormatError):
        return None
    if source not in (None, manifest.source.get("from", OFFICIAL)) or not is_complete(Build(target, manifest)):
        return None
    looking = damages(target)
    try:
        while True:
            event = next(looking)
            yield Progress("verify", event.done_bytes, event.total_bytes)
    except StopIteration as stop:
        return None if stop.value else Build(target, manifest)


def _pull_ready(choice: Choice, ready: ReadyMade) -> Generator[Progress, None, Pulled]:
    snapshot = look_up(ready.repository, ready.revision)
    file, target = check_listed(choice, snapshot), choice.target
    check_disk(file.bytes, target)
    identity = f"{ready.repository}/{file.name} {file.sha256 or file.blob} {file.bytes} {mend.VERSION}"
    journal = Journal(journal_path(target), identity)
    try:
        _take_up(target, file, journal)
        try:
            fetched = yield from fetch_ready(file, snapshot.address(file), target, journal)
        except FormatError as error:
            partial_path(target).unlink(missing_ok=True)
            journal.remove()
            named = error.message.replace(partial_path(target).name, f"{ready.repository}/{file.name}")
            raise FormatError(named, hint=error.hint) from None
        target.unlink(missing_ok=True)
        write_manifest(target, _ready_manifest(choice, ready, snapshot, file, fetched))
        publish(partial_path(target), target)
        header_copy(target).unlink(missing_ok=True)
        journal.remove()
    finally:
        journal.close()
    return Pulled(Build(target, read_manifest(target)), fetched.received_bytes, fetched.resumed_bytes)


def _take_up(target: Path, file: RemoteFile, journal: Journal) -> None:
    """A file that has lost its manifest may be the published one: its bytes are hashed before any are fetched.

    Not where they would be mended: what is linked here may be another program's file, too.
    """
    lost = target.is_file() and not manifest_path(target).exists() and target.stat().st_size == file.bytes
    if lost and not journal.notes and _is_sound(target):
        partial_path(target).unlink(missing_ok=True)
        partial_path(target).hardlink_to(target)
        journal.note("begun", file.name)


def _is_sound(path: Path) -> bool:
    try:
        return not mend.find_repairs(read_header(path))
    except FormatError:
        return False


def _ready_manifest(
    choice: Choice, ready: ReadyMade, snapshot: Snapshot, file: RemoteFile, fetched: Fetched
) -> Manifest:
    return manifest_of(
        (choice.model.name, choice.build),
        fetched.header,
        fetched.sha256,
        source={
            "repo": ready.repository,
            "revision": snapshot.revision,
            "from": READY,
            "files": [{"name": file.name, "bytes": file.bytes, "sha256": fetched.published_sha256}],
        },
        fingerprint=f"{ready.repository}@{snapshot.revision}/{file.name}",
        repairs=[repair.as_json() for repair in fetched.repairs],
    )


def _pull_official(choice: Choice, keep_source: bool) -> Generator[Progress, None, Pulled]:
    snapshot = _official_snapshot(choice)
    kept = sources_folder() / snapshot.revision / snapshot.repository.split("/")[1]
    if not (keep_source or kept.is_dir()):
        return (yield from _build_official(choice, snapshot, None))
    with (yield from _locked(kept)):  # weights that an earlier pull has kept are not fetched again
        return (yield from _build_official(choice, snapshot, kept))


def _official_snapshot(choice: Choice) -> Snapshot:
    """The pinned commit; without one the commit that an earlier run of this pull has begun with, else the newest."""
    revision = choice.model.revision
    begun = [path.name for path in source_folder(choice.target).glob("*")] if revision is None else []
    if len(begun) == 1:
        with contextlib.suppress(NotFound):
            return look_up(choice.model.repository, begun[0])
    return look_up(choice.model.repository, revision)


def _build_official(choice: Choice, snapshot: Snapshot, keep: Path | None) -> Generator[Progress, None, Pulled]:
    try:
        return (yield from _build_once(choice, snapshot, keep))
    except WrongBytesError as error:
        if not error.earlier_bytes:
            raise
    return (yield from _build_once(choice, snapshot, keep))  # what lay there from before was not what it seemed


def _build_once(choice: Choice, snapshot: Snapshot, keep: Path | None) -> Generator[Progress, None, Pulled]:
    target = choice.target
    planned = yield from plan_official(snapshot, choice.build, target, keep=keep)
    with contextlib.closing(planned.shards):
        check_room(planned, target)

        def certify(built: Built) -> None:
            write_manifest(target, _official_manifest(choice, snapshot, planned, built))

        built = yield from build_official(planned, target, threads=cores(), certify=certify)
    shutil.rmtree(source_folder(target), ignore_errors=True)
    received = planned.received_bytes + planned.shards.received_bytes
    return Pulled(Build(target, read_manifest(target)), received, built.resumed_bytes)


def _official_manifest(choice: Choice, snapshot: Snapshot, planned: Planned, built: Built) -> Manifest:
    sizes = {name: snapshot.files[name].bytes for name in built.source_sha256}
    source = {"repo": snapshot.repository, "revision": snapshot.revision, "from": OFFICIAL}
    return make_manifest(choice.model.name, planned.plan, built, sizes, source)
