"""Get a build: the published file or one made here from the official weights, checked to the last byte."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import math
import shutil
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from phi4local import __version__
from phi4local.actions.fit import cannot_run, fit
from phi4local.actions.official import Planned, build_official, check_room, plan_official, source_folder
from phi4local.actions.quantize import cores, make_manifest
from phi4local.actions.ready import Fetched, fetch_ready, header_copy
from phi4local.catalog import Model, ReadyMade, find_model, models
from phi4local.errors import DownloadError, FormatError, NotFound, UsageError
from phi4local.files import Lock, publish, take_lock
from phi4local.hub.repository import RemoteFile, Snapshot, is_offline, look_up
from phi4local.settings import sources_folder
from phi4local.store import Build, Manifest, build_path, builds, read_manifest, write_manifest
from phi4local.units import file_size
from quant.check import hashing
from quant.convert import Built, check_disk, journal_path, lock_path, partial_path
from quant.ggml import BUILDS
from quant.gguf import Header
from quant.journal import Journal
from quant.plan import Plan
from quant.progress import Progress

READY, OFFICIAL = "ready", "official"
_POLL_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Choice:
    """What will be pulled: `ready` is the published file, None where the build is made here; `why` tells the user."""

    model: Model
    build: str
    ready: ReadyMade | None
    why: str

    @property
    def label(self) -> str:
        return f"{self.model.name}:{self.build}"

    @property
    def target(self) -> Path:
        return build_path(self.model.name, self.build)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A build that is here now; `plan` where it was made here; nothing received where it was here already."""

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


def choose(label: str, source: str | None, *, offline: bool = False) -> Choice:
    """Which build of which model from where (NotFound, UsageError, DownloadError)."""
    title, _, build = label.partition(":")
    model = _model(title)
    why = ""
    if not build:
        if model.config is None:
            raise cannot_run(model)
        if offline or is_offline():
            raise _offline(model.name)
        look_up(model.repository, model.revision)  # without a network nothing is worth asking the engine for
        build, why = _recommended(model)
    build = _spelt(model, build)
    ready = _published(model, build)
    if source == READY and ready is None:
        raise NotFound(
            f"Nobody has published a GGUF {build} of {model.name}", hint=f"phi4local pull {label} --from official"
        )
    if source == READY or (source is None and ready and ready.is_verified and not ready.flaws):
        return Choice(model, build, ready, why)
    if build not in BUILDS or model.config is None:
        return _only_ready(model, build, ready, source)
    return Choice(model, build, None, " ".join(filter(None, (why, _why_official(ready) if source is None else ""))))


def _model(title: str) -> Model:
    model = find_model(title)
    if model:
        return model
    near = difflib.get_close_matches(title.lower(), [model.name for model in models()], 1, 0.5)
    known = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(model.name for model in models())}"
    raise NotFound(f"No model called `{title}` is in the catalogue", hint=known)


def _recommended(model: Model) -> tuple[str, str]:
    """What `fit` would take on this machine, and why."""
    recommendation = fit(model.name).recommendation
    if recommendation.build is None:
        raise UsageError(
            f"No build of {model.name} fits here: {recommendation.why}", hint=f"phi4local fit {model.name}"
        )
    return recommendation.build, f"{recommendation.why}."


def _spelt(model: Model, build: str) -> str:
    known: dict[str, str] = {name.lower(): name for name in (*model.ready, *(BUILDS if model.config else ()))}
    if build.lower() not in known:
        raise UsageError(f"No build called `{build}` of {model.name}", hint=f"One of {', '.join(known.values())}")
    return known[build.lower()]


def _published(model: Model, build: str) -> ReadyMade | None:
    """The best published GGUF: verified and without flaws first, then in the catalogue's order."""
    files = [file for file in model.ready.get(build, ()) if file.is_gguf]
    return min(files, key=lambda file: not (file.is_verified and not file.flaws), default=None)


def _only_ready(model: Model, build: str, ready: ReadyMade | None, source: str | None) -> Choice:
    if ready is None and build in model.ready:
        raise UsageError(
            f"{model.name}:{build} is an MLX build, which this version cannot run", hint=f"phi4local pull {model.name}"
        )
    if ready is None or source == OFFICIAL:
        raise UsageError(f"{model.name}:{build} cannot be made here", hint=f"phi4local show {model.name}")
    return Choice(model, build, ready, "")


def _why_official(ready: ReadyMade | None) -> str:
    if ready is None:
        return "Nobody is known to have published this build; it is made here from the official weights."
    file = f"the published file of {ready.repository}"
    unknown = "unknown" in ready.flaws or not ready.is_verified
    problem = f"nobody has checked {file}" if unknown else f"{file} is flawed ({', '.join(ready.flaws)})"
    size = f" ({file_size(ready.bytes)}, mended as it arrives)" if ready.bytes else ""
    return f"It is made here from the official weights, because {problem}; `--from ready` takes that{size}."


def _offline(label: str) -> DownloadError:
    name = label.partition(":")[0]
    here = next((one.label for one in builds() if one.manifest.name == name), None)
    known = f"`phi4local chat {here}` is here" if here else "`phi4local list` shows what is here"
    return DownloadError(f"{label} is not here, and the network is not to be used", hint=known)


def preview(choice: Choice, *, offline: bool = False) -> Generator[Progress, None, Preview]:
    """What `pull` would fetch and make; of official weights the headers are fetched for it."""
    if offline or is_offline():
        raise _offline(choice.label)
    if choice.ready:
        snapshot = look_up(choice.ready.repository, choice.ready.revision)
        return Preview(snapshot.repository, snapshot.revision, (_listed(choice, choice.ready, snapshot),), None)
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
            raise _offline(choice.label)
        if choice.ready:
            return (yield from _pull_ready(choice, choice.ready))
        return (yield from _pull_official(choice, keep_source))


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
    came_from = manifest.source.get("from", OFFICIAL)
    if not target.is_file() or target.stat().st_size != manifest.bytes or source not in (None, came_from):
        return None
    sha256 = yield from hashing(target, "verify")
    return Build(target, manifest) if sha256 == manifest.sha256 else None


def _listed(choice: Choice, ready: ReadyMade, snapshot: Snapshot) -> RemoteFile:
    """The file as the hub lists it; what the catalogue knows of it must agree."""
    file = snapshot.file(ready.file)
    for what, known, listed in (("bytes", ready.bytes, file.bytes), ("sha256", ready.sha256, file.sha256)):
        if known is not None and known != listed:
            raise FormatError(
                f"The hub lists `{file.name}` of {ready.repository} with {what} {listed}; the catalogue knows {known}",
                hint=f"phi4local pull {choice.label} --from official",
            )
    return file


def _pull_ready(choice: Choice, ready: ReadyMade) -> Generator[Progress, None, Pulled]:
    snapshot = look_up(ready.repository, ready.revision)
    file, target = _listed(choice, ready, snapshot), choice.target
    check_disk(file.bytes, target)
    identity = f"{ready.repository}/{file.name} {file.sha256 or file.blob} {file.bytes}"
    journal = Journal(journal_path(target), identity)
    try:
        try:
            fetched = yield from fetch_ready(file, snapshot.address(file), target, journal)
        except FormatError:
            partial_path(target).unlink(missing_ok=True)
            raise
        target.unlink(missing_ok=True)
        write_manifest(target, _ready_manifest(choice, ready, snapshot, file, fetched))
        publish(partial_path(target), target)
        header_copy(target).unlink(missing_ok=True)
        journal.remove()
    finally:
        journal.close()
    return Pulled(Build(target, read_manifest(target)), fetched.received_bytes, fetched.resumed_bytes)


def _ready_manifest(
    choice: Choice, ready: ReadyMade, snapshot: Snapshot, file: RemoteFile, fetched: Fetched
) -> Manifest:
    header = fetched.header
    return Manifest(
        name=choice.model.name,
        build=choice.build,
        format="gguf",
        bytes=header.size_bytes,
        sha256=fetched.sha256,
        bpw=bits_per_weight(header),
        types=dict(Counter(tensor.type.name for tensor in header.tensors).most_common()),
        repairs=[repair.as_json() for repair in fetched.repairs],
        source={
            "repo": ready.repository,
            "revision": snapshot.revision,
            "from": READY,
            "files": [{"name": file.name, "bytes": file.bytes, "sha256": fetched.published_sha256}],
        },
        fingerprint=f"{ready.repository}@{snapshot.revision}/{file.name}",
        versions={"phi4local": __version__},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def bits_per_weight(header: Header) -> float:
    """Of a whole file's tensors."""
    weights = sum(math.prod(tensor.shape) for tensor in header.tensors)
    return round(8 * sum(tensor.size_bytes for tensor in header.tensors) / weights, 4)


def _pull_official(choice: Choice, keep_source: bool) -> Generator[Progress, None, Pulled]:
    snapshot = look_up(choice.model.repository, choice.model.revision)
    kept = sources_folder() / snapshot.revision / snapshot.repository.split("/")[1]
    if not (keep_source or kept.is_dir()):
        return (yield from _build_official(choice, snapshot, None))
    with (yield from _locked(kept)):  # weights that an earlier pull has kept are not fetched again
        return (yield from _build_official(choice, snapshot, kept))


def _build_official(choice: Choice, snapshot: Snapshot, keep: Path | None) -> Generator[Progress, None, Pulled]:
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
