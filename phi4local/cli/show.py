"""`phi4local show`: what a build is made of, and what this machine knows of it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phi4local.backends.safe_mode import machine_and_build
from phi4local.cli import output
from phi4local.cli.quantize import manifest_json, show_manifest
from phi4local.engine import Load
from phi4local.fit import Use, total
from phi4local.measured import read_measured
from phi4local.speed import Benchmark
from phi4local.store import Build, find, read_manifest
from phi4local.units import memory


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", help="NAME, NAME:BUILD or the path of a build with a manifest")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Print the manifest, the last load and the benchmarks."""
    path = Path(args.name)
    build = Build(path, read_manifest(path)) if args.name.endswith(".gguf") else find(args.name)
    known = read_measured(machine_and_build())
    load = known.loads.get(str(build.path.absolute()))
    benchmarks = [one for one in known.benchmarks if (one.name, one.build) == _name(build)]
    if args.json:
        here = {"load": load_json(load) if load else None, "benchmarks": [asdict(one) for one in benchmarks]}
        output.emit_json(manifest_json(build) | here)
    else:
        show_manifest(build, _here(load, benchmarks))
    return 0


def _name(build: Build) -> tuple[str, str]:
    return build.manifest.name, build.manifest.build


def load_json(load: Load) -> dict[str, Any]:
    """How a model was loaded: predicted and taken memory by device, in bytes, and both sums."""
    return asdict(load) | {
        "predicted_bytes": total(load.predicted).total_bytes,
        "took_bytes": total(load.took).total_bytes,
    }


def _here(load: Load | None, benchmarks: list[Benchmark]) -> list[tuple[str, str]]:
    """What this machine knows of it."""
    facts = []
    if load:
        took, predicted = total(load.took).total_bytes, total(load.predicted).total_bytes
        facts += [
            ("Last load", f"context {load.context_tokens}, KV cache {load.kv_type}, {load.gpu_layers} layers on cards"),
            ("  took", f"{memory(took)}, {memory(predicted)} predicted ({took / predicted - 1:+.1%})"),
            *((f"  {device}", _use(use)) for device, use in load.took.items()),
        ]
        if load.resident_bytes is not None:
            facts.append(("  process", f"grew by {memory(load.resident_bytes)} in memory"))
    for one in benchmarks:
        speeds = f"{one.measured.generation_tps:.1f} tokens per second" if one.measured.generation_tps else "?"
        told = f", {one.predicted.generation_tps:.1f} predicted" if one.predicted.generation_tps else ""
        facts.append(("Benchmark", f"{speeds}{told} ({one.where})"))
    return facts or [("Last load", "never on this machine")]


def _use(use: Use) -> str:
    return f"weights {memory(use.weights_bytes)}, KV {memory(use.kv_bytes)}, compute {memory(use.compute_bytes)}"
