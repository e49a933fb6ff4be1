"""From rates to tokens per second: curves, the processor's part, and what benchmarks correct."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4local.fit import HOST, Placement, Use
from phi4local.speed import (
    CARD_SHARE,
    Benchmark,
    Curve,
    Rate,
    Rates,
    Speed,
    Work,
    corrected,
    predict,
    work_of,
)

TENSORS = {
    "token_embd.weight": ("Q6_K", 700),
    "blk.0.attn_qkv.weight": ("Q4_K", 10),
    "blk.0.ffn_down.weight": ("Q6_K", 7),
    "blk.1.attn_qkv.weight": ("Q4_K", 20),
    "blk.1.ffn_down.weight": ("Q4_K", 5),
    "blk.2.attn_qkv.weight": ("Q4_K", 40),
    "blk.2.ffn_down.weight": ("Q6_K", 9),
}
UNTIED = TENSORS | {"output.weight": ("Q8_0", 300)}

WORKS = [
    ("all of an untied model", UNTIED, 0, Work(3, {"Q4_K": 75, "Q6_K": 16}, {"Q8_0": 300})),
    ("a tied head is the embedding's table", TENSORS, 0, Work(3, {"Q4_K": 75, "Q6_K": 16}, {"Q6_K": 700})),
    ("the output goes to the card first", UNTIED, 1, Work(3, {"Q4_K": 75, "Q6_K": 16}, {})),
    ("then the last layer", UNTIED, 2, Work(2, {"Q4_K": 35, "Q6_K": 7}, {})),
    ("all but the first layer", TENSORS, 3, Work(1, {"Q4_K": 10, "Q6_K": 7}, {})),
    ("nothing is left", UNTIED, 4, Work(0, {}, {})),
]


@pytest.mark.parametrize(("tensors", "gpu_layers", "work"), [w[1:] for w in WORKS], ids=[w[0] for w in WORKS])
def test_the_processors_part(tensors: dict[str, tuple[str, int]], gpu_layers: int, work: Work) -> None:
    assert work_of(tensors, 3, gpu_layers) == work


def test_layers_are_counted_by_number() -> None:
    """Not by their names' order, in which `blk.10` comes before `blk.2`."""
    tensors = {f"blk.{n}.ffn_down.weight": ("Q8_0", 1 << n) for n in range(12)} | {"output.weight": ("Q8_0", 1)}
    assert work_of(tensors, 12, 4) == Work(9, {"Q8_0": (1 << 9) - 1}, {})


sizes = st.floats(1e3, 1e9)
costs = st.floats(1e-12, 1e-9)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    """A unit of a large layer takes as long as one of a small one or longer, or half as long at least."""
    small, ratio = draw(sizes), draw(st.floats(1.5, 1000))
    cost, growth = draw(costs), draw(st.floats(0.51, 20))
    large = small * ratio
    large_seconds = max(large * cost * growth, small * cost)
    return Curve((small, small * cost), (large, large_seconds), draw(costs))


@given(curves(), st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20))
def test_more_takes_longer(curve: Curve, factors: list[float]) -> None:
    points = sorted([*(curve.small[0] * f for f in factors), curve.small[0], curve.large[0], curve.large[0] * 1.01])
    seconds = [curve.seconds(point) for point in points]
    assert all(one <= other * (1 + 1e-9) for one, other in pairwise(seconds))
    assert all(one > 0 for one in seconds)


@given(curves(), st.floats(0, 1), st.floats(0, 100))
def test_a_curve_goes_straight_through_what_was_measured(curve: Curve, share: float, more: float) -> None:
    (small, small_seconds), (large, large_seconds) = curve.small, curve.large
    assert curve.seconds(small) == pytest.approx(small_seconds)
    assert curve.seconds(large) == pytest.approx(large_seconds)
    between = small_seconds + share * (large_seconds - small_seconds)
    assert curve.seconds(small + share * (large - small)) == pytest.approx(between)
    assert curve.seconds(large * (1 + more)) == pytest.approx(large_seconds + more * large * curve.beyond)


def test_a_tiny_layer_takes_its_share_at_least() -> None:
    curve = Curve((100, 10e-6), (1000, 200e-6), 1e-6)
    assert curve.seconds(50) == pytest.approx(5e-6)  # the line reaches 0 before 52
    assert curve.seconds(90) == pytest.approx(9e-6)


def test_a_small_layer_may_cost_mostly_its_start() -> None:
    curve = Curve((100, 10.0), (1000, 20.0), 0.02)
    assert curve.seconds(1000) == 20.0
    assert curve.seconds(1000) <= curve.seconds(1001)


def proportional(cost: float) -> Curve:
    return Curve((1000, 1000 * cost), (1_000_000, 1_000_000 * cost), cost)


def rates(**costs_of: float) -> Rates:
    """Each type's byte takes its cost, and each of its weights twice as long in a prompt."""
    return Rates(0.001, {kind: Rate(proportional(cost), proportional(2 * cost)) for kind, cost in costs_of.items()})


WORK = Work(4, {"Q4_K": 144_000, "Q8_0": 68_000}, {"Q6_K": 21_000})
RATES = rates(Q4_K=1e-8, Q8_0=2e-8, Q6_K=3e-8)
MAIN = Placement("cpu", 0, {HOST: Use(233_000)})


def test_all_in_the_main_memory() -> None:
    speed = predict(RATES, WORK, MAIN, {})
    assert speed.generation_tps == pytest.approx(1 / (0.001 + 144_000e-8 + 68_000 * 2e-8 + 21_000 * 3e-8))
    assert speed.prompt_tps == pytest.approx(1 / (256_000 * 2e-8 + 64_000 * 4e-8))
    assert predict(None, WORK, MAIN, {}) == Speed()


def test_what_was_not_measured_counts_as_the_slowest() -> None:
    known = rates(Q4_K=1e-8, Q8_0=2e-8)
    assert predict(known, WORK, MAIN, {}) == predict(rates(Q4_K=1e-8, Q8_0=2e-8, Q6_K=2e-8), WORK, MAIN, {})


def test_each_layer_pays_its_start() -> None:
    starts = Curve((1000, 0.003), (1_000_000, 2.001), 2e-6)  # 1 ms, and 2 us for each byte
    known = Rates(0.0, {kind: Rate(starts, starts) for kind in ("Q4_0", "F16")})
    one = predict(known, Work(1, {"Q4_0": 100_000}, {}), MAIN, {}).generation_tps
    ten = predict(known, Work(10, {"Q4_0": 100_000}, {}), MAIN, {}).generation_tps
    assert one == pytest.approx(1 / (0.001 + 100_000 * 2e-6))
    assert ten == pytest.approx(1 / (10 * (0.001 + 10_000 * 2e-6)))
    mixed = predict(known, Work(10, {"Q4_0": 60_000, "F16": 40_000}, {}), MAIN, {}).generation_tps
    assert mixed == pytest.approx(ten)


@given(st.integers(1, 10**10), st.integers(1, 10**10), st.integers(1, 80))
def test_a_larger_build_is_slower(small: int, more: int, layers: int) -> None:
    def tps(size: int) -> float:
        found = predict(RATES, Work(layers, {"Q4_K": size}, {"Q6_K": 1000}), MAIN, {}).generation_tps
        assert found
        return found

    assert tps(small + more) <= tps(small)


def test_all_on_cards_is_as_fast_as_their_memories() -> None:
    nothing = Work(0, {}, {})
    uses = {"CUDA0": Use(8_000_000, 5, 5), "CUDA1": Use(2_000_000), HOST: Use(1_000_000)}
    placement = Placement("gpu", 5, uses)
    seconds = (8_000_000 / 1e9 + 2_000_000 / 5e8) / CARD_SHARE
    speed = predict(None, nothing, placement, {"CUDA0": 10**9, "CUDA1": 5 * 10**8})
    assert speed.generation_tps == pytest.approx(1 / seconds)
    assert speed.prompt_tps is None
    assert predict(RATES, nothing, placement, {"CUDA0": 10**9}) == Speed()
    assert predict(RATES, nothing, Placement("gpu", 5, {"CUDA0": Use()}), {}) == Speed()
    idle = Placement("gpu", 5, {"CUDA0": Use(8_000_000), "CUDA1": Use(0, 10, 10)})
    assert predict(None, nothing, idle, {"CUDA0": 10**9}).generation_tps == pytest.approx(CARD_SHARE * 1e9 / 8e6)


def test_a_split_model_takes_both_times() -> None:
    work = Work(2, {"Q4_K": 144_000}, {})
    placement = Placement("split", 3, {HOST: Use(900_000), "CUDA0": Use(3_000_000)})
    speed = predict(RATES, work, placement, {"CUDA0": 10**9})
    assert speed.generation_tps == pytest.approx(1 / (0.001 + 144_000e-8 + 3e6 / (CARD_SHARE * 1e9)))
    assert speed.prompt_tps is None
    assert predict(RATES, work, placement, {}) == Speed()
    assert predict(None, work, placement, {"CUDA0": 10**9}) == Speed()


def bench(
    build: str, predicted: float | None, measured: float | None, name: str = "phi-4", where: str = "cpu"
) -> Benchmark:
    """A benchmark whose prompts are ten times as fast as its answers, and were predicted to be twenty times."""
    return Benchmark(
        name,
        build,
        where,
        Speed(predicted, predicted and 20 * predicted),
        Speed(measured, measured and 10 * measured),
    )


def tps(benchmarks: list[Benchmark], predicted: Speed | None = None) -> tuple[float | None, float | None]:
    """What is expected of phi-4:Q4_K_M in the main memory, predicted to reach 10 and 100."""
    speed = corrected(predicted or Speed(10, 100), "phi-4", "Q4_K_M", "cpu", benchmarks)
    return speed.generation_tps, speed.prompt_tps


def test_nothing_measured_changes_nothing() -> None:
    assert tps([]) == (10, 100)
    assert tps([bench("Q4_K_M", 10, None)]) == (10, 100)
    assert tps([bench("Q8_0", 10, 5)], Speed()) == (None, None)


def test_the_same_build_wins() -> None:
    assert tps([bench("Q8_0", 10, 20), bench("Q4_K_M", 10, 8), bench("Q6_K", 10, 20)]) == (8, 80)
    assert tps([bench("Q4_K_M", 1000, 500)]) == (500, 5000)
    assert tps([bench("Q4_K_M", None, 5)]) == (5, 50)
    assert tps([bench("Q4_K_M", 10, 5, where="gpu")]) == (10, 100)
    assert tps([bench("Q4_K_M", 1000, 500, name="phi-4-mini")]) == (10, 100)


def test_similar_speeds_are_used() -> None:
    benchmarks = [bench("Q8_0", 5, 4), bench("Q2_K", 20, 18), bench("Q4_K_M", 40, 20, name="phi-4-mini")]
    assert tps(benchmarks) == (8, 40)  # the median
    assert tps([bench("Q8_0", 5, 4, where="split")]) == (10, 100)


def test_the_built_in_model_tells_nothing_about_a_large_one() -> None:
    nano = bench("BF16", 2000, 500, name="phi4-nano")
    assert tps([nano]) == (10, 100)
    assert tps([nano, bench("Q8_0", 6, 3)]) == (5, 25)
    assert tps([bench("Q8_0", 79, 7.9)]) == (1, 5)
    assert tps([bench("Q8_0", 81, 8.1)]) == (10, 100)
