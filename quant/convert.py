"""Executes a plan in one pass: rows are read in file order, hashed, quantized on all cores, written where they belong.

    main thread     reads a block of rows, adds it to the shard's sha256, hands it to the pool
    pool            widens, quantizes and writes the block where it is planned (numpy, libggml and MLX release the GIL)
    journal thread  syncs the partial file, then notes which tensors are finished, so that a killed run goes on

Nothing larger than a block is held, and nothing stands under the final name before the whole file has been read again.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import os
import queue
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from phi4local.errors import FormatError
from phi4local.files import atomic_write, delete, disk_full, occupied_bytes, publish, sync_folder, write_at, writing_to
from quant.check import check_layout, check_rows, folder_sha256, hash_file, hashing
from quant.journal import Journal, aside_path, journal_path, partial_path
from quant.plan import Plan
from quant.progress import Progress
from quant.rows import Bytes, Target
from quant.safetensors import ITEM_BYTES, SINGLE_NAME, Record, Shard
from quant.source import stamp

BLOCK_WEIGHTS = 1 << 19  # 1 MiB of bf16: large enough to hide Python, small enough for a core's cache
_CHECKPOINT_BYTES = 256 << 20  # how much source may have to be quantized again after a kill
_HASH_BYTES = 4 << 20
_DISK_MARGIN = 1.1
_NOTHING: Bytes = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: its sha256, those of its sources, and how many source bytes an earlier run had done.

    `files` are the sha256 of a folder's files; the build's own is then that of their list (`folder_sha256`).
    """

    sha256: str
    source_sha256: dict[str, str]
    resumed_bytes: int
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of one tensor on their way through the pool."""

    tensor: Target
    rows: Bytes
    first_row: int


@dataclass(frozen=True, slots=True)
class _Open:
    """A shard that is being read."""

    name: str
    fd: int


def fingerprint(plan: Plan) -> str:
    """What must be equal for a half-done file to be continued: the layout, the source's files, the quantizer."""
    quantizer = importlib.metadata.version(plan.quantizer)
    digest = hashlib.sha256(plan.header + f"\n{plan.source.stamp}\n{quantizer}".encode())
    for name, data in sorted(plan.files.items()):
        digest.update(f"\n{name}\n{len(data)}\n".encode() + data)
    return digest.hexdigest()


def check_disk(size_bytes: int, target: Path) -> None:
    """Refuse before the first byte when the result does not fit beside its margin (InsufficientResources)."""
    needed = int(size_bytes * _DISK_MARGIN) - occupied_bytes(partial_path(target))
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise disk_full(target.parent, needed)


def convert(
    plan: Plan, target: Path, *, threads: int, certify: Callable[[Built], None]
) -> Generator[Progress, None, Built]:
    """Build `target`. Closing the generator stops the work; the same call then goes on from the last checkpoint.

    The caller holds the target's lock. `certify` is called when the whole file has been checked and stands under its
    partial name: whatever it writes is there before the build is. An older `target` is gone by then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    check_disk(plan.size_bytes, target)
    with writing_to(target.parent, plan.size_bytes):
        journal = Journal(journal_path(target), fingerprint(plan))
        try:
            built = yield from _convert(plan, target, journal, threads)
            _make_way(plan, target)
            certify(built)
            publish(partial_path(target), target)
            journal.remove()
            delete(aside_path(target))
        except FileNotFoundError as error:
            if error.filename and Path(error.filename).parent == plan.source.folder:
                raise _changed(plan) from None
            raise
        finally:
            journal.close()
    return built


def _make_way(plan: Plan, target: Path) -> None:
    """Take an older build's name from it, before the new one is certified under that name."""
    if plan.is_folder and os.path.lexists(target):
        delete(aside_path(target))
        target.rename(aside_path(target))
    elif not plan.is_folder:
        target.unlink(missing_ok=True)


def _convert(plan: Plan, target: Path, journal: Journal, threads: int) -> Generator[Progress, None, Built]:
    partial = partial_path(target)
    weights = plan.weights_in(partial)
    _take_up(plan, partial, journal)
    journal.forget(_lost(plan, journal))
    resumed = sum(t.record.size_bytes for t in plan.tensors if t.record and t.name in journal.finished)
    small_files = _hash_small_files(plan)
    fd = os.open(weights, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        os.ftruncate(fd, plan.weights_bytes)
        write_at(fd, plan.header, 0)
        for ready in filter(None, (tensor.ready for tensor in plan.tensors)):
            write_at(fd, ready[1].data, ready[0])
        yield from _Pass(plan, fd, journal, threads).run()
        os.fsync(fd)
    finally:
        os.close(fd)
    check_layout(weights, plan)
    sha256 = yield from hashing(weights, "check")
    files = _add_files(plan, partial) | {weights.name: sha256} if plan.is_folder else {}
    if plan.source.arrival is None and stamp(plan.source.folder, plan.source.small_files) != plan.source.stamp:
        raise _changed(plan)
    hashes = dict(sorted((journal.hashes | small_files).items()))
    return Built(folder_sha256(files) if files else sha256, hashes, resumed, dict(sorted(files.items())))


def _take_up(plan: Plan, partial: Path, journal: Journal) -> None:
    """Go on with what an earlier run has left, or start afresh."""
    weights = plan.weights_in(partial)
    is_sound = not (plan.is_folder and partial.is_symlink()) and weights.exists()
    if not is_sound or weights.stat().st_size != plan.weights_bytes:
        journal.restart()
    if plan.is_folder and not journal.finished and os.path.lexists(partial):
        if partial.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, "a symbolic link where the build should grow", str(partial))
        delete(partial)
    if plan.is_folder:
        partial.mkdir(exist_ok=True)


def _add_files(plan: Plan, partial: Path) -> dict[str, str]:
    """Complete a folder: its small files, nothing else, all of it durable; their sha256 as they are on the disk."""
    for name, data in plan.files.items():
        with atomic_write(partial / name) as file:
            file.write(data)
    for path in partial.iterdir():
        if path.name not in (*plan.files, SINGLE_NAME):  # what a killed run was writing
            delete(path)
    sync_folder(partial)
    hashes = {name: hash_file(partial / name) for name in plan.files}
    if hashes != {name: hashlib.sha256(data).hexdigest() for name, data in plan.files.items()}:
        raise FormatError(f"The files in `{partial}` are not what was written", hint="The disk may be failing")
    return hashes


def _lost(plan: Plan, journal: Journal) -> list[str]:
    """Tensors made of bytes that were never checked and are not there to be checked now."""
    arrival = plan.source.arrival
    if arrival is None:
        return []
    here = {shard.path.name: arrival.here_bytes(shard.path.name) for shard in plan.source.checkpoint.shards}
    shard_of = {record.name: shard.path.name for shard in plan.source.checkpoint.shards for record in shard.records}
    lost = []
    for tensor in plan.tensors:
        if tensor.record and shard_of[tensor.record.name] not in journal.hashes:
            end = tensor.record.offset + tensor.record.size_bytes
            lost += [tensor.name] if here[shard_of[tensor.record.name]] < end else []
    return lost


def _changed(plan: Plan) -> FormatError:
    return FormatError(
        f"`{plan.source.folder}` changed while it was read", hint="Run the same command again when it rests"
    )


class _Pass:
    """One walk over all shards. `waiting` are tensors whose blocks are under way, in the order of their reading."""

    def __init__(self, plan: Plan, fd: int, journal: Journal, threads: int) -> None:
        self.plan, self.fd, self.journal = plan, fd, journal
        self.arrival = plan.source.arrival
        self.targets = {tensor.record.name: tensor for tensor in plan.tensors if tensor.record}
        self.total_bytes = sum(_weight_bytes(shard) for shard in plan.source.checkpoint.shards)
        self.done_bytes = 0
        self.waiting: deque[tuple[Target, list[Future[None]]]] = deque()
        self.finished: list[str] = []
        self.unsynced_bytes = 0
        self.pool = ThreadPoolExecutor(threads, "quantize")
        self.syncer = ThreadPoolExecutor(1, "journal")
        self.synced: Future[None] | None = None
        self.buffers: queue.SimpleQueue[Bytes] = queue.SimpleQueue()
        for _ in range(2 * threads + 1):
            self.buffers.put(np.empty(0, np.uint8))

    def run(self) -> Iterator[Progress]:
        shards = self.plan.source.checkpoint.shards
        if self.arrival:
            self.arrival.begin([shard.path.name for shard in shards if not self._is_finished(shard)])
        try:
            for shard in shards:
                if self._is_finished(shard):
                    self.done_bytes += _weight_bytes(shard)
                    yield self._progress()
                else:
                    yield from self._read_shard(shard)
            if self.synced:
                self.synced.result()
        finally:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self._keep_finished()
            self.syncer.shutdown(wait=True)

    def _is_finished(self, shard: Shard) -> bool:
        targets = [self.targets[record.name] for record in shard.records if record.name in self.targets]
        return shard.path.name in self.journal.hashes and all(t.name in self.journal.finished for t in targets)

    def _progress(self) -> Progress:
        return Progress("quantize", self.done_bytes, self.total_bytes)

    def _read_shard(self, shard: Shard) -> Iterator[Progress]:
        digest = hashlib.sha256()
        name = shard.path.name
        with shard.path.open("rb", buffering=0) as file:
            digest.update(file.read(shard.data_offset))
            for record in shard.records:
                for rows in self._read_record(_Open(name, file.fileno()), record):
                    digest.update(rows.data)
                    self.done_bytes += rows.size
                    self._collect(wait=False)
                    yield self._progress()
            self._collect(wait=True)
            if self.arrival:
                self._check(name, digest.hexdigest(), shard)
            targets = (self.targets.get(record.name) for record in shard.records)
            check_rows(self.fd, file.fileno(), (tensor for tensor in targets if tensor))
        self._checkpoint({"file": name, "sha256": digest.hexdigest()})
        if self.arrival and self.synced:
            self.synced.result()
            self.arrival.release(name)

    def _check(self, name: str, sha256: str, shard: Shard) -> None:
        """Nothing that was made of a shard counts before its bytes are known to be the published ones."""
        assert self.arrival
        try:
            self.arrival.check(name, sha256)
        except FormatError:
            if self.synced:
                self.synced.result()
            self.finished = []
            self.journal.forget(self.targets[r.name].name for r in shard.records if r.name in self.targets)
            raise

    def _read_record(self, source: _Open, record: Record) -> Iterator[Bytes]:
        """The tensor's bytes, block by block; each block is on its way through the pool once it has been hashed."""
        tensor = self.targets.get(record.name)
        if tensor is None or tensor.name in self.journal.finished:
            for position in range(0, record.size_bytes, _HASH_BYTES):
                size_bytes = min(_HASH_BYTES, record.size_bytes - position)
                yield from self._arrive(source, record.offset + position + size_bytes)
                rows = self._read(source, record, position, size_bytes)
                yield rows
                self.buffers.put(rows)
            return
        row_bytes = record.shape[-1] * ITEM_BYTES[record.dtype]
        step = max(1, BLOCK_WEIGHTS // record.shape[-1]) * row_bytes
        futures: list[Future[None]] = []
        self.waiting.append((tensor, futures))
        for position in range(0, record.size_bytes, step):
            size_bytes = min(step, record.size_bytes - position)
            yield from self._arrive(source, record.offset + position + size_bytes)
            rows = self._read(source, record, position, size_bytes)
            yield rows
            futures.append(self.pool.submit(self._write, _Block(tensor, rows, position // row_bytes)))

    def _arrive(self, source: _Open, end: int) -> Iterator[Bytes]:
        """Nothing, again and again, until a shard is on the disk up to there."""
        while self.arrival and not self.arrival.wait(source.name, end):
            yield _NOTHING

    def _read(self, source: _Open, record: Record, position: int, size_bytes: int) -> Bytes:
        buffer = self.buffers.get()  # waits until the pool has given one back
        if buffer.base is not None:
            buffer = buffer.base
        if buffer.size < size_bytes:
            buffer = np.empty(size_bytes, np.uint8)
        rows = buffer[:size_bytes]
        filled = 0
        while filled < size_bytes:
            count = os.preadv(source.fd, [rows.data[filled:]], record.offset + position + filled)
            if count == 0:
                raise FormatError(f"The shard with tensor `{record.name}` was cut short while it was read")
            filled += count
        return rows

    def _write(self, block: _Block) -> None:
        try:
            for offset, piece in block.tensor.pieces(block.rows, block.first_row):
                write_at(self.fd, piece.data, offset)
        finally:
            self.buffers.put(block.rows)

    def _collect(self, *, wait: bool) -> None:
        """Take tensors whose blocks are all written off the list; an error in the pool is raised here."""
        while self.waiting and (wait or len(self.waiting) > 1):
            tensor, futures = self.waiting[0]
            if not wait and not all(future.done() for future in futures):
                return
            for future in futures:
                future.result()
            self.waiting.popleft()
            self.finished.append(tensor.name)
            self.unsynced_bytes += tensor.record.size_bytes if tensor.record else 0
        if self.unsynced_bytes >= _CHECKPOINT_BYTES:
            self._checkpoint()

    def _keep_finished(self) -> None:
        """After a stop: note the tensors that are whole. The last one may not have been read to its end."""
        while len(self.waiting) > 1 and all(_succeeded(future) for future in self.waiting[0][1]):
            self.finished.append(self.waiting.popleft()[0].name)
        if self.finished:
            self.syncer.submit(self._sync, [{"tensor": name} for name in self.finished])

    def _checkpoint(self, *more: dict[str, str]) -> None:
        """Make finished tensors durable on the journal's own thread, so that a slow disk does not stop the cores."""
        if self.synced:
            self.synced.result()
        facts = [{"tensor": name} for name in self.finished]
        self.finished, self.unsynced_bytes = [], 0
        self.synced = self.syncer.submit(self._sync, [*facts, *more])

    def _sync(self, facts: list[dict[str, str]]) -> None:
        os.fsync(self.fd)
        self.journal.append(*facts)


def _succeeded(future: Future[None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _weight_bytes(shard: Shard) -> int:
    return shard.size_bytes - shard.data_offset


def _hash_small_files(plan: Plan) -> dict[str, str]:
    folder = plan.source.folder
    return {name: hash_file(folder / name) for name in plan.source.small_files if (folder / name).exists()}
