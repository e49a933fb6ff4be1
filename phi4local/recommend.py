"""Which build to take: the best quality that fits wholly in the fastest memory. Pure.

Of GGUF and MLX the first, unless both were measured on this machine in the same quality and MLX is the faster one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from phi4local.fit import HOST, Memory, Use, Where, is_metal, total
from phi4local.speed import Speed
from phi4local.units import memory as memory_text

# From best to worst by KL divergence from the original, as the README of llama.cpp's perplexity tool gives it for
# Llama 3 8B: Q8_0 0.001, Q6_K 0.005, Q5_K_M 0.011, Q4_K_M 0.031, Q4_0 0.072, Q3_K_M 0.10, Q2_K above 0.33. Builds in
# one row are so close that the larger context decides.
# No MLX build was measured here: each stands where its bits per weight put it. mlx-lm rounds to the nearest in groups
# of 64, where llama.cpp's K builds have groups of 16 or 32 and fit their scales, so with as many bits the plain ones
# stand a row or two lower. Only mixed-4-6 mixes as Q4_K_M does, with the same 4.9 bits; mxfp4 has the coarsest scales.
QUALITY = (
    ("BF16", "F16", "Q8_0", "mlx-bf16", "mlx-8bit"),
    ("Q6_K", "mlx-6bit"),
    ("Q5_K_M",),
    ("Q5_K_S",),
    ("Q5_0", "mlx-5bit"),
    ("Q4_K_M", "mlx-mixed-4-6"),
    ("Q4_K_S",),
    ("IQ4_NL", "IQ4_XS"),
    ("Q4_1", "Q4_0", "mlx-4bit"),
    ("mlx-mxfp4",),
    ("Q3_K_L",),
    ("Q3_K_M", "mlx-mixed-3-6"),
    ("Q3_K_S", "mlx-mixed-3-4"),
    ("mlx-3bit",),
    ("Q2_K",),
    ("mlx-mixed-2-6",),
    ("mlx-2bit",),
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
    is_astray: bool = False  # it runs here, but this machine is not what its format is for

    @property
    def total(self) -> Use:
        return total(self.memory)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A build, or None where nothing fits, and the reason in a sentence; `beside`: what else is to be said of MLX."""

    build: str | None
    why: str
    beside: str = ""


def worth_a_row(builds: Sequence[BuildFit]) -> list[BuildFit]:
    """All but what is astray and not here, unless that is all there is."""
    return [build for build in builds if not build.is_astray or build.installed] or list(builds)


def recommend(builds: Sequence[BuildFit], context: int, name: str = "") -> Recommendation:
    """The best of these builds at this context; `name` is the model's, for the command that measures one.

    Wholly on the cards comes before anything that the main memory has a part in; then quality; then the larger
    context, where the context and the layers do not compete for a card; then the smaller file. MLX builds are among
    them where nothing else was asked about, and those that this machine is for where no GGUF fits.
    """
    gguf = [build for build in builds if build.format == "gguf"]
    known = [build for build in gguf or builds if build.memory]
    fitting = [build for build in known if build.where != "none"]
    if not fitting:
        spare = [build for build in builds if build.format == "mlx" and not build.is_astray] if gguf else []
        if any(build.where != "none" for build in spare):
            return recommend(spare, context, name)
        return Recommendation(None, _nothing(known, context))
    on_cards = [build for build in fitting if build.where == "gpu"]
    best = min(on_cards or fitting, key=_order)
    if len(known) == 1:
        why = f"{best.build} fits {_place(best, context)}"
    else:
        others = [build for build in known if build is not best and _rank(build) <= _rank(best)]
        why = _reason(best, others, context)
    mlx = [build for build in builds if build.format == "mlx" and build.where == "gpu" and not build.is_astray]
    return (
        _beside(Recommendation(best.build, why), best, mlx, name) if gguf and mlx else Recommendation(best.build, why)
    )


def _beside(found: Recommendation, best: BuildFit, mlx: Sequence[BuildFit], name: str) -> Recommendation:
    """The MLX build that was measured to be faster than the GGUF of the same quality, or what is known of MLX."""
    rivals = [one for one in mlx if _rank(one) == _rank(best)] or [one for one in mlx if _rank(one) > _rank(best)]
    timed = [one for one in rivals if one.measured.generation_tps]
    rival = max(timed, key=_tps) if timed else min(rivals, key=_order, default=None)
    if rival is None:
        return found
    unmeasured = [one.build for one in (rival, best) if not _tps(one)]
    if unmeasured:
        commands = " and ".join(f"`phi4local bench {name}:{build}`" for build in unmeasured) if name else "bench"
        return replace(found, beside=f"Whether MLX is faster was not measured here; {commands} would tell")
    told = f"measured here: MLX {_tps(rival):.3g} tok/s, GGUF {_tps(best):.3g} tok/s"
    if _tps(rival) <= _tps(best):
        return replace(found, beside=f"{rival.build} is no faster; {told}")
    if _rank(rival) > _rank(best):
        return replace(found, beside=f"{rival.build} is faster and of lower quality; {told}")
    size = memory_text(rival.total.total_bytes)
    return Recommendation(rival.build, f"{rival.build} ({size}) is as good as {best.build} and faster; {told}")


def _tps(build: BuildFit) -> float:
    return build.measured.generation_tps or 0.0


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
