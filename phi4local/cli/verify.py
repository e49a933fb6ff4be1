"""`phi4local verify`: whether builds are still what their manifests say."""

from __future__ import annotations

import argparse
from pathlib import Path

from phi4local.actions.verify import verify
from phi4local.catalog import find_model
from phi4local.cli import output
from phi4local.errors import FormatError
from quant.progress import Progress


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", nargs="?", help="NAME, NAME:BUILD or a path (default: every build)")
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Hash and compare; damage ends with the exit code of a file that is not what it claims."""
    verdict = output.with_progress(verify(args.name), _describe)
    if args.json:
        output.emit_json(
            {
                "checked": verdict.checked,
                "damaged": [
                    {"path": str(d.path), "expected": d.expected, "got": d.got, "problem": d.problem}
                    for d in verdict.damaged
                ],
            }
        )
    else:
        for build in dict.fromkeys(damage.build for damage in verdict.damaged):
            for damage in (one for one in verdict.damaged if one.build == build):
                output.say(f"damaged: {damage.path}: {damage.problem}")
            output.say(f"hint: {_again(build)}")
        output.say(f"{verdict.checked} checked, {len(verdict.damaged)} damaged")
    return FormatError.exit_code if verdict.damaged else 0


def _again(path: Path) -> str:
    """How a build of the store is had again."""
    name = path.parent.name
    build = path.name.removesuffix(".gguf").removeprefix(f"{name}-")
    if find_model(name):
        return f"phi4local pull {name}:{build}"
    return f"phi4local quantize FOLDER --to {build} --force"


def _describe(event: Progress) -> output.Bar:
    return output.Bar(event.stage, event.done_bytes, event.total_bytes)
