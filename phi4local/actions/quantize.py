"""From a folder of official weights to a build with its manifest."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from collections.abc import Generator, Mapping
from pathlib import Path

from phi4local import __version__
from phi4local.backends import mlx_ask
from phi4local.backends.ask import tensor_types
from phi4local.catalog import model_name, origin, slug
from phi4local.errors import FormatError, NotFound, UsageError
from phi4local.files import take_lock
from phi4local.settings import models_folder
from phi4local.store import Build, Manifest, build_path, is_complete, manifest_path, read_manifest, write_manifest
from quant import mlx
from quant.convert import Built, convert, fingerprint
from quant.flash import FlashConfig
from quant.journal import lock_path
from quant.mlx_plan import make_mlx_plan
from quant.plan import Plan, check_build_name, make_plan
from quant.progress import Progress
from quant.source import MLX_FILES, SMALL_FILES, Arrival, read_source, source_files

_PACKAGES = {"gguf": ("llama-cpp-python", "gguf", "numpy"), "mlx": ("mlx", "mlx-lm", "numpy")}


def plan_build(source: Path, build: str) -> Plan:
    """What building would make, to the byte (NotFound, FormatError, UsageError, BackendError)."""
    return plan_weights(source, check_build_name(build))


def plan_weights(folder: Path, build: str, arrival: Arrival | None = None) -> Plan:
    """The plan of a build that is known here, of weights that are there or on their way."""
    if build not in mlx.BUILDS:
        return make_plan(read_source(folder, arrival), build, tensor_types)
    mlx_ask.check_installed()
    return make_mlx_plan(read_source(folder, arrival, for_mlx=True), build, mlx_ask.tensor_forms)


def small_files(build: str) -> tuple[str, ...]:
    """What a build is made of beside the weights."""
    return MLX_FILES if build in mlx.BUILDS else SMALL_FILES


def name_of(plan: Plan) -> str:
    """The model's name, from its shape and its folder."""
    config, folder = plan.source.config, plan.source.folder
    if isinstance(config, FlashConfig):  # the only model of its architecture: nothing else to tell it from
        return slug((origin(folder).repository or folder.resolve().name).split("/")[-1])
    return model_name(folder, config)


def target_of(plan: Plan, out: Path | None) -> Path:
    """Where the build goes: into the store, or where the user says (UsageError)."""
    if out is None:
        return build_path(name_of(plan), plan.build)
    if plan.is_folder:
        return _folder_meant(plan, out)
    if out.is_dir():
        return out / f"{name_of(plan)}-{plan.build}.gguf"
    if out.suffix != ".gguf":
        raise UsageError(f"`{out}` does not end in .gguf", hint=f"--out {out}.gguf")
    return out


def _folder_meant(plan: Plan, out: Path) -> Path:
    """The folder itself, behind all links: a rename puts the build there."""
    target = Path(os.path.realpath(out))
    if not target.name:
        raise UsageError(f"`{out}` cannot be an MLX build", hint=f"--out {target / f'{name_of(plan)}-{plan.build}'}")
    if target.suffix.lower() == ".gguf":
        raise UsageError(f"{plan.build} is a folder and `{out}` a GGUF's name", hint=f"--out {out.with_suffix('')}")
    return target


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
    _check_free(plan, target, force)
    folder = plan.source.folder
    sizes = {name: (folder / name).stat().st_size for name in source_files(folder, plan.source.small_files)}

    def certify(built: Built) -> None:
        place = origin(plan.source.folder)
        source = {"repo": place.repository, "revision": place.revision}
        write_manifest(target, make_manifest(name_of(plan), plan, built, sizes, source))

    built = yield from convert(plan, target, threads=cores(), certify=certify)
    return Build(target, read_manifest(target)), built


def _check_free(plan: Plan, target: Path, force: bool) -> None:
    """Refuse to replace what was not asked to be replaced, and a folder that is no build in any case (UsageError)."""
    if plan.is_folder and os.path.lexists(target):
        if target.exists() and target.samefile(os.curdir):  # the new one would be another folder of that name
            name = f"{name_of(plan)}-{plan.build}"
            raise UsageError(f"`{target}` is the folder that you are in", hint=f"--out {name} makes one in it")
        if target.is_dir() and not any(target.iterdir()):
            return
        _check_replaceable(target)
    if target.exists() and not force:
        raise UsageError(f"`{target}` exists and is another build", hint="--force replaces it")


def _check_replaceable(target: Path) -> None:
    """Nothing but a build may be deleted; in the store, a folder with a manifest is ours with all that is in it."""
    is_listed = os.path.lexists(manifest_path(target))
    if not is_listed and not mlx.is_mlx_folder(target):
        raise UsageError(f"`{target}` exists and is no MLX build", hint=_ANOTHER)
    if is_listed and target.parent.resolve().parent == models_folder().resolve():
        return
    inner = next((path for path in target.iterdir() if path.is_dir()), None) if target.is_dir() else None
    if inner:
        hint = f"Move that away, or: {_ANOTHER}"
        raise UsageError(f"`{target}` holds the folder `{inner.name}`, which is of no MLX build", hint=hint)


_ANOTHER = "Name a folder that does not exist yet"


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _present(plan: Plan, target: Path) -> Build | None:
    try:
        manifest = read_manifest(target)
    except (NotFound, FormatError):
        return None
    same = manifest.fingerprint == fingerprint(plan) and is_complete(Build(target, manifest))
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
        format=plan.format,
        bytes=plan.size_bytes,
        sha256=built.sha256,
        bpw=round(plan.bits_per_weight, 4),
        types=plan.type_counts,
        repairs=[repair.as_json() for repair in plan.repairs],
        source={**source, "files": files},
        fingerprint=fingerprint(plan),
        versions={"phi4local": __version__} | {one: importlib.metadata.version(one) for one in _PACKAGES[plan.format]},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        files=[{"name": one, "bytes": plan.file_sizes[one], "sha256": sha256} for one, sha256 in built.files.items()],
    )
