"""`phi4local show`: what a build is made of, and what this machine knows of it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from phi4local.backends.safe_mode import machine_and_build
from phi4local.cli import output
from phi4local.cli.load import describe, load_json
from phi4local.cli.quantize import manifest_json, show_manifest
from phi4local.measured import read_measured
from phi4local.store import Build, find, read_manifest


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
        show_manifest(build, describe(load, benchmarks))
    return 0


def _name(build: Build) -> tuple[str, str]:
    return build.manifest.name, build.manifest.build
