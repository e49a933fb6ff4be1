"""How fast a build will be: from what was measured once on this machine to tokens per second. Pure.

    one token, from memory    token + sum over layers and output of what their type takes for so many bytes
    one token of a prompt     the same for so many weights, without the output
    layers on a card          bytes / (its memory's bandwidth x CARD_SHARE)

Every weight is read once for a token, but the embedding's table, of which one row is read. A benchmark of a build on
this machine corrects what follows.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from phi4local.fit import HOST, Placement
from quant.ggml import TYPES

# What generation with llama.cpp reaches of the bandwidth in a card's data sheet before a benchmark tells better; for
# MLX, which nobody has measured here, it is taken over.
CARD_SHARE = 0.7
_SIMILAR = 8.0  # speeds that differ by less have the same bottleneck


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds of a layer by its size, bytes or weights: straight between two measured sizes, and straight on beyond."""

    small: tuple[float, float]  # size, seconds
    large: tuple[float, float]
    beyond: float  # seconds for each unit of size above the large one

    def seconds(self, size: float) -> float:
        """Of one layer."""
        if size > self.large[0]:
            return self.large[1] + (size - self.large[0]) * self.beyond
        slope = (self.large[1] - self.small[1]) / (self.large[0] - self.small[0])
        seconds = self.small[1] + (size - self.small[0]) * slope
        return seconds if size >= self.small[0] else max(seconds, self.small[1] * size / self.small[0])


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one tensor type: a token by the bytes of its weights, and a token of a prompt by their number."""

    generation: Curve
    prompt: Curve


@dataclass(frozen=True, slots=True)
class Rates:
    """What the processor does with each type, and what a token costs whatever the model."""

    token_seconds: float
    types: Mapping[str, Rate]


@dataclass(frozen=True, slots=True)
class Work:
    """The processor's part of a token: layers with their bytes by type, and those of the output.

    A prompt has an output for its last token only, which is not counted there.
    """

    layers: int
    layer_bytes: Mapping[str, int]
    output_bytes: Mapping[str, int]


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
    head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    in_layers: dict[str, int] = {}
    for name, (kind, size_bytes) in tensors.items():
        if name.startswith("blk.") and int(name.split(".")[1]) < first_on_card:
            in_layers[kind] = in_layers.get(kind, 0) + size_bytes
    kind, size_bytes = tensors[head]
    return Work(min(layers, first_on_card), in_layers, {kind: size_bytes} if first_on_card > layers else {})


def bandwidth(rates: Rates) -> float:
    """Bytes of weights that the processor reads from the main memory in a second, with the type that slows it least."""
    return 1 / min(rate.generation.beyond for rate in rates.types.values())


def predict(rates: Rates | None, work: Work, placement: Placement, bandwidths: Mapping[str, int]) -> Speed:
    """What to expect at the beginning of a conversation; `bandwidths` of the cards in bytes per second."""
    seconds = 0.0
    for device, use in placement.memory.items():
        if device != HOST and use.weights_bytes:
            if device not in bandwidths:
                return Speed()
            seconds += use.weights_bytes / (bandwidths[device] * CARD_SHARE)
    if not work.layer_bytes:
        return Speed(1 / seconds if seconds else None)
    if rates is None:
        return Speed()
    total_bytes = sum(work.layer_bytes.values())
    prompt_seconds = 0.0
    seconds += rates.token_seconds
    for kind, size_bytes in work.layer_bytes.items():
        layers = work.layers * size_bytes / total_bytes  # as if each layer were of one type
        rate = _rate(rates, kind)
        seconds += layers * rate.generation.seconds(size_bytes / layers)
        prompt_seconds += layers * rate.prompt.seconds(_weights(kind, size_bytes) / layers)
    seconds += sum(_rate(rates, kind).generation.seconds(size) for kind, size in work.output_bytes.items())
    return Speed(1 / seconds, 1 / prompt_seconds if not placement.gpu_layers else None)


def _weights(kind: str, size_bytes: int) -> float:
    return size_bytes / TYPES[kind].block_bytes * TYPES[kind].block_weights


def _rate(rates: Rates, kind: str) -> Rate:
    """A type's rate; one that was not measured counts as the slowest that was."""
    return rates.types.get(kind) or max(rates.types.values(), key=lambda rate: rate.generation.beyond)


def corrected(speed: Speed, name: str, build: str, where: str, benchmarks: Sequence[Benchmark]) -> Speed:
    """The prediction after what benchmarks have shown: of this very build, else of those of a similar speed.

    What makes a tiny model slower than predicted says nothing about a large one.
    """
    there = [one for one in benchmarks if one.where == where]
    for one in there:
        if (one.name, one.build) == (name, build):
            return Speed(
                one.measured.generation_tps or speed.generation_tps, one.measured.prompt_tps or speed.prompt_tps
            )
    alike = [one for one in there if _are_similar(one.predicted.generation_tps, speed.generation_tps)]
    return Speed(
        _scaled(speed.generation_tps, [(one.measured.generation_tps, one.predicted.generation_tps) for one in alike]),
        _scaled(speed.prompt_tps, [(one.measured.prompt_tps, one.predicted.prompt_tps) for one in alike]),
    )


class Placed(Protocol):
    """Where something goes, and with how many layers on cards."""

    @property
    def where(self) -> str: ...

    @property
    def gpu_layers(self) -> int: ...


def place_of(placement: Placed) -> str:
    """Where a benchmark was run: layers on a card make a difference."""
    return f"split {placement.gpu_layers}" if placement.where == "split" else placement.where


def mlx_place_of(placement: Placed) -> str:
    """The same for MLX, in words of its own: what llama.cpp reaches of a machine says nothing about MLX."""
    return {"gpu": "MLX on Metal", "cpu": "MLX on the processor"}.get(placement.where, placement.where)


def predict_streaming(read_bytes: int, bandwidth: int | None) -> Speed:
    """Of a model that is read for each token from a memory of this bandwidth, if that is known."""
    return Speed(bandwidth * CARD_SHARE / read_bytes) if bandwidth and read_bytes else Speed()


def _are_similar(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and 1 / _SIMILAR < one / other < _SIMILAR


def _scaled(tps: float | None, pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    ratios = [measured / predicted for measured, predicted in pairs if measured and predicted]
    return tps * statistics.median(ratios) if tps and ratios else tps
