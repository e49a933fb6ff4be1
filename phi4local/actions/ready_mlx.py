"""A published MLX build: a repository's files fetched into a folder, hashed on the way, then checked and mended.

    <target>.partial/    every file under its own name; a file's length is what survives a kill

What is not on the list here is not fetched: no code, no pickles. The tensors are compared with what config.json calls
for before the build gets its name.
"""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import os
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi4local import __version__
from phi4local.actions.choice import READY, Choice
from phi4local.actions.fit_mlx import shape_of_folder
from phi4local.actions.ready import fetch_file
from phi4local.errors import FormatError, InsufficientResources, NotFound
from phi4local.files import atomic_write, delete, publish, sync_folder, writing_to
from phi4local.hub.repository import RemoteFile, Snapshot
from phi4local.store import Build, Manifest, manifest_path, read_manifest, write_manifest
from quant.check import folder_sha256, hash_file
from quant.config import read_values
from quant.convert import check_disk
from quant.journal import Journal, aside_path, journal_path, partial_path
from quant.mlx import Shape
from quant.mlx_repair import finished_files, mended_folder
from quant.mlx_rows import Packing
from quant.names import source_shapes
from quant.progress import Progress
from quant.repair import Repair, repair_tokenizer
from quant.safetensors import INDEX_NAME, ITEM_BYTES, SINGLE_NAME, Checkpoint, Record, read_checkpoint, shard_names
from quant.source import Source
from quant.tokenizer import read_tokenizer

_SMALL = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    INDEX_NAME,
)
_NEEDED = ("config.json", "tokenizer.json")
_WEIGHTS = "model*.safetensors"
_SMALL_LIMIT_BYTES = 40_000_000
_AT_FAULT = "The repository is at fault; with `--from official` the build is made here"
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"  # a buffer that old exporters saved


@dataclass(frozen=True, slots=True)
class _Arrived:
    """What the fetching came to: bytes received, bytes that an earlier run had left, and each file's sha256."""

    received_bytes: int
    resumed_bytes: int
    sha256: dict[str, str]


def check_listed(choice: Choice, snapshot: Snapshot) -> RemoteFile:
    """The file that the catalogue names as the hub lists it; what is known of it must agree (FormatError, NotFound)."""
    ready = choice.ready
    assert ready is not None
    file = snapshot.file(ready.file)
    for what, known, listed in (("bytes", ready.bytes, file.bytes), ("sha256", ready.sha256, file.sha256)):
        if known is not None and known != listed:
            raise FormatError(
                f"The hub lists `{file.name}` of {ready.repository} with {what} {listed}; the catalogue knows {known}",
                hint=f"phi4local pull {choice.label} --from official",
            )
    return file


def folder_files(choice: Choice, snapshot: Snapshot) -> tuple[RemoteFile, ...]:
    """The files of a repository that make an MLX build, the small ones first (FormatError, NotFound)."""
    assert choice.ready is not None
    if choice.ready.file:
        check_listed(choice, snapshot)
    for name in _NEEDED:
        snapshot.file(name)
    small = [snapshot.files[name] for name in _SMALL if name in snapshot.files]
    weights = [snapshot.files[name] for name in sorted(snapshot.files) if fnmatch.fnmatchcase(name, _WEIGHTS)]
    has_index = INDEX_NAME in snapshot.files
    weights = [file for file in weights if ("/" not in file.name if has_index else file.name == SINGLE_NAME)]
    if not weights:
        raise NotFound(f"{snapshot.repository} holds no safetensors weights", hint=_official(choice))
    for file in small:
        if file.bytes > _SMALL_LIMIT_BYTES:
            raise FormatError(f"`{file.name}` is larger than {_SMALL_LIMIT_BYTES} bytes, which no such file needs")
    return (*small, *weights)


def pull_folder(choice: Choice, snapshot: Snapshot) -> Generator[Progress, None, tuple[Build, int, int]]:
    """Get a published folder; the build, bytes received, and bytes that an earlier run had left.

    (DownloadError, FormatError, InsufficientResources, NotFound)
    """
    files, target = folder_files(choice, snapshot), choice.target
    partial = partial_path(target)
    journal = Journal(journal_path(target), f"{snapshot.repository} as it is")
    try:
        _begin(target, files, journal, snapshot.repository)
        _check_disk(files, target, journal)
        with writing_to(target.parent, sum(file.bytes for file in files)):
            arrived = yield from _fetch(snapshot, files, partial, journal)
            try:
                shape, checkpoint = _checked(partial)
                repairs = _mend(partial, shape, checkpoint)
            except FormatError as error:  # as published: fetching it again would change nothing
                delete(partial)
                journal.remove()
                raise FormatError(f"{snapshot.repository}: {error.message}", hint=_official(choice)) from None
            for path in partial.iterdir():
                if path.name not in arrived.sha256 and path.name not in {repair.key.split()[0] for repair in repairs}:
                    delete(path)
            sync_folder(partial)
            manifest = _manifest(choice, snapshot, partial, (arrived, repairs), (shape, checkpoint))
        if os.path.lexists(target):
            delete(aside_path(target))
            target.rename(aside_path(target))
        write_manifest(target, manifest)
        publish(partial, target)
        delete(aside_path(target))
        journal.remove()
    finally:
        journal.close()
    return Build(target, read_manifest(target)), arrived.received_bytes, arrived.resumed_bytes


def _official(choice: Choice) -> str:
    return f"phi4local pull {choice.label} --from official"


def _begin(target: Path, files: tuple[RemoteFile, ...], journal: Journal, repository: str) -> None:
    """Make the folder; whole files of a damaged build, or of one that has lost its manifest, are taken up by links."""
    partial = partial_path(target)
    if not journal.notes or not partial.is_dir() or partial.is_symlink():  # what lies there is of another build
        delete(partial)
        partial.mkdir(parents=True)
        journal.note("begun", repository)
        for file in files if _is_same(target, repository) else ():
            path = target / file.name
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink() and path.stat().st_size == file.bytes:
                    (partial / file.name).hardlink_to(path)


def _check_disk(files: tuple[RemoteFile, ...], target: Path, journal: Journal) -> None:
    """Refuse what does not fit on the disk; files that were taken up take no more room (InsufficientResources)."""
    try:
        check_disk(sum(file.bytes for file in files), target)
    except InsufficientResources:
        partial = partial_path(target)
        if not any(partial.iterdir()):  # nothing to go on from
            delete(partial)
            journal.remove()
        raise


def _is_same(target: Path, repository: str) -> bool:
    """Whether the folder that is there may hold what is wanted: its hashes will tell."""
    try:
        return bool(read_manifest(target).source["repo"] == repository)
    except (NotFound, FormatError):
        return not manifest_path(target).is_symlink()


def _fetch(
    snapshot: Snapshot, files: tuple[RemoteFile, ...], folder: Path, journal: Journal
) -> Generator[Progress, None, _Arrived]:
    """One file after the other; the index, once it is here, says which weights belong to the model."""
    received = resumed = before = 0
    hashes: dict[str, str] = {}
    total = sum(file.bytes for file in files)
    named: set[str] | None = None
    for file in files:
        if named is not None and file.name.endswith(".safetensors") and file.name not in named:
            continue
        fetching = fetch_file(file, snapshot.address(file), folder / file.name, journal)
        with contextlib.closing(fetching):
            try:
                while True:
                    event = next(fetching)
                    yield Progress(event.stage, before + event.done_bytes, total, event.note)
            except StopIteration as stop:
                here, more, got = stop.value
        received, resumed, before = received + more, resumed + here, before + file.bytes
        hashes[file.name] = got if file.sha256 else hash_file(folder / file.name)
        if file.name == INDEX_NAME:
            named = _named_weights(folder, {one.name for one in files})
    return _Arrived(received, resumed, hashes)


def _named_weights(folder: Path, listed: set[str]) -> set[str]:
    """The weights that the index names, each of which the hub must have (FormatError)."""
    try:
        named = set(shard_names(folder))
    except FormatError as error:
        raise FormatError(error.message, hint=_AT_FAULT) from None
    if missing := sorted(named - listed):
        raise FormatError(f"`{INDEX_NAME}` names `{missing[0]}`, and the repository has none", hint=_AT_FAULT)
    return named


# -- what has arrived


def _checked(folder: Path) -> tuple[Shape, Checkpoint]:
    """The shape that config.json states, and the tensors, which are exactly its own (FormatError)."""
    shape, values = shape_of_folder(folder), read_values(folder)
    quantization = values.get("quantization", values.get("quantization_config")) or {}
    if not isinstance(quantization, dict):
        raise FormatError("`config.json`: `quantization` is not an object")
    try:
        checkpoint = read_checkpoint(folder)
    except NotFound as error:
        raise FormatError(error.message) from None
    records = checkpoint.records
    expected: set[str] = set()
    for name, size in source_shapes(shape).items():
        expected |= _check_tensor(name, size, records, quantization)
    for name in records:
        if name not in expected and not name.endswith(_IGNORED_SUFFIX):
            raise FormatError(f"Tensor `{name}` has no place in this architecture")
    return shape, checkpoint


def _check_tensor(
    name: str, shape: tuple[int, ...], records: Mapping[str, Record], quantization: dict[str, Any]
) -> set[str]:
    """Compare a tensor, or the parts that it is packed into, with its shape; their names (FormatError)."""
    base = name.removesuffix(".weight")
    if f"{base}.scales" not in records:
        record = records.get(name)
        if record is None:
            raise FormatError(f"Tensor `{name}` is missing")
        is_alike = record.shape == shape or (len(shape) == 3 and sorted(record.shape) == sorted(shape))
        if record.dtype not in ITEM_BYTES or not is_alike:
            raise _unlike(record, shape)
        return {name}
    packing = _packing(base, quantization)
    if len(shape) != 2 or shape[-1] % packing.group:
        raise FormatError(f"Tensor `{name}` is packed in groups that do not fill its rows")
    parts = [f"{base}.{part}" for part in packing.parts]
    for part, wanted in zip(parts, packing.part_shapes(shape), strict=True):
        record = records.get(part)
        if record is None:
            raise FormatError(f"Tensor `{part}` is missing")
        kinds = {"weight": {"U32"}}.get(part.split(".")[-1], {*ITEM_BYTES} if packing.mode == "affine" else {"U8"})
        if record.shape != wanted or record.dtype not in kinds:
            raise _unlike(record, wanted)
    return {*parts}


def _unlike(record: Record, wanted: tuple[int, ...]) -> FormatError:
    found = f"{record.dtype} {list(record.shape)}"
    return FormatError(f"Tensor `{record.name}` is {found}; config.json calls for {list(wanted)}")


def _packing(base: str, quantization: dict[str, Any]) -> Packing:
    """How config.json says that a tensor is packed (FormatError)."""
    own = quantization.get(base)
    facts = quantization | own if isinstance(own, dict) else quantization
    bits, group, mode = facts.get("bits"), facts.get("group_size"), facts.get("mode", "affine")
    if bits not in (2, 3, 4, 5, 6, 8) or group not in (16, 32, 64, 128) or mode not in ("affine", "mxfp4", "mxfp8"):
        raise FormatError(f"`config.json` does not say how `{base}` is packed in a way that is known here")
    return Packing(int(bits), int(group), str(mode))


def _mend(folder: Path, shape: Shape, checkpoint: Checkpoint) -> tuple[Repair, ...]:
    """Set right what plain mlx-lm would stumble over, in the small files that need it; what was changed."""
    tokenizer, _ = repair_tokenizer(read_tokenizer(folder, shape))
    source = Source(folder, shape, tokenizer, (), checkpoint, "")
    mended = mended_folder(source)
    changed = {repair.key.split()[0] for repair in mended.repairs}
    for name, data in finished_files(mended, mended.config.get("quantization") or {}).items():
        if name in changed:
            with atomic_write(folder / name) as file:
                file.write(data)
    return mended.repairs


def _manifest(
    choice: Choice,
    snapshot: Snapshot,
    folder: Path,
    done: tuple[_Arrived, tuple[Repair, ...]],
    model: tuple[Shape, Checkpoint],
) -> Manifest:
    """The birth certificate; the published hashes are the source's, those of the mended files the build's own."""
    (arrived, repairs), (shape, checkpoint) = done, model
    changed = {repair.key.split()[0] for repair in repairs}
    unchanged = {name: sha256 for name, sha256 in arrived.sha256.items() if name not in changed}
    hashes = unchanged | {name: hash_file(folder / name) for name in changed}
    published = {name: snapshot.files[name].bytes for name in arrived.sha256}
    sized = {name: (folder / name).stat().st_size for name in sorted(hashes)}
    files = [{"name": name, "bytes": size_bytes, "sha256": hashes[name]} for name, size_bytes in sized.items()]
    sizes = source_shapes(shape)
    weights_bytes = sum(record.size_bytes for record in checkpoint.records.values())
    return Manifest(
        name=choice.model.name,
        build=choice.build,
        format="mlx",
        bytes=sum(sized.values()),
        sha256=folder_sha256(hashes),
        bpw=round(8 * weights_bytes / sum(_count(size) for size in sizes.values()), 4),
        types=_types(folder, sizes, checkpoint.records),
        repairs=[repair.as_json() for repair in repairs],
        source={
            "repo": snapshot.repository,
            "revision": snapshot.revision,
            "from": READY,
            "files": [
                {"name": name, "bytes": size, "sha256": arrived.sha256[name]} for name, size in published.items()
            ],
        },
        fingerprint=f"{snapshot.repository}@{snapshot.revision}",
        versions={"phi4local": __version__},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        files=files,
    )


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _types(folder: Path, sizes: Mapping[str, tuple[int, ...]], records: Mapping[str, Record]) -> dict[str, int]:
    """How many tensors of each kind, in the words of a build that was made here."""
    values = read_values(folder)
    quantization = values.get("quantization", values.get("quantization_config")) or {}
    kinds: Counter[str] = Counter()
    for name in sizes:
        base = name.removesuffix(".weight")
        if f"{base}.scales" not in records:
            kinds[records[name].dtype] += 1
            continue
        packing = _packing(base, quantization)
        kinds[f"{packing.bits}-bit" if packing.mode == "affine" else packing.mode.upper()] += 1
    return dict(kinds.most_common())
