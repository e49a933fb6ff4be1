"""`phi4local prune`: free what no finished build needs."""

from __future__ import annotations

import argparse

from phi4local.actions.prune import Pruned, prune
from phi4local.cli import output
from phi4local.units import file_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--sources", action="store_true", help="delete the kept official weights, too")
    parser.add_argument("--dry-run", action="store_true", help="show what would be deleted, and delete nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Delete, and say what that freed."""
    pruned = prune(sources=args.sources, dry_run=args.dry_run)
    if args.json:
        output.emit_json(
            {
                "freed_bytes": pruned.freed_bytes,
                "removed": [{"path": str(one.path.absolute()), "bytes": one.bytes} for one in pruned.removed],
                "busy": [str(path.absolute()) for path in pruned.busy],
                "unlisted": [str(path.absolute()) for path in pruned.unlisted],
                "kept_sources_bytes": pruned.kept_sources_bytes,
                "dry_run": args.dry_run,
            }
        )
    else:
        _show(pruned, args.dry_run)
    return 0


def _show(pruned: Pruned, dry_run: bool) -> None:
    if pruned.removed:
        rows = [(file_size(one.bytes), str(one.path)) for one in pruned.removed]
        output.table(("SIZE", "FILE"), rows, right=(0,))
    for path in pruned.busy:
        output.say(f"Left alone, since another process is at work on it: {path}")
    for path in pruned.unlisted:
        output.say(f"Left alone, since it may be yours; it is no build: {path}")
    if pruned.kept_sources_bytes:
        kept = file_size(pruned.kept_sources_bytes)
        output.say(f"{kept} of official weights are kept; `phi4local prune --sources` deletes them")
    if not pruned.removed:
        output.say("Nothing is left over")
    elif dry_run:
        output.say(f"{file_size(pruned.freed_bytes)} would be freed; nothing was deleted")
    else:
        output.say(f"{file_size(pruned.freed_bytes)} freed")
