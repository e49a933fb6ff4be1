"""`phi4local import`: take in a GGUF that another program has brought here, without copying it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from phi4local.actions.adopt import HARD, Adopted, adopt, found_here, mended_from
from phi4local.cli import output
from phi4local.cli.quantize import describe, manifest_json, show_manifest
from phi4local.foreign import Found, shown
from phi4local.units import file_size


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", nargs="?", type=Path, help="a GGUF (default: list what other programs have here)")
    parser.add_argument("--name", metavar="NAME[:BUILD]", help="what to call it (default: what it says of itself)")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Import one file, or list those that could be."""
    if args.path is None:
        _list(args.json)
        return 0
    adopted = output.with_progress(adopt(args.path, args.name), describe)
    _tell_flaws(adopted)
    if args.json:
        output.emit_json(manifest_json(adopted.build) | {"link": adopted.link, "was_here": adopted.link is None})
        return 0
    if adopted.link is None:
        output.say(f"{adopted.build.label} is here already; nothing was done")
    show_manifest(adopted.build, [("Link", _LINKS[adopted.link == HARD])] if adopted.link else ())
    return 0


_LINKS = {
    True: "hard: the file stays until the other program and this one have both removed it",
    False: "symbolic: the build is gone when the other program deletes its file",
}


def _list(as_json: bool) -> None:
    here = found_here()
    if as_json:
        output.emit_json([_json(found, label) for found, label in here])
    elif here:
        rows = [
            (one.program, one.model, file_size(one.bytes), _state(one, label), shown(one.path)) for one, label in here
        ]
        output.table(("PROGRAM", "MODEL", "SIZE", "IMPORTED", "FILE"), rows, right=(2,))
        output.say("`phi4local import FILE` takes one in, without copying it")
    else:
        output.say("Ollama, LM Studio and the Hugging Face cache have no GGUF here; `phi4local import FILE` takes any")


def _state(found: Found, label: str | None) -> str:
    return label or ("cannot be loaded" if found.problem else "no")


def _json(found: Found, label: str | None) -> dict[str, Any]:
    return {
        "program": found.program,
        "model": found.model,
        "path": shown(found.path),
        "bytes": found.bytes,
        "architecture": found.architecture,
        "is_phi": found.is_phi,
        "imported": label,
        "problem": found.problem,
    }


def _tell_flaws(adopted: Adopted) -> None:
    """What is wrong with the file's metadata, and how to get one without it."""
    if not adopted.flaws:
        return
    output.say("note: its metadata has flaws; they stay, since the file belongs to another program too")
    for flaw in adopted.flaws:
        output.say(f"  {flaw.key.removeprefix('tokenizer.')}: {flaw.why}")
    label = adopted.build.label
    if place := mended_from(adopted.build):
        output.say(f"hint: `phi4local pull {label} --from {place}` gets a mended one in its place")
