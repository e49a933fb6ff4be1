"""`phi4local bench`: how fast a build is on this machine, against what was predicted."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from phi4local.actions.bench import Result, Round, bench
from phi4local.cli import output
from phi4local.cli.arguments import add_context
from phi4local.cli.fit import percent, rate


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="NAME|PATH",
        help="a build, a .gguf file or an MLX folder (default: the newest model's best)",
    )
    add_context(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Measure, then compare."""
    work = bench(args.model, context_tokens=args.context, kv_type=args.kv)
    result = output.with_progress(work, _describe, counted=True)
    if args.json:
        output.emit_json(result_json(result))
    else:
        show(result)
    return 0


def _describe(event: Round) -> output.Bar:
    return output.Bar("Measuring", event.number, event.rounds)


def result_json(result: Result) -> dict[str, Any]:
    """Measured, predicted from the machine's rates, and expected after earlier benchmarks."""
    expected, measured = result.expected.generation_tps, result.benchmark.measured.generation_tps
    return {
        "name": result.benchmark.name,
        "build": result.benchmark.build,
        "where": result.benchmark.where,
        "prompt_tokens": result.prompt_tokens,
        "generation_tokens": result.generation_tokens,
        "measured": dataclasses.asdict(result.benchmark.measured),
        "predicted": dataclasses.asdict(result.benchmark.predicted),
        "expected": dataclasses.asdict(result.expected),
        "error": expected / measured - 1 if expected and measured else None,
        "slowest_tps": result.slowest_tps,
        "fastest_tps": result.fastest_tps,
    }


def show(result: Result) -> None:
    """Both speeds for people."""
    measured, expected = result.benchmark.measured, result.expected
    rows = [
        ("generation", measured.generation_tps, expected.generation_tps, result.generation_tokens),
        ("prompt", measured.prompt_tps, expected.prompt_tps, result.prompt_tokens),
    ]
    output.heading(f"{result.label}, tokens per second")
    output.table(
        ("", "measured", "predicted", "error", "tokens"),
        [
            [name, rate(got or 0), rate(told) if told else "?", percent(told, got), str(n)]
            for name, got, told, n in rows
        ],
        right=(1, 2, 3, 4),
    )
    output.say(
        f"Generation from {rate(result.slowest_tps)} to {rate(result.fastest_tps)} in the rounds; "
        "later predictions on this machine use this"
    )
