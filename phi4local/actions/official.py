"""A build from the official weights while they arrive: headers first, a plan, then shard after shard."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from phi4local.actions.quantize import plan_weights, small_files
from phi4local.errors import DownloadError, FormatError, NotFound
from phi4local.files import atomic_write, disk_full, occupied_bytes, writing_to
from phi4local.hub.arrival import Shards, wrong_bytes
from phi4local.hub.fetch import Fetch
from phi4local.hub.repository import RemoteFile, Snapshot
from quant.convert import Built, convert
from quant.journal import partial_path
from quant.plan import Plan, check_build_name
from quant.progress import Progress
from quant.safetensors import INDEX_NAME, SINGLE_NAME, shard_names

_SMALL_LIMIT_BYTES = 40_000_000
_DISK_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class Planned:
    """What will be built, where its sources arrive, and how many bytes the small files have cost."""

    plan: Plan
    shards: Shards
    folder: Path
    received_bytes: int


def source_folder(target: Path) -> Path:
    """Where the sources of a build lie while it is made."""
    return target.with_name(target.name + ".source")


def plan_official(
    snapshot: Snapshot, build: str, target: Path, *, keep: Path | None
) -> Generator[Progress, None, Planned]:
    """Fetch what a plan needs: the small files and the shards' headers (DownloadError, NotFound, FormatError).

    `keep` is the folder in which all sources stay.
    """
    top = source_folder(target)
    folder = keep or top / snapshot.revision / snapshot.repository.split("/")[1]
    if top.exists() and keep is None:
        for other in top.iterdir():  # of another commit
            if other.name != snapshot.revision:
                shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        if name not in snapshot.files:
            raise NotFound(f"{snapshot.repository} has no `{name}`", hint="It holds no weights that can be built here")
    build = check_build_name(build)
    small = [snapshot.files[name] for name in small_files(build) if name in snapshot.files]
    with writing_to(folder, sum(file.bytes for file in small)):
        received = 0
        for file in small:
            received += yield from _fetch_small(snapshot, file, folder)
        shards = Shards(snapshot, _shard_files(snapshot, folder), folder, keep=keep is not None)
        for trouble in shards.fetch_beginnings():
            yield Progress("headers", shards.received_bytes, 0, trouble)
    try:
        plan = plan_weights(folder, build, shards)
    except FormatError:
        shards.drop_beginnings()
        raise
    return Planned(plan, shards, folder, received)


def _fetch_small(snapshot: Snapshot, file: RemoteFile, folder: Path) -> Generator[Progress, None, int]:
    """A file that is checked in memory, unless it is here already; how many bytes that took."""
    path = folder / file.name
    if file.bytes > _SMALL_LIMIT_BYTES:
        raise FormatError(f"`{file.name}` is larger than {_SMALL_LIMIT_BYTES} bytes, which no such file needs")
    if path.is_file() and path.stat().st_size == file.bytes and not _difference(file, path.read_bytes()):
        return 0
    data = bytearray()
    fetch = Fetch(snapshot.address(file))
    for chunk in fetch.chunks(0):
        data += chunk
        yield Progress("headers", len(data), file.bytes, fetch.trouble)
    if difference := _difference(file, bytes(data)):
        raise difference
    with atomic_write(path) as out:
        out.write(data)
    return fetch.received_bytes


def _difference(file: RemoteFile, data: bytes) -> FormatError | None:
    """Whether the bytes are not those that the hub lists."""
    digest = file.new_hash()
    digest.update(data)
    got = digest.hexdigest()
    return None if got == file.expected else wrong_bytes(file.name, file.expected, got)


def _shard_files(snapshot: Snapshot, folder: Path) -> list[RemoteFile]:
    if INDEX_NAME in snapshot.files:
        names = shard_names(folder)
    elif SINGLE_NAME in snapshot.files:
        names = [SINGLE_NAME]
    else:
        raise NotFound(f"{snapshot.repository} holds no safetensors weights", hint="phi4local show NAME")
    files = [snapshot.file(name) for name in names]
    for file in files:
        if file.sha256 is None:
            raise DownloadError(f"The hub lists no sha256 of `{file.name}`", hint="Check HF_ENDPOINT")
    return files


def room_bytes(plan: Plan, sizes: Sequence[int], *, keep: bool) -> int:
    """What the result and two shards at most, or all of them where they stay, take on the disk while it is made."""
    most = sum(sizes) if keep else max(map(sum, zip(sizes, [*sizes[1:], 0], strict=True)))
    return int((plan.size_bytes + most) * _DISK_MARGIN)


def check_room(planned: Planned, target: Path) -> None:
    """Refuse before the first tensor what cannot end: the result, and two shards or all (InsufficientResources)."""
    sizes = list(planned.shards.sizes.values())
    here = sum(map(occupied_bytes, (partial_path(target), *planned.folder.glob("*.safetensors"))))
    needed = room_bytes(planned.plan, sizes, keep=planned.shards.keeps) - here
    if needed > shutil.disk_usage(planned.folder).free:
        raise disk_full(planned.folder, needed)


def build_official(
    planned: Planned, target: Path, *, threads: int, certify: Callable[[Built], None]
) -> Generator[Progress, None, Built]:
    """Quantize what arrives; closing the generator stops both halves, and the same call goes on later.

    (DownloadError, FormatError, InsufficientResources)
    """
    shards = planned.shards
    total = sum(shards.sizes.values())
    work = convert(planned.plan, target, threads=threads, certify=certify)
    with contextlib.closing(work):
        try:
            while True:
                event = next(work)
                if event.stage == "quantize":
                    # Both halves of the work in one number, the mean of the two.
                    done = (shards.arrived_bytes + event.done_bytes) // 2
                    note = shards.trouble or _halves(shards.arrived_bytes, total, event)
                    yield Progress("build", done, (total + event.total_bytes) // 2, note)
                else:
                    yield event
        except StopIteration as stop:
            built: Built = stop.value
            return built
        finally:
            shards.close()


def _halves(arrived: int, total: int, event: Progress) -> str:
    return f"{arrived * 100 // total} % fetched, {event.done_bytes * 100 // event.total_bytes} % quantized"
