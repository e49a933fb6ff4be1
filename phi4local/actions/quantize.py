"""From a folder of official weights to a build with its manifest."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from collections.abc import Generator, Mapping
from pathlib import Path

from phi4local import __version__
from phi4local.backends.ask import tensor_types
from phi4local.catalog import model_name, origin
from phi4local.errors import FormatError, NotFound, UsageError
from phi4local.files import take_lock
from phi4local.store import Build, Manifest, build_path, read_manifest, write_manifest
from quant.convert import Built, convert, fingerprint
from quant.journal import lock_path
from quant.plan import Plan, check_build_name, make_plan
from quant.progress import Progress
from quant.source import read_source, source_files


def plan_build(source: Path, build: str) -> Plan:
    """What building would make, to the byte (NotFound, FormatError, UsageError)."""
    return make_plan(read_source(source), check_build_name(build), tensor_types)


def name_of(plan: Plan) -> str:
    """The model's name, from its shape and its folder."""
    return model_name(plan.source.folder, plan.source.config)


def target_of(plan: Plan, out: Path | None) -> Path:
    """Where the build goes: into the store, or where the user says."""
    if out is None:
        return build_path(name_of(plan), plan.build)
    if out.is_dir():
        return out / f"{name_of(plan)}-{plan.build}.gguf"
    if out.suffix != ".gguf":
        raise UsageError(f"`{out}` does not end in .gguf", hint=f"--out {out}.gguf")
    return out


def quantize(plan: Plan, target: Path, *, force: bool) -> Generator[Progress, None, tuple[Build, Built | None]]:
    """Build, or find that exactly this build is there already (then without `Built`)."""
    lock = take_lock(lock_path(target))
    if lock is None:
        raise UsageError(f"Another process is already building `{target.name}`", hint="Wait until it has finished")
    with lock:
        return (yield from _quantize(plan, target, force))


def _quantize(plan: Plan, target: Path, force: bool) -> Generator[Progress, None, tuple[Build, Built | None]]:
    if not force and (present := _present(plan, target)):
        return present, None
    if target.exists() and not force:
        raise UsageError(f"`{target}` exists and is another build", hint="--force replaces it")
    sizes = {name: (plan.source.folder / name).stat().st_size for name in source_files(plan.source.folder)}

    def certify(built: Built) -> None:
        place = origin(plan.source.folder)
        source = {"repo": place.repository, "revision": place.revision}
        write_manifest(target, make_manifest(name_of(plan), plan, built, sizes, source))

    built = yield from convert(plan, target, threads=cores(), certify=certify)
    return Build(target, read_manifest(target)), built


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _present(plan: Plan, target: Path) -> Build | None:
    try:
        manifest = read_manifest(target)
    except (NotFound, FormatError):
        return None
    same = manifest.fingerprint == fingerprint(plan) and target.exists() and target.stat().st_size == manifest.bytes
    return Build(target, manifest) if same else None


def make_manifest(
    name: str, plan: Plan, built: Built, sizes: dict[str, int], source: Mapping[str, str | None]
) -> Manifest:
    """The birth certificate of a build that was made here; `source` says where its files are from."""
    hashes = built.source_sha256
    files = [{"name": name, "bytes": sizes[name], "sha256": hashes[name]} for name in hashes]
    return Manifest(
        name=name,
        build=plan.build,
        format="gguf",
        bytes=plan.size_bytes,
        sha256=built.sha256,
        bpw=round(plan.bits_per_weight, 4),
        types=plan.type_counts,
        repairs=[repair.as_json() for repair in plan.repairs],
        source={**source, "files": files},
        fingerprint=fingerprint(plan),
        versions=_versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _versions() -> dict[str, str]:
    packages = ("llama-cpp-python", "gguf", "numpy")
    return {"phi4local": __version__} | {package: importlib.metadata.version(package) for package in packages}
