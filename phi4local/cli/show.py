"""`phi4local show`: what a build is made of."""

from __future__ import annotations

import argparse
from pathlib import Path

from phi4local.cli import output
from phi4local.cli.quantize import manifest_json, show_manifest
from phi4local.store import Build, find, read_manifest


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", help="NAME, NAME:BUILD or the path of a build with a manifest")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Print the manifest."""
    path = Path(args.name)
    build = Build(path, read_manifest(path)) if args.name.endswith(".gguf") else find(args.name)
    if args.json:
        output.emit_json(manifest_json(build))
    else:
        show_manifest(build)
    return 0
