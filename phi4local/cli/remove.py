"""`phi4local remove`: delete a build."""

from __future__ import annotations

import argparse

from phi4local.cli import output
from phi4local.store import find, own_bytes, remove
from phi4local.units import file_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", help="NAME or NAME:BUILD")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Delete the build and say how much room that made."""
    build = find(args.name, missing=True)
    freed = own_bytes(build)
    remove(build)
    if args.json:
        output.emit_json({"removed": build.label, "path": str(build.path), "freed_bytes": freed})
    elif freed:
        output.say(f"Removed {build.label}, {file_size(freed)} freed")
    else:
        output.say(f"Removed {build.label}; no room was freed, since its file belongs to another program or was gone")
    return 0
