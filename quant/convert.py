"""Executes a plan in one pass: rows are read in file order, hashed, quantized on all cores, written where they belong.

    main thread     reads a block of rows, adds it to the shard's sha256, hands it to the pool
    pool            widens, quantizes and writes the block at its planned offset (numpy and libggml release the GIL)
    journal thread  syncs the partial file, then notes which tensors are finished, so that a killed run goes on

Nothing larger than a block is held, and nothing stands under the final name before the whole file has been read again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import queue
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phi4local.errors import FormatError
from phi4local.files import disk_full, publish, write_at, writing_to
from quant.check import check_layout, check_rows, hash_file, hashing
from quant.journal import Journal, journal_path, partial_path
from quant.plan import Plan, PlannedTensor
from quant.progress import Progress
from quant.rows import Bytes, RowFormat, make_rows
from quant.safetensors import Record, Shard
from quant.source import SMALL_FILES, stamp

BLOCK_WEIGHTS = 1 << 19  # 1 MiB of bf16: large enough to hide Python, small enough for a core's cache
_CHECKPOINT_BYTES = 256 << 20  # how much source may have to be quantized again after a kill
_HASH_BYTES = 4 << 20
_DISK_MARGIN = 1.1
_NOTHING: Bytes = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Built:
    """A finished file: its sha256, those of its sources, and how many source bytes an earlier run had done."""

    sha256: str
    source_sha256: dict[str, str]
    resumed_bytes: int


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of one tensor on their way through the pool."""

    tensor: PlannedTensor
    form: RowFormat
    rows: Bytes
    offset: int


@dataclass(frozen=True, slots=True)
class _Open:
    """A shard that is being read."""

    name: str
    fd: int


def fingerprint(plan: Plan) -> str:
    """What must be equal for a half-done file to be continued: the layout, the source's files, the quantizer."""
    engine = importlib.metadata.version("llama-cpp-python")
    return hashlib.sha256(plan.header + f"\n{plan.source.stamp}\n{engine}".encode()).hexdigest()


def check_disk(size_bytes: int, target: Path) -> None:
    """Refuse before the first byte when the result does not fit beside its margin (InsufficientResources)."""
    partial = partial_path(target)
    present = partial.stat().st_blocks * 512 if partial.exists() else 0
    needed = int(size_bytes * _DISK_MARGIN) - present
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
            target.unlink(missing_ok=True)
            certify(built)
            publish(partial_path(target), target)
            journal.remove()
        except FileNotFoundError as error:
            if error.filename and Path(error.filename).parent == plan.source.folder:
                raise _changed(plan) from None
            raise
        finally:
            journal.close()
    return built


def _convert(plan: Plan, target: Path, journal: Journal, threads: int) -> Generator[Progress, None, Built]:
    partial = partial_path(target)
    if not partial.exists() or partial.stat().st_size != plan.size_bytes:
        journal.restart()
    journal.forget(_lost(plan, journal))
    resumed = sum(t.record.size_bytes for t in plan.tensors if t.record and t.name in journal.finished)
    small_files = _hash_small_files(plan)
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        os.ftruncate(fd, plan.size_bytes)
        write_at(fd, plan.header, 0)
        for tensor in plan.tensors:
            if tensor.record is None:
                write_at(fd, tensor.data, tensor.offset)
        yield from _Pass(plan, fd, journal, threads).run()
        os.fsync(fd)
    finally:
        os.close(fd)
    check_layout(partial, plan)
    sha256 = yield from hashing(partial, "check")
    if plan.source.arrival is None and stamp(plan.source.folder) != plan.source.stamp:
        raise _changed(plan)
    return Built(sha256, dict(sorted((journal.hashes | small_files).items())), resumed)


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
        self.waiting: deque[tuple[PlannedTensor, list[Future[None]]]] = deque()
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
        form = RowFormat(record.dtype, tensor.type, record.shape[-1])
        step = max(1, BLOCK_WEIGHTS // form.weights) * form.source_row_bytes
        futures: list[Future[None]] = []
        self.waiting.append((tensor, futures))
        for position in range(0, record.size_bytes, step):
            size_bytes = min(step, record.size_bytes - position)
            yield from self._arrive(source, record.offset + position + size_bytes)
            rows = self._read(source, record, position, size_bytes)
            yield rows
            offset = tensor.offset + position // form.source_row_bytes * form.target_row_bytes
            futures.append(self.pool.submit(self._write, _Block(tensor, form, rows, offset)))

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
            write_at(self.fd, make_rows(block.form, block.rows, block.tensor.name).data, block.offset)
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
    return {name: hash_file(folder / name) for name in SMALL_FILES if (folder / name).exists()}
