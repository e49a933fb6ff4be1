"""How fast a build will be: from what was measured once on this machine to tokens per second. Pure.

    one token, from memory    token + layers x layer + sum over types of bytes / rate     seconds
    one token of a prompt     sum over types of weights / prompt rate                     seconds
    layers on a card          bytes / (its memory's bandwidth x CARD_SHARE)               seconds

Every weight is read once for a token, but the embedding's table, of which one row is read. A benchmark of a build on
this machine corrects what follows.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from phi4local.fit import HOST, Placement
from quant.ggml import TYPES

# What generation with llama.cpp reaches of the bandwidth in a card's data sheet before a benchmark tells better.
CARD_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one tensor type: bytes of weights that a token reads, and weights that a token of a prompt uses, a second."""

    generation: float
    prompt: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What the processor does with each type, and what a token and a layer cost whatever their size."""

    token_seconds: float
    layer_seconds: float
    types: Mapping[str, Rate]


@dataclass(frozen=True, slots=True)
class Work:
    """What the processor has to do for a token: layers, and bytes by type. Types without blocks are not counted."""

    layers: int
    bytes_by_type: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second; None: nothing is known that would tell."""

    generation_tps: float | None = None
    prompt_tps: float | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One measurement on this machine, and what had been predicted from `Rates` alone."""

    name: str
    build: str
    where: str
    predicted: Speed
    measured: Speed


def work_of(tensors: Mapping[str, tuple[str, int]], layers: int, gpu_layers: int) -> Work:
    """The processor's part of a model whose `tensors` are name -> (type, bytes), matrices only."""
    first_on_card = layers + 1 - gpu_layers
    tied = "output.weight" not in tensors
    found: dict[str, int] = {}
    for name, (kind, size_bytes) in tensors.items():
        if name == "token_embd.weight" and not tied:
            continue
        layer = int(name.split(".")[1]) if name.startswith("blk.") else layers
        if layer < first_on_card:
            found[kind] = found.get(kind, 0) + size_bytes
    return Work(min(layers, first_on_card), found)


def predict(rates: Rates | None, work: Work, placement: Placement, bandwidths: Mapping[str, int]) -> Speed:
    """What to expect at the beginning of a conversation; `bandwidths` of the cards in bytes per second."""
    seconds = 0.0
    for device, use in placement.memory.items():
        if device != HOST and use.weights_bytes:
            if device not in bandwidths:
                return Speed()
            seconds += use.weights_bytes / (bandwidths[device] * CARD_SHARE)
    if not work.bytes_by_type:
        return Speed(1 / seconds if seconds else None)
    if rates is None:
        return Speed()
    prompt = sum(_weights(kind, size) / _rate(rates, kind).prompt for kind, size in work.bytes_by_type.items())
    seconds += rates.token_seconds + work.layers * rates.layer_seconds
    seconds += sum(size / _rate(rates, kind).generation for kind, size in work.bytes_by_type.items())
    return Speed(1 / seconds, 1 / prompt if not placement.gpu_layers else None)


def _weights(kind: str, size_bytes: int) -> float:
    return size_bytes / TYPES[kind].block_bytes * TYPES[kind].block_weights


def _rate(rates: Rates, kind: str) -> Rate:
    """A type's rate; one that was not measured counts as the slowest that was."""
    return rates.types.get(kind) or min(rates.types.values(), key=lambda rate: rate.generation)


def corrected(speed: Speed, name: str, build: str, where: str, benchmarks: Sequence[Benchmark]) -> Speed:
    """The prediction after what benchmarks have shown: of this build, else of other builds in the same place."""
    same = [one for one in benchmarks if (one.name, one.build, one.where) == (name, build, where)]
    alike = same or [one for one in benchmarks if one.where == where]
    return Speed(
        _scaled(speed.generation_tps, [(one.measured.generation_tps, one.predicted.generation_tps) for one in alike]),
        _scaled(speed.prompt_tps, [(one.measured.prompt_tps, one.predicted.prompt_tps) for one in alike]),
    )


def _scaled(tps: float | None, pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    ratios = [measured / predicted for measured, predicted in pairs if measured and predicted]
    return tps * statistics.median(ratios) if tps and ratios else tps
