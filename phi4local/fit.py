"""Where a model goes: the room that each device has, and the placement that a caller's question finds in it. Pure.

    Use         what a load takes of one device: weights, KV cache, compute buffers
    Room        what one device has for a model now, and the margin that is left free
    place       all layers on the cards; else as many as they hold; else the main memory; else nowhere

How much a load takes is never computed here: `Ask` puts the question to the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hardware.report import EngineDevice

HOST = "CPU"  # what the engine calls the main memory
UNKNOWN_BYTES = 1 << 62  # the size of a memory that the system does not tell: nothing is refused for its sake
LEAST_CONTEXT = 1024  # less is not offered in the place of something too large
OFFERED_SHARE = 0.97  # of the free memory is what may be offered in the place of something too large
_STEP = 256  # llama.cpp rounds a context up to this
_GIB = 1 << 30

Where = Literal["gpu", "split", "cpu", "none"]


@dataclass(frozen=True, slots=True)
class Use:
    """What a load takes of one device."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes

    def __add__(self, other: Use) -> Use:
        return Use(
            self.weights_bytes + other.weights_bytes,
            self.kv_bytes + other.kv_bytes,
            self.compute_bytes + other.compute_bytes,
        )


Memory = Mapping[str, Use]  # by the engine's name of the device
Ask = Callable[[int, int], Memory]  # layers on the cards (output included), context in tokens


def total(memory: Memory) -> Use:
    """What a load takes of all devices together."""
    return sum(memory.values(), Use())


@dataclass(frozen=True, slots=True)
class Room:
    """What a device has for a model now. `shares_main`: it has no memory of its own but takes the main memory's."""

    device: str
    total_bytes: int
    free_bytes: int
    shares_main: bool = False

    @property
    def margin_bytes(self) -> int:
        """Left free for what cannot be foreseen: an eighth of the main memory, a sixteenth of a card's, 1 GiB at most.

        On a card that is the driver's own context and the screen; 1 GiB is what llama.cpp's own fitting leaves, too.
        """
        return min(_GIB, self.total_bytes // (8 if self.device == HOST else 16))

    @property
    def usable_bytes(self) -> int:
        return max(0, self.free_bytes - self.margin_bytes)


def rooms(main: Room, cards: Sequence[EngineDevice], replaced: Mapping[str, int]) -> list[Room]:
    """The room of the main memory and of each card; `replaced`: what a model that will go still holds of each."""
    return [
        Room(HOST, main.total_bytes, main.free_bytes + replaced.get(HOST, 0)),
        *(
            Room(
                card.name,
                card.total_bytes or 0,
                min(card.total_bytes or 0, (card.free_bytes or 0) + replaced.get(card.name, 0)),
                shares_main(card),
            )
            for card in cards
        ),
    ]


def shares_main(card: EngineDevice) -> bool:
    """Whether a card takes its memory from the main memory: an integrated one, and Apple's."""
    return card.kind == "igpu" or is_metal(card.name)


def is_metal(device: str) -> bool:
    """Whether the engine's device of this name is Apple's."""
    return device.startswith(("MTL", "Metal"))


def choose_cards(devices: Sequence[EngineDevice]) -> list[EngineDevice]:
    """The devices that layers go to, as llama.cpp chooses them: cards, or without any an integrated one.

    Two of the engine's backends may show the same card; the first keeps it.
    """
    found = [device for device in devices if device.kind == "gpu"]
    found = found or [device for device in devices if device.kind == "igpu"][:1]
    return list({device.bus_id or device.name: device for device in reversed(found)}.values())[::-1]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model goes. `gpu_layers` counts the output as a layer; `short_bytes` is missing where it fits nowhere."""

    where: Where
    gpu_layers: int
    memory: Memory
    short_bytes: int = 0

    @property
    def total(self) -> Use:
        return total(self.memory)


def overflow(memory: Memory, rooms: Sequence[Room]) -> int:
    """How much of a load exceeds what the devices have, in bytes; 0 where it fits."""
    missing = 0
    main_bytes = sum(memory[room.device].total_bytes for room in rooms if room.shares_main and room.device in memory)
    for room in rooms:
        needed = memory.get(room.device, Use()).total_bytes + (main_bytes if room.device == HOST else 0)
        missing += max(0, needed - room.usable_bytes)
    return missing


def place(ask: Ask, layers: int, context: int, rooms: Sequence[Room]) -> Placement:
    """The placement in the fastest memory that holds it; where none does, the one that lacks the least."""
    cards = [room for room in rooms if room.device != HOST]
    tried: list[Placement] = []
    if cards:
        everything = layers + 1
        tried.append(_placement("gpu", everything, ask(everything, context), rooms))
        if tried[0].short_bytes:
            part = _most_layers(lambda count: overflow(ask(count, context), cards), everything)
            tried += [_placement("split", part, ask(part, context), rooms)] if part else []
    if not tried or tried[-1].short_bytes:
        tried.append(_placement("cpu", 0, ask(0, context), rooms))
    return min(tried, key=lambda placement: placement.short_bytes)


def _placement(where: Where, gpu_layers: int, memory: Memory, rooms: Sequence[Room]) -> Placement:
    short_bytes = overflow(memory, rooms)
    return Placement("none" if short_bytes else where, gpu_layers, memory, short_bytes)


def _most_layers(exceeds: Callable[[int], int], everything: int) -> int:
    """The largest number of layers, below `everything`, for which nothing exceeds; 0 where there is none.

    What exceeds grows nearly linearly with the layers, so a guess follows the line through what is known; after one
    that hardly helped (several cards fill up unevenly) the next is in the middle.
    """
    low, high, high_bytes = 0, everything, exceeds(everything)
    layer_bytes = 0
    while high - low > 1:
        width = high - low
        guess = high - (-(-high_bytes // layer_bytes) if layer_bytes else width // 2)
        guess = min(high - 1, max(low + 1, guess))
        exceeding = exceeds(guess)
        if exceeding:
            layer_bytes = max(1, (high_bytes - exceeding) // (high - guess))
            high, high_bytes = guess, exceeding
        else:
            low = guess
        if 2 * (high - low) > width:
            layer_bytes = 0
    return low


def most_context(ask: Ask, placement: Placement, trained: int, rooms: Sequence[Room], *, known: int = 0) -> int:
    """The largest context, a multiple of 256 up to `trained`, that fits with the layers where they are; 0 for none.

    `known` is a context that fits, the one of `placement`. The engine is not asked about one whose cache alone would
    exceed the room: some of its backends end the process on a cache that is too large for them.
    """

    def fits(context: int) -> bool:
        return not overflow(ask(placement.gpu_layers, context), rooms)

    for room in rooms:
        use = placement.memory.get(room.device, Use())
        if known and use.kv_bytes:
            more = max(0, room.usable_bytes - use.total_bytes) * known // use.kv_bytes
            trained = min(trained, (known + more) // _STEP * _STEP + _STEP)
    if fits(trained):
        return trained
    low, high = known // _STEP, -(-trained // _STEP)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * _STEP) else (low, middle)
    return low * _STEP
