"""`phi4local list`: the builds that are here."""

from __future__ import annotations

import argparse

from phi4local.cli import output
from phi4local.store import builds
from phi4local.units import file_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Print one row a build."""
    here = builds()
    if args.json:
        keys = ("name", "build", "format", "bytes")
        output.emit_json(
            [{key: getattr(b.manifest, key) for key in keys} | {"path": str(b.path.absolute())} for b in here]
        )
    elif here:
        rows = [(b.label, b.manifest.format, file_size(b.manifest.bytes), str(b.path)) for b in here]
        output.table(("NAME", "FORMAT", "SIZE", "FILE"), rows, right=(2,))
    else:
        output.say("No model is here yet; `phi4local demo` makes a tiny one, `phi4local pull phi-4` gets a real one")
    return 0
