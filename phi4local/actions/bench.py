"""How fast a build really is on this machine, against what was predicted; remembered for later predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass

from hardware.probe import probe
from hardware.report import Report
from phi4local.actions.chat import Located, Wish, locate, open_located
from phi4local.actions.fit import ask, bandwidths, main_room
from phi4local.actions.fit_mlx import Asked, folder_row, ground_of, shape_of_folder
from phi4local.actions.model_files import is_folder
from phi4local.backends.safe_mode import machine_and_build
from phi4local.backends.survey import Question, Wanted
from phi4local.engine import DEFAULT_CONTEXT_TOKENS, Engine, Timing
from phi4local.fit import Room
from phi4local.measured import keep_benchmark, read_measured
from phi4local.settings import home_folder
from phi4local.speed import Benchmark, Speed, corrected, mlx_place_of, place_of, predict

_ROUNDS, _MOST_ROUNDS = 5, 20
_SECONDS = 2.0  # what a round's generation, and its prompt, should take at most, and all rounds at least
_MOST_PROMPT, _LEAST_PROMPT = 512, 32
_MOST_GENERATION, _LEAST_GENERATION = 128, 8


@dataclass(frozen=True, slots=True)
class Round:
    """One round is done."""

    number: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured, the generation's slowest and fastest round, and what earlier benchmarks let expect.

    The upper quartile of the rounds counts: what else runs on the machine only ever slows them.
    """

    label: str
    prompt_tokens: int
    generation_tokens: int
    benchmark: Benchmark
    expected: Speed
    slowest_tps: float
    fastest_tps: float


def bench(
    name: str | None, *, context_tokens: int | None = None, kv_type: str = "f16"
) -> Generator[Round, None, Result]:
    """Measure a build of the store, a .gguf file or an MLX folder (the errors of `open_model`)."""
    located = locate(name, context_tokens=context_tokens, kv_type=kv_type)
    expected, predicted, where = _predictions(located, context_tokens, kv_type)  # before anything else keeps it busy
    opened = open_located(located, context_tokens=context_tokens, kv_type=kv_type)
    with contextlib.closing(opened.engine):
        prompt_tokens, generation_tokens = _sizes(opened.engine)
        first = opened.engine.time_tokens(prompt_tokens, generation_tokens)
        wanted = round(_SECONDS / (first.prompt_seconds + first.generation_seconds))
        rounds = min(_MOST_ROUNDS, max(_ROUNDS, wanted))
        timings = []
        for number in range(rounds):
            timings.append(opened.engine.time_tokens(prompt_tokens, generation_tokens))
            yield Round(number + 1, rounds)
    generation = sorted(generation_tokens / timing.generation_seconds for timing in timings)
    prompt = sorted(prompt_tokens / timing.prompt_seconds for timing in timings)
    measured = Speed(generation[len(timings) * 3 // 4], prompt[len(timings) * 3 // 4])
    benchmark = Benchmark(located.key, located.build, where, predicted, measured)
    keep_benchmark(machine_and_build(), benchmark)
    return Result(opened.label, prompt_tokens, generation_tokens, benchmark, expected, generation[0], generation[-1])


def _predictions(located: Located, context_tokens: int | None, kv_type: str) -> tuple[Speed, Speed, str]:
    """With what earlier benchmarks have shown, from the rates alone, and where the build goes."""
    report = probe(home_folder())
    main = main_room(report.memory)
    if is_folder(located.path):
        return _mlx_predictions(located, report, main, Wish(context_tokens, kv_type))
    wanted = (Wanted(located.build, path=located.path),)
    found, measured = ask(Question(None, wanted, main, context_tokens, kv_type, calibrate=True))
    if not found.builds:
        raise found.problems[0][1]
    one = found.builds[0]
    predicted = predict(measured.rates, one.work, one.placement, bandwidths(report, found.engine))
    where = place_of(one.placement)
    return corrected(predicted, located.key, located.build, where, measured.benchmarks), predicted, where


def _mlx_predictions(located: Located, report: Report, main: Room, wish: Wish) -> tuple[Speed, Speed, str]:
    """The same of an MLX folder, from the bandwidth of Apple's memory; elsewhere nothing is known before."""
    known = read_measured(machine_and_build()).benchmarks
    shape = shape_of_folder(located.path)
    context = wish.context_tokens or min(shape.context, DEFAULT_CONTEXT_TOKENS)
    asked = Asked(shape, context, wish.kv_type, ground_of(report, [main]), located.key, known)
    row = folder_row(asked, located.build, located.path)
    return row.expected, row.predicted, mlx_place_of(row)


def _sizes(engine: Engine) -> tuple[int, int]:
    """How many tokens to read and to generate: as many as a first short round says this machine does in time."""
    engine.time_tokens(_LEAST_PROMPT, 2)  # the weights come from the disk
    first: Timing = engine.time_tokens(_LEAST_PROMPT, _LEAST_GENERATION)
    prompt = round(_LEAST_PROMPT * _SECONDS / first.prompt_seconds)
    generation = round(_LEAST_GENERATION * _SECONDS / first.generation_seconds)
    room = engine.info.context_tokens // 2
    return (
        min(room, _MOST_PROMPT, max(_LEAST_PROMPT, prompt)),
        min(room, _MOST_GENERATION, max(_LEAST_GENERATION, generation)),
    )
