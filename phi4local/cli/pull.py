"""`phi4local pull`: get a build, ready-made or from the official weights while they arrive."""

from __future__ import annotations

import argparse
import time
from typing import Any

from phi4local.actions.choice import OFFICIAL, READY, Choice, choose, is_mlx
from phi4local.actions.pull import Preview, Pulled, preview, pull
from phi4local.backends.mlx_ask import INSTALL, is_installed
from phi4local.cli import output
from phi4local.cli.quantize import describe, manifest_json, plan_json, show_manifest, show_plan
from phi4local.units import duration, file_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", metavar="NAME[:BUILD]", help="a model, such as phi-4 (then what `fit` recommends)")
    parser.add_argument(
        "--from",
        dest="source",
        choices=(READY, OFFICIAL),
        help="a published build, or the official weights (default: a published one that is verified and unflawed)",
    )
    parser.add_argument("--keep-source", action="store_true", help="keep the official weights, too")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be fetched and made (the headers are kept)"
    )
    parser.add_argument("--offline", action="store_true", help="use only what is here, no network")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Choose, then pull unless only the plan is wanted."""
    choice = choose(args.name, args.source, offline=args.offline)
    is_new = not choice.target.exists()
    if choice.why and (is_new or args.dry_run):
        output.say(choice.why)
    if choice.ready and is_mlx(choice.build) and is_new and not is_installed():
        output.say(f"MLX, which runs this build, is not installed: {INSTALL}")
    if args.dry_run:
        _show(choice, output.with_progress(preview(choice, offline=args.offline), describe), as_json=args.json)
        return 0
    origin = choice.ready.repository if choice.ready else f"{choice.model.repository}, built as it arrives"
    if is_new and not args.offline:
        output.say(f"Pulling {choice.label} from {origin}")
    start = time.monotonic()
    work = pull(choice, args.source, keep_source=args.keep_source, offline=args.offline)
    try:
        pulled = output.with_progress(work, describe)
    except KeyboardInterrupt:
        output.say("\nStopped; the same command goes on from here")
        raise
    seconds = time.monotonic() - start
    if args.json:
        output.emit_json(_result(pulled, seconds))
        return 0
    show_manifest(pulled.build)
    output.say(_summary(pulled, seconds))
    return 0


def _result(pulled: Pulled, seconds: float) -> dict[str, Any]:
    """The contract's object."""
    return manifest_json(pulled.build) | {
        "downloaded_bytes": pulled.received_bytes,
        "resumed_bytes": pulled.resumed_bytes,
        "seconds": round(seconds, 3),
    }


def _summary(pulled: Pulled, seconds: float) -> str:
    chat = f"`phi4local chat {pulled.build.label}` talks to it"
    if pulled.was_here:
        return f"It is here already, undamaged; {chat}"
    resumed = f", {file_size(pulled.resumed_bytes)} done by an earlier run" if pulled.resumed_bytes else ""
    return f"Done in {duration(seconds)}, {file_size(pulled.received_bytes)} fetched{resumed}; {chat}"


def _show(choice: Choice, found: Preview, *, as_json: bool) -> None:
    files = [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in found.files]
    source = {"repo": found.repository, "revision": found.revision, "files": files}
    if as_json:
        made = plan_json(choice.model.name, found.plan, choice.target) if found.plan else {}
        only = {"name": choice.model.name, "build": choice.build, "path": str(choice.target), "dry_run": True}
        size = {} if found.plan else {"bytes": found.fetched_bytes}
        output.emit_json(only | size | made | {"source": source})
        return
    if found.plan:
        show_plan(choice.model.name, found.plan, choice.target)
    else:
        output.record([("Name", choice.label), ("Folder" if is_mlx(choice.build) else "File", str(choice.target))])
    total = file_size(sum(file.bytes for file in found.files))
    output.record(
        [
            ("From", f"{found.repository} at {found.revision}"),
            ("To fetch", f"{total} in {len(found.files)} files"),
            *((f"  {file.name}", f"{file_size(file.bytes)}  {file.sha256 or ''}") for file in found.files),
        ]
    )
