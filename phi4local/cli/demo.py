"""`phi4local demo`: the whole job on the built-in tiny model, offline."""

from __future__ import annotations

import argparse
import dataclasses
import time

from phi4local.actions.demo import Answered, ask_nano, build_nano
from phi4local.actions.probe import look
from phi4local.cli import output, probe
from phi4local.cli.quantize import describe, result_json, show_manifest
from phi4local.units import duration


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Probe, build with repairs, ask, answer."""
    start = time.monotonic()
    machine = look()
    if not args.json:
        output.heading("1. This machine")
        probe.show(machine)
        output.heading("2. From official weights to a repaired build")
    begun = time.monotonic()
    build, built = output.with_progress(build_nano(), describe)
    seconds = time.monotonic() - begun
    if not args.json:
        show_manifest(build)
        output.heading("3. Questions and answers")
    answers = []
    for item in ask_nano(build):
        if isinstance(item, str):
            output.say(f"note: {item}")
            continue
        answers.append(item)
        if not args.json:
            _show(item)
    if args.json:
        result = result_json(build, built, seconds)
        output.emit_json(
            {
                "machine": probe.machine_json(machine),
                "build": result,
                "answers": [dataclasses.asdict(a) for a in answers],
            }
        )
    else:
        output.say(f"\nAll of it in {duration(time.monotonic() - start)}. Now talk to it: phi4local chat {build.label}")
    return 0


def _show(answered: Answered) -> None:
    stats = answered.stats
    facts = f"{stats.generation_tokens} tokens, first after {duration(stats.ttft_seconds)}"
    output.record([("you", answered.question), ("nano", f"{answered.text}   [{facts}]")])
