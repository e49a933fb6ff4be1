"""Which build is recommended, and the sentence that says why."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4local.fit import HOST, Use, Where
from phi4local.recommend import QUALITY, BuildFit, Recommendation, recommend, worth_a_row
from phi4local.speed import Speed
from quant.ggml import BUILDS
from quant.mlx import BUILDS as MLX_BUILDS

GIB = 1 << 30
ON_CARD = "fits wholly on the graphics card with a context of 4096 tokens"
IN_MEMORY = "fits wholly in the main memory with a context of 4096 tokens"


def row(build: str, where: Where, gib: float, *, most_context: int = 16384, short_gib: float = 0) -> BuildFit:
    """A build that takes so much memory, and as much of the disk."""
    size = round(gib * GIB)
    return BuildFit(
        build=build,
        format="gguf",
        file_bytes=size,
        memory={HOST: Use(size - 3000, 2000), "CUDA0": Use(0, 0, 1000)},
        where=where,
        short_bytes=round(short_gib * GIB),
        most_context=most_context,
    )


def chosen(*builds: BuildFit) -> str | None:
    """What is recommended, whatever the order."""
    answers = {recommend(random.Random(seed).sample(builds, len(builds)), 4096).build for seed in range(6)}
    (answer,) = answers
    return answer


def test_every_build_has_a_quality() -> None:
    ranked = [build for builds in QUALITY for build in builds]
    assert sorted(ranked) == sorted((*BUILDS, *MLX_BUILDS))


def test_on_the_card_comes_before_quality() -> None:
    for elsewhere in ("split", "cpu", "none"):
        assert chosen(row("Q8_0", elsewhere, 16), row("Q2_K", "gpu", 5), row("Q3_K_S", "gpu", 6)) == "Q3_K_S"


def test_quality_comes_before_size_and_context() -> None:
    rows = [row(builds[0], "cpu", 20 - rank, most_context=256 * (rank + 1)) for rank, builds in enumerate(QUALITY)]
    for best in range(len(rows)):
        assert chosen(*rows[best:]) == QUALITY[best][0]
    assert chosen(row("Q6_K", "split", 12), row("Q5_K_M", "cpu", 10)) == "Q6_K"


def test_the_larger_context_decides_between_equals() -> None:
    assert chosen(row("BF16", "gpu", 29, most_context=8192), row("Q8_0", "gpu", 16)) == "Q8_0"
    assert chosen(row("Q4_0", "cpu", 8, most_context=4096), row("Q4_1", "cpu", 9, most_context=4352)) == "Q4_1"


def test_then_the_smaller_file() -> None:
    assert chosen(row("Q4_0", "split", 8, most_context=512), row("Q4_1", "split", 9, most_context=1024)) == "Q4_0"
    assert chosen(row("BF16", "gpu", 29), row("F16", "gpu", 29.1), row("Q8_0", "gpu", 16)) == "Q8_0"
    assert chosen(row("IQ4_NL", "cpu", 8.4), row("IQ4_XS", "cpu", 8)) == "IQ4_XS"


def test_what_nobody_has_ranked_comes_last() -> None:
    assert chosen(row("mine.gguf", "cpu", 20), row("Q2_K", "cpu", 5)) == "Q2_K"
    assert chosen(row("mine.gguf", "gpu", 20), row("Q2_K", "cpu", 5)) == "mine.gguf"


@st.composite
def tables(draw: st.DrawFn) -> list[BuildFit]:
    names = draw(st.lists(st.sampled_from(sorted(BUILDS)), unique=True, max_size=17))
    places: st.SearchStrategy[Where] = st.sampled_from(("gpu", "split", "cpu", "none"))
    return [
        row(name, draw(places), draw(st.integers(1, 4)), most_context=draw(st.sampled_from((256, 512))))
        for name in names
    ]


@given(tables())
def test_nothing_that_fits_beats_what_is_recommended(builds: list[BuildFit]) -> None:
    def rank(build: BuildFit) -> int:
        return next(rank for rank, names in enumerate(QUALITY) if build.build in names)

    def beats(one: BuildFit, other: BuildFit) -> bool:
        if (one.where == "gpu") != (other.where == "gpu"):
            return one.where == "gpu"
        if rank(one) != rank(other):
            return rank(one) < rank(other)
        if one.where != other.where:
            return False
        if one.where != "split" and one.most_context != other.most_context:
            return one.most_context > other.most_context
        return one.file_bytes < other.file_bytes

    fitting = [build for build in builds if build.where != "none"]
    answer = recommend(builds, 4096)
    assert (answer.build is None) == (not fitting)
    if fitting:
        best = next(build for build in fitting if build.build == answer.build)
        assert not any(beats(build, best) for build in fitting)
        assert answer.why.startswith(best.build)


def test_what_cannot_run_here_is_never_recommended() -> None:
    mlx = replace(row("mlx-8bit", "gpu", 16), format="mlx", is_astray=True)
    broken = BuildFit("Q8_0", "gguf", 0, {}, "none", note="a row of 1 weights")
    worst = row("Q2_K", "cpu", 5)
    assert chosen(mlx, broken, worst) == "Q2_K"
    assert recommend([broken, mlx, worst], 4096).why == f"Q2_K {IN_MEMORY} (5.00 GiB)"
    assert recommend([mlx, broken], 4096) == Recommendation(None, "No build that can be run here was asked about")
    assert recommend([], 4096).build is None


def mlx_row(build: str, gib: float, tps: float | None = None, **more: Any) -> BuildFit:
    """A build of Apple Silicon, measured or not."""
    return replace(row(build, "gpu", gib), format="mlx", measured=Speed(tps), **more)


def gguf_row(build: str, gib: float, tps: float | None = None) -> BuildFit:
    return replace(row(build, "gpu", gib), measured=Speed(tps))


def test_a_measurement_decides_between_formats_of_one_quality() -> None:
    slow, fast = gguf_row("Q8_0", 16, 35), mlx_row("mlx-8bit", 15.5, 41.04)
    found = recommend([slow, gguf_row("Q6_K", 12, 50), fast, mlx_row("mlx-4bit", 8, 70)], 4096, "phi-4")
    assert found.build == "mlx-8bit"
    assert found.why == (
        "mlx-8bit (15.5 GiB) is as good as Q8_0 and faster; measured here: MLX 41 tok/s, GGUF 35 tok/s"
    )
    found = recommend([slow, mlx_row("mlx-8bit", 15.5, 34.9)], 4096, "phi-4")
    assert (found.build, found.beside) == (
        "Q8_0",
        "mlx-8bit is no faster; measured here: MLX 34.9 tok/s, GGUF 35 tok/s",
    )


def test_a_faster_build_of_lower_quality_is_only_told_about() -> None:
    found = recommend([gguf_row("Q4_K_M", 9, 35), mlx_row("mlx-4bit", 8, 41)], 4096, "phi-4")
    assert found.build == "Q4_K_M"
    assert found.beside == ("mlx-4bit is faster and of lower quality; measured here: MLX 41 tok/s, GGUF 35 tok/s")


@pytest.mark.parametrize(
    ("gguf_tps", "mlx_tps", "commands"),
    [
        (None, None, "`phi4local bench phi-4:mlx-8bit` and `phi4local bench phi-4:Q8_0`"),
        (35, None, "`phi4local bench phi-4:mlx-8bit`"),
        (None, 41, "`phi4local bench phi-4:Q8_0`"),
    ],
)
def test_what_was_not_measured_is_said(gguf_tps: float | None, mlx_tps: float | None, commands: str) -> None:
    rows = [gguf_row("Q8_0", 16, gguf_tps), mlx_row("mlx-8bit", 15.5, mlx_tps), mlx_row("mlx-2bit", 5, 100)]
    found = recommend(rows, 4096, "phi-4")
    assert found.build == "Q8_0"
    assert found.beside == f"Whether MLX is faster was not measured here; {commands} would tell"
    assert recommend(rows[:1], 4096).beside == ""


def test_where_mlx_is_astray_it_is_taken_only_when_nothing_else_was_asked_about() -> None:
    astray = replace(mlx_row("mlx-8bit", 15.5, 41), where="cpu", is_astray=True)
    assert recommend([row("Q2_K", "cpu", 5), astray], 4096, "phi-4") == Recommendation(
        "Q2_K", f"Q2_K {IN_MEMORY} (5.00 GiB)"
    )
    assert recommend([astray], 4096).build == "mlx-8bit"
    assert worth_a_row([astray]) == [astray]
    assert worth_a_row([astray, slow := row("Q2_K", "cpu", 5)]) == [slow]
    assert worth_a_row([replace(astray, installed=True), slow]) == [replace(astray, installed=True), slow]


def test_where_no_gguf_fits_mlx_may() -> None:
    large, broken = row("Q2_K", "none", 6, short_gib=1), BuildFit("Q8_0", "gguf", 0, {}, "none", note="damaged")
    mlx = [mlx_row("mlx-2bit", 5), mlx_row("mlx-3bit", 5.5), replace(mlx_row("mlx-4bit", 8), where="none")]
    for gguf in ([large], [broken], [large, broken]):
        found = recommend([*gguf, *mlx], 4096, "phi-4")
        assert found.build == "mlx-3bit"
        assert found.why.endswith("(5.50 GiB); mlx-4bit would need 8.00 GiB")
        astray = [replace(one, is_astray=True) for one in mlx]
        assert recommend([*gguf, *astray], 4096, "phi-4").build is None
        assert recommend([*gguf, mlx[2]], 4096, "phi-4") == recommend(gguf, 4096, "phi-4")


REASONS = [
    ("alone", [row("Q4_K_M", "cpu", 10)], f"Q4_K_M {IN_MEMORY} (10.0 GiB)"),
    (
        "nothing is better",
        [row("Q8_0", "cpu", 16), row("Q6_K", "cpu", 12)],
        f"Q8_0 is the best quality that {IN_MEMORY} (16.0 GiB)",
    ),
    (
        "the next would be too large",
        [row("Q8_0", "none", 16), row("Q6_K", "none", 12), row("Q5_K_M", "cpu", 10.75), row("Q2_K", "cpu", 5)],
        f"Q5_K_M is the best quality that {IN_MEMORY} (10.8 GiB); Q6_K would need 12.0 GiB",
    ),
    (
        "the next would leave the card",
        [row("Q8_0", "cpu", 16), row("Q5_0", "split", 10.5), row("Q4_K_M", "gpu", 9.25)],
        f"Q4_K_M is the best quality that {ON_CARD} (9.25 GiB); "
        "Q5_0 would need 10.5 GiB and go into the graphics card and the main memory together",
    ),
    (
        "the next would go to the main memory",
        [row("Q6_K", "cpu", 12), row("Q2_K", "gpu", 5.5)],
        f"Q2_K is the best quality that {ON_CARD} (5.50 GiB); Q6_K would need 12.0 GiB and go in the main memory",
    ),
    (
        "equals",
        [row("BF16", "gpu", 28), row("F16", "gpu", 28), row("Q8_0", "gpu", 16), row("Q6_K", "gpu", 12)],
        f"Q8_0 is the best quality that {ON_CARD} (16.0 GiB); BF16 and F16 would be no better and take more",
    ),
    (
        "split",
        [row("Q6_K", "none", 13), row("Q4_0", "split", 9)],
        "Q4_0 is the best quality that fits wholly into the graphics card and the main memory together "
        "with a context of 4096 tokens (9.00 GiB); Q6_K would need 13.0 GiB",
    ),
]


@pytest.mark.parametrize(("builds", "why"), [case[1:] for case in REASONS], ids=[case[0] for case in REASONS])
def test_the_reason(builds: list[BuildFit], why: str) -> None:
    assert recommend(builds, 4096).why == why


@pytest.mark.parametrize(
    ("devices", "where", "place"),
    [
        (("CUDA0", "CUDA1"), "gpu", "on the graphics cards"),
        ((HOST, "CUDA0", "CUDA1"), "split", "into the graphics cards and the main memory together"),
        ((HOST, "MTL0"), "gpu", "in the memory that Metal may use"),
    ],
)
def test_other_cards(devices: tuple[str, ...], where: Where, place: str) -> None:
    build = replace(row("Q6_K", where, 0), memory=dict.fromkeys(devices, Use(GIB)))
    size = f"{len(devices)}.00 GiB"
    assert recommend([build], 512).why == f"Q6_K fits wholly {place} with a context of 512 tokens ({size})"


def test_where_nothing_fits_the_least_short_is_named() -> None:
    short = [row("Q8_0", "none", 16, short_gib=12), row("Q2_K", "none", 5.25, short_gib=0.5)]
    assert recommend(short, 4096) == Recommendation(
        None,
        "Nothing fits with a context of 4096 tokens: even Q2_K needs 5.25 GiB, 512.0 MiB more than can be used",
    )
    assert recommend(short[:1], 300).why == (
        "Nothing fits with a context of 300 tokens: even Q8_0 needs 16.0 GiB, 12.0 GiB more than can be used"
    )
