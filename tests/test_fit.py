"""Where a model goes, against trying every number of layers and every context one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hardware.report import EngineDevice
from phi4local.fit import HOST, Memory, Placement, Room, Use, choose_cards, most_context, overflow, place, rooms, total

MIB, GIB = 1 << 20, 1 << 30
CARDS = ("CUDA0", "CUDA1")
STEP = 256


@dataclass
class Model:
    """A memory model by steps: what each further layer takes of each device, and each token of a context of all."""

    layers: int
    main_steps: Sequence[int]
    card_steps: Sequence[Sequence[int]]
    token_bytes: int = 0
    compute_bytes: int = 0
    asked: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, gpu_layers: int, context: int) -> Memory:
        self.asked.append((gpu_layers, context))
        kv_bytes = self.token_bytes * -(-context // STEP) * STEP
        main = Use(sum(self.main_steps[gpu_layers:]), kv_bytes * (self.layers + 1 - gpu_layers), self.compute_bytes)
        memory = {HOST: main}
        for card, steps in enumerate(self.card_steps):
            own = -(-gpu_layers // 2) if card == 0 and len(self.card_steps) == 2 else gpu_layers // 2
            own = gpu_layers if len(self.card_steps) == 1 else own
            memory[CARDS[card]] = Use(sum(steps[:own]), kv_bytes * own, self.compute_bytes if own else 0)
        return memory


def linear(layers: int, layer_bytes: int, cards: int, token_bytes: int = 0, compute_bytes: int = 0) -> Model:
    steps = [layer_bytes] * (layers + 1)
    return Model(layers, steps, [steps] * cards, token_bytes, compute_bytes)


@st.composite
def models(draw: st.DrawFn) -> Model:
    """One or two cards; each further layer takes more of the cards and less of the main memory, or as much."""
    layers = draw(st.integers(1, 40))
    cards = draw(st.integers(1, 2))
    compute_bytes, token_bytes = draw(st.integers(0, 300)), draw(st.integers(0, 1))
    if draw(st.booleans()):
        return linear(layers, draw(st.integers(1, 200)), cards, token_bytes, compute_bytes)
    sizes = st.lists(st.integers(0, 200), min_size=layers + 1, max_size=layers + 1)
    return Model(layers, draw(sizes), [draw(sizes) for _ in range(cards)], token_bytes, compute_bytes)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Model, list[Room]]:
    model = draw(models())
    free = st.integers(0, 9000)
    cards = [room(name, draw(free), shares_main=draw(st.booleans())) for name in CARDS[: len(model.card_steps)]]
    return model, [room(HOST, draw(free)), *cards]


def room(device: str, usable_bytes: int, *, shares_main: bool = False) -> Room:
    """A device with just so much for a model."""
    empty = Room(device, 100_000, 0)
    return Room(device, 100_000, usable_bytes + empty.margin_bytes, shares_main)


def holds(memory: Memory, device: Room) -> bool:
    return memory.get(device.device, Use()).total_bytes <= device.usable_bytes


def fits(memory: Memory, given_rooms: Sequence[Room]) -> bool:
    """Whether every device holds its part, and the main memory also what a card without memory takes of it."""
    main, *cards = given_rooms
    borrowed = sum(memory[card.device].total_bytes for card in cards if card.shares_main)
    return all(holds(memory, card) for card in cards) and memory[HOST].total_bytes + borrowed <= main.usable_bytes


def tried_one_by_one(model: Model, context: int, given_rooms: Sequence[Room]) -> tuple[str, int]:
    """Where, and how many layers, by asking about every number of layers."""
    everything = model.layers + 1
    if fits(model(everything, context), given_rooms):
        return "gpu", everything
    held = [n for n in range(1, everything) if all(holds(model(n, context), card) for card in given_rooms[1:])]
    if held and fits(model(held[-1], context), given_rooms):
        return "split", held[-1]
    return ("cpu", 0) if fits(model(0, context), given_rooms) else ("none", held[-1] if held else 0)


@given(problems(), st.sampled_from((0, 256, 300, 512)))
def test_the_cards_get_as_many_layers_as_they_hold(problem: tuple[Model, list[Room]], context: int) -> None:
    model, given_rooms = problem
    found = place(model, model.layers, context, given_rooms)
    where, layers = tried_one_by_one(model, context, given_rooms)
    assert found.where == where
    assert where == "none" or found.gpu_layers == layers
    assert found.memory == model(found.gpu_layers, context)
    assert fits(found.memory, given_rooms) == (where != "none") == (found.short_bytes == 0)


@given(problems())
def test_what_fits_nowhere_is_placed_where_the_least_is_missing(problem: tuple[Model, list[Room]]) -> None:
    model, given_rooms = problem
    found = place(model, model.layers, 512, given_rooms)
    assume(found.where == "none")
    _, most = tried_one_by_one(model, 512, given_rooms)
    missing = [overflow(model(layers, 512), given_rooms) for layers in {0, most, model.layers + 1}]
    assert found.short_bytes == min(missing) > 0


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 25_000))
def test_few_questions_place_forty_equal_layers(layer: int, compute: int, free: int) -> None:
    model = linear(40, layer, 1, compute_bytes=compute)
    place(model, 40, 4096, [room(HOST, 10_000), room("CUDA0", free)])
    assert len(set(model.asked)) <= 12


def test_few_questions_place_them_on_two_cards() -> None:
    for free in ((306, 0), (306, 198), (99, 66)):
        model = linear(40, 15, 2)
        place(model, 40, 4096, [room(HOST, 10_000), room("CUDA0", free[0]), room("CUDA1", free[1])])
        assert len(set(model.asked)) <= 12, free


def test_a_machine_without_a_card_asks_once() -> None:
    model = linear(4, 100, 0)
    assert place(model, 4, 256, [room(HOST, 500)]) == Placement("cpu", 0, model(0, 256))
    assert model.asked == [(0, 256), (0, 256)]
    assert place(model, 4, 256, [room(HOST, 499)]) == Placement("none", 0, model(0, 256), 1)


def test_the_main_memory_may_be_too_small_for_what_the_card_leaves() -> None:
    """Then a card that holds half of the layers does not help."""
    model = Model(3, [100] * 4, [[100] * 4], compute_bytes=10)
    found = place(model, 3, 256, [room(HOST, 150), room("CUDA0", 250)])
    assert (found.where, found.gpu_layers, found.short_bytes) == ("none", 2, 60)
    found = place(model, 3, 256, [room(HOST, 410), room("CUDA0", 50)])
    assert (found.where, found.gpu_layers) == ("cpu", 0)
    assert found.total == Use(400, 0, 10)


@given(
    st.lists(st.integers(0, 100), min_size=20, max_size=20),
    st.integers(1, 20 * STEP),
    st.integers(0, 1500),
    st.data(),
)
def test_the_largest_context_is_found(steps: list[int], trained: int, free: int, data: st.DataObject) -> None:
    """`steps`: what each further 256 tokens take; like llama.cpp, a part of them takes as much as all."""
    asked: list[int] = []

    def ask(gpu_layers: int, context: int) -> Memory:
        assert gpu_layers == 3
        asked.append(context)
        return {HOST: Use(0, sum(steps[: -(-context // STEP)])), "CUDA0": Use(1)}

    given_rooms = [room(HOST, free), room("CUDA0", 1)]
    fitting = [context for context in range(trained + 1) if sum(steps[: -(-context // STEP)]) <= free]
    expected = max(context for context in fitting if context % STEP == 0 or context == trained)
    known = data.draw(st.sampled_from(fitting))
    placement = Placement("split", 3, {})
    assert most_context(ask, placement, trained, given_rooms, known=known) == expected
    assert most_context(ask, placement, trained, given_rooms) == expected
    assert len(asked) <= 2 * 6
    assert max(asked) <= trained


def test_margins() -> None:
    margins = {
        (HOST, 4 * GIB): 512 * MIB,
        (HOST, 8 * GIB): GIB,
        (HOST, 64 * GIB): GIB,
        ("CUDA0", 8 * GIB): 512 * MIB,
        ("CUDA0", 16 * GIB): GIB,
        ("CUDA0", 80 * GIB): GIB,
        ("MTL0", 0): 0,
    }
    for (device, size), margin_bytes in margins.items():
        assert Room(device, size, size).margin_bytes == margin_bytes, (device, size)
    assert Room(HOST, 8 * GIB, 3 * GIB).usable_bytes == 2 * GIB
    assert Room(HOST, 8 * GIB, GIB - 1).usable_bytes == 0


def test_what_is_missing_is_summed_over_devices() -> None:
    given_rooms = [room(HOST, 100), room("CUDA0", 50), room("CUDA1", 20)]
    assert overflow({HOST: Use(60, 30, 10), "CUDA0": Use(50), "CUDA1": Use(0, 20)}, given_rooms) == 0
    assert overflow({HOST: Use(60, 30, 11), "CUDA0": Use(53), "CUDA1": Use(1)}, given_rooms) == 1 + 3
    assert overflow({HOST: Use(300), "CUDA1": Use(21)}, given_rooms) == 200 + 1
    assert overflow({"CUDA0": Use(50)}, given_rooms) == 0
    assert total({HOST: Use(1, 2, 3), "CUDA0": Use(10, 20, 30)}) == Use(11, 22, 33)


def test_a_card_without_memory_of_its_own_takes_the_main_memorys() -> None:
    given_rooms = [room(HOST, 100), room("MTL0", 80, shares_main=True), room("CUDA0", 50)]
    assert overflow({HOST: Use(20), "MTL0": Use(80), "CUDA0": Use(50)}, given_rooms) == 0
    assert overflow({HOST: Use(21), "MTL0": Use(80), "CUDA0": Use(50)}, given_rooms) == 1
    assert overflow({HOST: Use(20), "MTL0": Use(90)}, given_rooms) == 10 + 10


def device(
    name: str, kind: str = "gpu", total_bytes: int | None = GIB, free_bytes: int | None = GIB, bus_id: str | None = None
) -> EngineDevice:
    return EngineDevice(name, "", kind, total_bytes, free_bytes, bus_id)


def test_memory_of_a_model_that_will_go_is_free() -> None:
    main = Room(HOST, 8 * GIB, GIB)
    cards = [
        device("CUDA0", total_bytes=4 * GIB),
        device("Vulkan1", "igpu", 2 * GIB),
        device("X", total_bytes=None, free_bytes=None),
    ]
    assert rooms(main, cards, {}) == [
        main,
        Room("CUDA0", 4 * GIB, GIB),
        Room("Vulkan1", 2 * GIB, GIB, shares_main=True),
        Room("X", 0, 0),
    ]
    replaced = rooms(main, cards, {HOST: GIB, "CUDA0": 2 * GIB, "Vulkan1": 5 * GIB, "gone": GIB, "X": GIB})
    assert [one.free_bytes for one in replaced] == [2 * GIB, 3 * GIB, 2 * GIB, 0]


@pytest.mark.parametrize(
    ("card", "shares"), [(device("MTL0"), True), (device("Metal"), True), (device("CUDA0"), False)]
)
def test_apples_cards_share_the_main_memory(card: EngineDevice, shares: bool) -> None:
    assert rooms(Room(HOST, 1, 1), [card], {})[1].shares_main == shares


CHOICES = [
    ("nothing", [], []),
    ("processors", [device("CPU", "cpu"), device("BLAS", "accel")], []),
    ("two cards", [device("CUDA0"), device("CUDA1"), device("CPU", "cpu")], ["CUDA0", "CUDA1"]),
    ("a card and an integrated one", [device("Vulkan0", "igpu"), device("Vulkan1")], ["Vulkan1"]),
    ("two integrated ones", [device("Vulkan0", "igpu"), device("Vulkan1", "igpu")], ["Vulkan0"]),
    ("one bus", [device("CUDA0", bus_id="01:00"), device("Vulkan0", bus_id="01:00")], ["CUDA0"]),
    ("two buses", [device("CUDA0", bus_id="01:00"), device("CUDA1", bus_id="02:00")], ["CUDA0", "CUDA1"]),
    (
        "two tools, two cards",
        [device(f"{tool}{n}", bus_id=f"0{n}:00") for tool in ("CUDA", "Vulkan") for n in (1, 2)],
        ["CUDA1", "CUDA2"],
    ),
]


@pytest.mark.parametrize(("devices", "chosen"), [case[1:] for case in CHOICES], ids=[case[0] for case in CHOICES])
def test_layers_go_to_cards(devices: list[EngineDevice], chosen: list[str]) -> None:
    assert [one.name for one in choose_cards(devices)] == chosen
