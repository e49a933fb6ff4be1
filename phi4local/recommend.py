"""Which build to take: the best quality that fits wholly in the fastest memory. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from phi4local.fit import HOST, Memory, Use, Where, is_metal, total
from phi4local.speed import Speed
from phi4local.units import memory as memory_text

# From best to worst by KL divergence from the original, as the README of llama.cpp's perplexity tool gives it for
# Llama 3 8B: Q8_0 0.001, Q6_K 0.005, Q5_K_M 0.011, Q4_K_M 0.031, Q4_0 0.072, Q3_K_M 0.10, Q2_K above 0.33. Builds in
# one row are so close that the larger context decides.
QUALITY = (
    ("BF16", "F16", "Q8_0"),
    ("Q6_K",),
    ("Q5_K_M",),
    ("Q5_K_S",),
    ("Q5_0",),
    ("Q4_K_M",),
    ("Q4_K_S",),
    ("IQ4_NL", "IQ4_XS"),
    ("Q4_1", "Q4_0"),
    ("Q3_K_L",),
    ("Q3_K_M",),
    ("Q3_K_S",),
    ("Q2_K",),
)
_RANK = {build: rank for rank, builds in enumerate(QUALITY) for build in builds}


@dataclass(frozen=True, slots=True)
class BuildFit:
    """One build of a model on one machine. `most_context` is the largest that fits in the same place.

    `predicted` is from the machine's rates alone, `expected` knows what benchmarks have shown.
    """

    build: str
    format: str
    file_bytes: int
    memory: Memory
    where: Where
    gpu_layers: int = 0
    short_bytes: int = 0
    most_context: int = 0
    predicted: Speed = field(default_factory=Speed)
    expected: Speed = field(default_factory=Speed)
    measured: Speed = field(default_factory=Speed)
    installed: bool = False
    ready_made: str = ""  # the repository and file of a published one
    note: str = ""

    @property
    def total(self) -> Use:
        return total(self.memory)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A build, or None where nothing fits, and the reason in a sentence."""

    build: str | None
    why: str


def recommend(builds: Sequence[BuildFit], context: int) -> Recommendation:
    """The best of these builds at this context.

    Wholly on the cards comes before anything that the main memory has a part in; then quality; then the larger
    context, where the context and the layers do not compete for a card; then the smaller file.
    """
    known = [build for build in builds if build.format == "gguf" and build.memory]
    fitting = [build for build in known if build.where != "none"]
    if not fitting:
        return Recommendation(None, _nothing(known, context))
    on_cards = [build for build in fitting if build.where == "gpu"]
    best = min(on_cards or fitting, key=_order)
    if len(known) == 1:
        return Recommendation(best.build, f"{best.build} fits {_place(best, context)}")
    others = [build for build in known if build is not best and _rank(build) <= _rank(best)]
    return Recommendation(best.build, _reason(best, others, context))


def _rank(build: BuildFit) -> int:
    return _RANK.get(build.build, len(_RANK))


def _order(build: BuildFit) -> tuple[int, bool, int, int]:
    split = build.where == "split"
    return _rank(build), not split, 0 if split else -build.most_context, build.file_bytes


def _place(build: BuildFit, context: int) -> str:
    size = memory_text(build.total.total_bytes)
    return f"wholly {_memory_of(build)} with a context of {context} tokens ({size})"


def _memory_of(build: BuildFit) -> str:
    cards = [device for device in build.memory if device != HOST]
    card = f"graphics card{'s' if len(cards) > 1 else ''}"
    if build.where == "cpu":
        return "in the main memory"
    if build.where == "split":
        return f"into the {card} and the main memory together"
    return "in the memory that Metal may use" if any(map(is_metal, cards)) else f"on the {card}"


def _reason(best: BuildFit, better: Sequence[BuildFit], context: int) -> str:
    """Why the best is the best, and why what is better in quality is not."""
    said = f"{best.build} is the best quality that fits {_place(best, context)}"
    equal = [build for build in better if _rank(build) == _rank(best) and build.where == best.where]
    above = [build for build in better if _rank(build) < _rank(best)]
    if equal:
        return f"{said}; {' and '.join(build.build for build in equal)} would be no better and take more"
    if not above:
        return said
    next_best = max(above, key=_rank)
    said += f"; {next_best.build} would need {memory_text(next_best.total.total_bytes)}"
    return said if next_best.where == "none" else f"{said} and go {_memory_of(next_best)}"


def _nothing(builds: Sequence[BuildFit], context: int) -> str:
    if not builds:
        return "No build that can be run here was asked about"
    least = min(builds, key=lambda build: build.short_bytes)
    return (
        f"Nothing fits with a context of {context} tokens: even {least.build} needs "
        f"{memory_text(least.total.total_bytes)}, {memory_text(least.short_bytes)} more than can be used"
    )
