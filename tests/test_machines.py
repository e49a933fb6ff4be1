"""Eight machines, what is recommended on each, and why that is right.

The arithmetic beside each expectation is in GiB and by hand. It starts from these (8192 tokens, f16 cache):

    phi-4       KV cache 40 layers x 2 x 10 heads x 128 x 8192 x 2 bytes = 1.56; compute 0.14
    phi-4-mini  KV cache 32 layers x 2 x 8 heads x 128 x 8192 x 2 bytes = 1.00; compute 0.07

Weights are the published files less their headers. Of those, the token embedding stays in the main memory (phi-4: Q2_K
0.16, Q3_K 0.21, Q4_K 0.27, Q5_0 0.33, Q8_0 0.51, BF16 0.96), beside 0.03 of buffers; on a card compute takes 0.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from phi4local.actions.fit import Fit
from phi4local.actions.probe import Machine as Told
from phi4local.actions.probe import missing, mlx_version
from phi4local.cli.probe import machine_json
from phi4local.fit import HOST
from phi4local.recommend import BuildFit
from tests.machines import CONTEXT, FOLDER, Engine, read_machine, real_answer, recommended

NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
GIB = 1 << 30


def best_of(answer: Fit) -> BuildFit | None:
    return next((build for build in answer.builds if build.build == answer.recommendation.build), None)


def case(machine: str, build: str | None, where: str, why: str, model: str = "phi-4") -> Any:
    return pytest.param(machine, model, build, where, why, id=f"{machine}-{model}")


EXPECTED = [
    # Available 4.84, less an eighth of 7.57 that stays free: 3.90 usable. The smallest build of phi-4 takes
    # 5.16 + 1.56 + 0.14 = 6.87, so there is nothing to choose: 6.87 - 3.90 = 2.97 are missing.
    case(
        "laptop-8gb",
        None,
        "none",
        "Nothing fits with a context of 8192 tokens: even Q2_K needs 6.87 GiB, 2.97 GiB more than can be used",
    ),
    # The same 3.90 for the mini. Q5_K_M: 2.64 + 1.00 + 0.07 = 3.72 fits; Q6_K: 2.93 + 1.07 = 4.00 does not, by 0.11.
    case(
        "laptop-8gb",
        "Q5_K_M",
        "cpu",
        "Q5_K_M is the best quality that fits wholly in the main memory with a context of 8192 tokens (3.72 GiB); "
        "Q6_K would need 4.00 GiB",
        model="phi-4-mini",
    ),
    # Available 10.75, less 1 (the margin's bound; an eighth of 15.3 would be 1.9): 9.75 usable. The integrated card is
    # no reason for another place: the engine was built without it, and it reads the same memory as the processor.
    # Q4_K_S: 7.86 + 1.70 = 9.56 fits; Q4_K_M: 8.43 + 1.70 = 10.13 does not.
    case(
        "laptop-16gb-iris",
        "Q4_K_S",
        "cpu",
        "Q4_K_S is the best quality that fits wholly in the main memory with a context of 8192 tokens (9.56 GiB); "
        "Q4_K_M would need 10.1 GiB",
    ),
    # CUDA can give 7.33 of 7.79, less a sixteenth (0.49): 6.84 usable. On the card Q2_K takes 5.16 - 0.16 + 1.56 + 0.13
    # = 6.70 and fits; Q3_K_S takes 6.05 - 0.21 + 1.69 = 7.54 and does not. With the embedding Q2_K is 6.88 in all.
    # Q3_K_S with 36 of 41 layers on the card is 6.05 + 1.56 + 0.21 + 0.04 = 7.87: a part on the processor, so it loses.
    case(
        "desktop-8gb-card",
        "Q2_K",
        "gpu",
        "Q2_K is the best quality that fits wholly on the graphics card with a context of 8192 tokens (6.88 GiB); "
        "Q3_K_S would need 7.87 GiB and go into the graphics card and the main memory together",
    ),
    # 5 in use leave 6.25 of 11.77, less 0.74: 5.52 usable, and even Q2_K takes 6.70 of a card. So no build is wholly on
    # the card, and quality decides: the main memory has 21.48 - 1 = 20.48, together 26.0. Q8_0: 14.51 + 1.56 + 0.36
    # = 16.4 fits, F16 with 27.3 + 1.6 does not. On the card: (5.52 - 0.32 compute - 0.51 output) / (0.337 + 0.039 for
    # a layer) = 12 layers.
    case(
        "desktop-12gb-card-busy",
        "Q8_0",
        "split",
        "Q8_0 is the best quality that fits wholly into the graphics card and the main memory together "
        "with a context of 8192 tokens (16.4 GiB)",
    ),
    # CUDA can give 23.09 of 23.65, less 1: 22.09 usable. Q8_0: 14.51 - 0.51 + 1.56 + 0.13 = 15.7 fits on the card, the
    # 16-bit builds with 27.3 - 1.0 + 1.7 = 28.0 do not and would be no better, so no better one is named.
    case(
        "desktop-24gb-card",
        "Q8_0",
        "gpu",
        "Q8_0 is the best quality that fits wholly on the graphics card with a context of 8192 tokens (16.2 GiB)",
    ),
    # 11.30 - 0.74 = 10.57 and 7.63 - 0.49 = 7.14 usable: 59.7 % of 41 layers are 25 for the larger card (0.597 x 41 =
    # 24.5, rounded up). Q8_0 there: 25 x (0.337 + 0.039) + 0.19 = 9.60 of 10.57; on the other one 15 x 0.376 + 0.51 for
    # the output + 0.23 = 6.38 of 7.14. Either card alone holds less: Q8_0 takes 15.7. 16 bits: 28.0 in 17.7 do not fit.
    # In all 14.51 + 1.56 + 0.50, because two cards work on several batches at once.
    case(
        "desktop-two-cards",
        "Q8_0",
        "gpu",
        "Q8_0 is the best quality that fits wholly on the graphics cards with a context of 8192 tokens (16.6 GiB)",
    ),
    # Metal may use 10.67 - 0.67 = 10.0, but what it uses is main memory, of which 9.75 - 1 = 8.75 are usable. Q3_K_M:
    # 6.85 + 1.56 + 0.16 = 8.57 fits; Q3_K_L: 7.38 + 1.70 = 9.08 would fit into Metal's share and not into the machine.
    case(
        "mac-16gb",
        "Q3_K_M",
        "gpu",
        "Q3_K_M is the best quality that fits wholly in the memory that Metal may use "
        "with a context of 8192 tokens (8.57 GiB); "
        "Q3_K_L would need 9.08 GiB",
    ),
    # Metal 48 - 1 = 47, main memory 44 - 1 = 43: everything fits, BF16 with 27.3 + 1.7 = 29.0 as well. It would be no
    # better than Q8_0 (KL divergence 0.001), all three reach the trained 16384 tokens, and Q8_0 reads half the bytes.
    case(
        "mac-64gb",
        "Q8_0",
        "gpu",
        "Q8_0 is the best quality that fits wholly in the memory that Metal may use "
        "with a context of 8192 tokens (16.2 GiB); "
        "F16 and BF16 would be no better and take more",
    ),
]


@pytest.mark.parametrize(("machine", "model", "build", "where", "why"), EXPECTED)
def test_the_recommendation_and_its_reason(machine: str, model: str, build: str | None, where: str, why: str) -> None:
    answer = recommended(read_machine(machine), model)
    best = best_of(answer)
    assert (answer.recommendation.build, best.where if best else "none") == (build, where)
    assert answer.recommendation.why == why


# What else is on the card decides. Without the 5 in use it has 11.25 - 0.74 = 10.52: Q4_K_M takes 8.43 - 0.27 + 1.69 =
# 9.85 of it; Q5_0 takes 9.45 - 0.33 + 1.69 = 10.81 and goes, with 39 of 41 layers on the card, into both.
IDLE = (
    "Q4_K_M is the best quality that fits wholly on the graphics card with a context of 8192 tokens (10.1 GiB); "
    "Q5_0 would need 11.3 GiB and go into the graphics card and the main memory together"
)


def test_an_idle_card_gets_another_build_and_so_does_one_whose_model_will_go() -> None:
    busy = read_machine("desktop-12gb-card-busy")
    free_bytes = busy.engine.devices[0].free_bytes
    assert free_bytes is not None
    idle = recommended(busy.with_free(CUDA0=free_bytes + 5 * GIB), "phi-4")
    assert (idle.recommendation.build, idle.recommendation.why) == ("Q4_K_M", IDLE)
    assert idle.recommendation != recommended(busy, "phi-4").recommendation
    replacing = recommended(busy, "phi-4", {"CUDA0": 5 * GIB})
    assert (replacing.rooms, replacing.recommendation) == (idle.rooms, idle.recommendation)
    assert [(build.where, build.memory) for build in replacing.builds] == [
        (build.where, build.memory) for build in idle.builds
    ]


@pytest.mark.parametrize("name", NAMES)
def test_no_placement_exceeds_what_is_usable(name: str) -> None:
    answer = recommended(read_machine(name), "phi-4")
    room = {one.device: one for one in answer.rooms}
    for build in answer.builds:
        if build.where == "none" or build.format != "gguf":
            continue
        for device, use in build.memory.items():
            assert use.total_bytes <= room[device].free_bytes - room[device].margin_bytes, (build.build, device)
        in_main = [use for device, use in build.memory.items() if device == HOST or room[device].shares_main]
        assert sum(use.total_bytes for use in in_main) <= room[HOST].usable_bytes, build.build


# -- the machines


def test_there_are_eight_machines() -> None:
    assert {machine for machine, *_ in (param.values for param in EXPECTED)} == {*NAMES}
    assert len(NAMES) == 8


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_is_what_probe_prints(name: str) -> None:
    machine = read_machine(name)
    told = Told(machine.report, machine.engine, missing(machine.report, machine.engine))
    assert machine_json(told) == machine.printed | {"mlx": mlx_version()}
    cards = [device for device in machine.engine.devices if device.kind == "gpu"]
    assert machine.engine.supports_gpu == bool(cards)
    for card, gpu in zip(cards, machine.report.gpus if cards else (), strict=True):
        assert (card.bus_id, card.description) == (gpu.bus_id, gpu.name)
        assert (card.total_bytes or 0) <= (gpu.total_bytes or machine.report.memory.total_bytes or 0)


# -- the stand-in, against llama.cpp


@pytest.mark.parametrize(("model", "build"), [("phi-4", "Q4_K_M"), ("phi-4-mini", "Q4_K_M"), ("phi-4-mini", "Q4_0")])
def test_without_layers_on_a_card_the_answer_is_the_engines(model: str, build: str) -> None:
    found = Engine(model, build, ["CUDA0"], [1.0])(0, 12000)[HOST]
    told = real_answer(model, build, 12000, safe_mode=True)
    assert (found.weights_bytes, found.kv_bytes) == (told.weights_bytes, told.kv_bytes)
    assert found.compute_bytes == real_answer(model, "Q4_K_M", 12000).compute_bytes


# What llama.cpp 0c1e57098 with Vulkan and Mesa's software card, shown to it once or twice, said of the published Q4_K_M
# files: weights, cache and compute of each card, in proportion 12 : 8. That card holds no buffer above 128 MiB, so the
# head stayed in the main memory. (model, layers on the cards) -> (weights, cache, compute) of each
VULKAN: Mapping[tuple[str, int], tuple[tuple[int, int, int], ...]] = {
    ("phi-4", 20): ((3_972_894_720, 796_917_760, 253_986_816),),
    ("phi-4", 41): ((8_339_066_880, 1_677_721_600, 139_470_864),),
    ("phi-4-mini", 20): ((1_172_066_688, 637_534_208, 116_394_176),),
    ("phi-4-mini", 33): ((1_979_462_016, 1_073_741_824, 71_313_424),),
}
TWICE: Mapping[tuple[str, int], tuple[tuple[int, int, int], ...]] = {
    ("phi-4", 20): ((2_454_405_120, 503_316_480, 253_986_816), (1_518_489_600, 293_601_280, 139_470_864)),
    ("phi-4", 41): ((5_176_422_400, 1_048_576_000, 206_610_432), (3_162_644_480, 629_145_600, 248_553_536)),
    ("phi-4-mini", 20): ((729_317_760, 402_653_184, 116_394_176), (442_749_312, 234_881_024, 71_313_424)),
    ("phi-4-mini", 33): ((1_230_668_160, 671_088_640, 121_675_776), (748_794_240, 402_653_184, 146_841_664)),
}
HEAD_BYTES = {"phi-4": 421_478_400, "phi-4-mini": 504_161_280}  # Q6_K: 210 bytes for 256 weights


@pytest.mark.parametrize("recorded", [VULKAN, TWICE], ids=["one-card", "two-cards"])
def test_layers_go_where_llama_cpp_puts_them(
    recorded: Mapping[tuple[str, int], tuple[tuple[int, int, int], ...]],
) -> None:
    for (model, layers), told in recorded.items():
        names = [f"Vulkan{index}" for index in range(len(told))]
        found = Engine(model, "Q4_K_M", names, [12.0, 8.0][: len(told)])(layers, CONTEXT)
        for name, (weights_bytes, kv_bytes, compute_bytes) in zip(names, told, strict=True):
            head_bytes = HEAD_BYTES[model] if name == names[-1] else 0
            assert (found[name].weights_bytes - head_bytes, found[name].kv_bytes) == (weights_bytes, kv_bytes)
            assert abs(found[name].compute_bytes - compute_bytes) < 11 << 20, (model, layers, name)
