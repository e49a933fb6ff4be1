"""`phi4local quantize`: a build from a folder of official weights, in one pass."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from phi4local.actions.quantize import name_of, plan_build, quantize, target_of
from phi4local.cli import output
from phi4local.store import Build, Manifest
from phi4local.units import duration, file_size
from quant.convert import Built
from quant.plan import Plan
from quant.progress import Progress

_STAGES = {
    "quantize": "Quantizing",
    "check": "Checking",
    "verify": "Looking at what is here",
    "wait": "Waiting for another process that pulls it",
    "headers": "Reading headers",
    "fetch": "Fetching",
    "again": "Fetching again, from the beginning",
    "build": "Building",
    "mend": "Mending",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", type=Path, help="folder with config.json, tokenizer files and *.safetensors")
    parser.add_argument("--to", required=True, metavar="BUILD", help="the build to make, such as Q4_K_M or mlx-4bit")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="file or folder to write, an MLX build's own (default: the store)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan and write nothing")
    parser.add_argument("--force", action="store_true", help="replace another build under the same name")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Plan, then build unless only the plan is wanted."""
    plan = plan_build(args.source, args.to)
    target = target_of(plan, args.out)
    if args.dry_run:
        if args.json:
            output.emit_json(plan_json(name_of(plan), plan, target))
        else:
            show_plan(name_of(plan), plan, target)
        return 0
    output.say(f"Building {target.name}: {file_size(plan.size_bytes)}, {plan.bits_per_weight:.2f} bits per weight")
    start = time.monotonic()
    try:
        build, built = output.with_progress(quantize(plan, target, force=args.force), describe)
    except KeyboardInterrupt:
        output.say("\nStopped; the same command goes on from here")
        raise
    seconds = time.monotonic() - start
    if args.json:
        output.emit_json(result_json(build, built, seconds))
        return 0
    if built is None:
        output.say("This very build is here already; nothing was done")
    show_manifest(build)
    if built:
        resumed = (
            f", {file_size(built.resumed_bytes)} of the source done by an earlier run" if built.resumed_bytes else ""
        )
        output.say(f"Done in {duration(seconds)}{resumed}")
    return 0


def describe(event: Progress) -> output.Bar:
    """A progress event as a bar."""
    told = event.stage == "wait"
    return output.Bar(_STAGES[event.stage], event.done_bytes, event.total_bytes, event.note, told)


def result_json(build: Build, built: Built | None, seconds: float) -> dict[str, Any]:
    """The contract's object for a finished build."""
    manifest = build.manifest
    resumed = built.resumed_bytes if built else sum(file["bytes"] for file in manifest.source["files"])
    return manifest_json(build) | {"downloaded_bytes": 0, "resumed_bytes": resumed, "seconds": round(seconds, 3)}


def manifest_json(build: Build) -> dict[str, Any]:
    """A manifest with its build's path."""
    manifest = build.manifest
    return {key: getattr(manifest, key) for key in Manifest.__annotations__} | {"path": str(build.path.absolute())}


def show_manifest(build: Build, more: Iterable[tuple[str, str]] = ()) -> None:
    """A build's birth certificate for people, and what else is to be said of it."""
    manifest = build.manifest
    files = manifest.source["files"]
    output.record(
        [
            ("Name", build.label),
            ("Folder" if manifest.files else "File", str(build.path)),
            ("Size", f"{file_size(manifest.bytes)}, {manifest.bpw:.2f} bits per weight"),
            ("Types", _types(manifest.types)),
            ("sha256", manifest.sha256),
            *((f"  {file['name']}", file["sha256"]) for file in manifest.files),
            (
                "Source",
                manifest.source["repo"] or str(manifest.source.get("path") or f"{len(files)} files of a folder"),
            ),
            ("Revision", manifest.source["revision"] or "not known"),
            *((f"  {entry['name']}", entry["sha256"]) for entry in files if entry["name"].endswith(".safetensors")),
            ("Repairs", str(len(manifest.repairs)) if manifest.repairs else _no_repairs(manifest)),
            *_repairs(manifest.repairs),
            *more,
        ]
    )


def _no_repairs(manifest: Manifest) -> str:
    return "needed, but not made: the file is another program's" if manifest.source.get("flaws") else "none needed"


def _types(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counts.items())


def _repairs(repairs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    lines = []
    for repair in repairs:
        before, after = (value if len(value := str(repair[key])) <= 24 else "text" for key in ("from", "to"))
        change = "replaced" if after == "text" else f"{before} -> {after}"
        lines.append((f"  {repair['key'].removeprefix('tokenizer.')}", f"{change}: {repair['why']}"))
    return lines


def plan_json(name: str, plan: Plan, target: Path) -> dict[str, Any]:
    """What would be built, as JSON."""
    shards = [{"name": shard.path.name, "bytes": shard.size_bytes} for shard in plan.source.checkpoint.shards]
    return {
        "name": name,
        "build": plan.build,
        "path": str(target.absolute()),
        "bytes": plan.size_bytes,
        "files": [{"name": name, "bytes": size} for name, size in plan.file_sizes.items()],
        "bpw": round(plan.bits_per_weight, 4),
        "parameters": plan.parameters,
        "types": plan.type_counts,
        "repairs": [repair.as_json() for repair in plan.repairs],
        "source": {"files": shards},
        "dry_run": True,
    }


def show_plan(name: str, plan: Plan, target: Path) -> None:
    """What would be built, for people."""
    shards = plan.source.checkpoint.shards
    repairs = [repair.as_json() for repair in plan.repairs]
    output.record(
        [
            ("Name", f"{name}:{plan.build}"),
            ("Folder" if plan.is_folder else "File", str(target)),
            (
                "Size",
                f"{plan.size_bytes} bytes ({file_size(plan.size_bytes)}), {plan.bits_per_weight:.2f} bits per weight",
            ),
            ("Types", _types(plan.type_counts)),
            (
                "Source",
                f"{len(shards)} shards, {file_size(sum(shard.size_bytes for shard in shards))}",
            ),
            ("Repairs", str(len(repairs)) if repairs else "none needed"),
            *_repairs(repairs),
        ]
    )
