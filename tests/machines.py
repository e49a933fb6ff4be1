"""Machines that are not here: what `probe` told of them, and what llama.cpp would answer there about a model.

A file in `data/machines` is what `phi4local probe --json` prints, with a realistic machine's numbers; none is a real
person's. `Engine` stands in for llama.cpp alone: where it puts which tensor is its `load_tensors`, which type each
tensor has and how large its compute buffers are is asked of the installed engine. All the rest is the program's own.

    main memory    token embedding, layers before the first on a card, a batch's hidden states and mask
    first card     the first of the last `gpu_layers`, as its share of what the cards can hold says
    ...
    last card      the last layers, the norm and the head (of a tied model: a copy of the embedding)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from hardware.report import Cpu, Disk, EngineBuild, Gpu, Memory, Report
from phi4local.actions import fit
from phi4local.backends.ask import read_facts
from phi4local.backends.safe_mode import machine_and_build, memory_file, remember_crash
from phi4local.backends.survey import Question, Survey, Surveyed, Wanted, survey
from phi4local.catalog import Model, find_model
from phi4local.fit import HOST, Room, Use, choose_cards, most_context, place, rooms
from phi4local.measured import Measured
from phi4local.speed import work_of
from quant.config import Config
from quant.ggml import BUILDS, TYPES
from quant.gguf import align
from quant.mix import published_types
from quant.skeleton import Types, source_types, stored_bytes, tensor_bytes, tensor_shapes, write_skeleton

FOLDER = Path(__file__).parent / "data" / "machines"
LARGE = Room(HOST, 1 << 40, 1 << 40)  # a main memory for everything
CONTEXT = 8192
BATCH_TOKENS = 512
COPIES = 4  # GGML_SCHED_MAX_COPIES: so many batches are on the way through several cards


# -- a machine


@dataclass(frozen=True)
class Machine:
    """What was told of a machine, as data and as it stands in the file."""

    report: Report
    engine: EngineBuild
    printed: dict[str, Any]

    def with_free(self, **free_bytes: int) -> Machine:
        """The same machine with more or less free on its cards."""
        devices = tuple(
            replace(device, free_bytes=free_bytes.get(device.name, device.free_bytes)) for device in self.engine.devices
        )
        return replace(self, engine=replace(self.engine, devices=devices))


def read_machine(name: str) -> Machine:
    """A file of `data/machines`."""
    value = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    cpu = Cpu(**value["cpu"] | {"features": tuple(value["cpu"]["features"])})
    disks = tuple(Disk(**disk | {"path": Path(disk["path"])}) for disk in value["disks"])
    gpus = tuple(Gpu(**gpu) for gpu in value["gpus"])
    memory, notes = Memory(**value["memory"]), tuple(value["notes"])
    report = Report(value["os"], value["machine"], cpu, memory, disks, gpus, notes)
    return Machine(report, read_facts(value["engine"]), value)


def recommended(
    machine: Machine, model: str, replaced: Mapping[str, int] | None = None, measured: Measured | None = None
) -> fit.Fit:
    """What the program says there, with nothing installed and, by default, nothing measured."""
    subject = fit.find_subject(model)
    config = subject.config
    assert config is not None
    room = rooms(fit.main_room(machine.report.memory), choose_cards(machine.engine.devices), replaced or {})
    split = tuple(float(one.usable_bytes) for one in room if one.device != HOST)
    builds = tuple(_surveyed(model, wanted.build, config, room, split) for wanted in fit.wanted_builds(subject))
    found = Survey(machine.engine, tuple(room), builds, (), None)
    question = Question(config, (), found.rooms[0], CONTEXT)
    return fit._fit(subject, machine.report, found, measured or Measured("none"), question)


def _surveyed(model: str, build: str, config: Config, room: list[Room], split: Sequence[float]) -> Surveyed:
    """What `phi4local.backends.surveyor` finds, with the question put to the stand-in."""
    ask = Engine(model, build, [one.device for one in room if one.device != HOST], split)
    placement = place(ask, config.layers, CONTEXT, room)
    fits = placement.where != "none"
    most = most_context(ask, placement, config.context, room, known=CONTEXT) if fits else 0
    shapes, types = tensor_shapes(config), types_of(model)[build]
    matrices = {
        name: (types[name].name, stored_bytes(shape, types[name])) for name, shape in shapes.items() if len(shape) > 1
    }
    work = work_of(matrices, config.layers, placement.gpu_layers)
    return Surveyed(build, tensor_bytes(shapes, types), CONTEXT, config.context, placement, most, work)


# -- llama.cpp's answers


class Engine:
    """What llama.cpp would say of a build on these cards: an `Ask`."""

    def __init__(self, model: str, build: str, cards: Sequence[str], split: Sequence[float]) -> None:
        self._config = config_of(model)
        self._model, self._cards = model, cards
        self._parts = _parts(model, build)
        total = sum(split)
        self._points = [point / total for point in accumulate(split)] if total else [1.0] * len(cards)

    def __call__(self, gpu_layers: int, context_tokens: int) -> dict[str, Use]:
        """The tensors and the cache of each layer where llama.cpp puts it, and the buffers beside them."""
        config, parts, count = self._config, self._parts, gpu_layers if self._cards else 0
        context_tokens = -(-context_tokens // 256) * 256
        kv_bytes = 2 * config.kv_heads * config.head_size * context_tokens * 2
        first = config.layers + 1 - count
        memory = self._compute(count, context_tokens)
        memory[HOST] += Use(parts.embedding)
        places = [HOST] * first + [self._cards[bisect_right(self._points, index / count)] for index in range(count)]
        for device, weights_bytes in zip(places, parts.layers, strict=False):
            memory[device] += Use(weights_bytes, kv_bytes)
        for device in {*places[: config.layers]}:
            memory[device] += Use(parts.rope)
        is_there = config.tied and places[-1] == HOST  # the embedding is the head as well
        memory[places[-1]] += Use(parts.norm + (0 if is_there else parts.head))
        return memory

    def _compute(self, count: int, context_tokens: int) -> dict[str, Use]:
        """Compute buffers: a batch's hidden states (float32), its attention mask (float16), and what layers need.

        On a card: what the processor would need but the states that go in; where a layer stays in main memory, also
        a copy of its largest matrix, with which the card reads a prompt; several cards with all layers keep copies.
        """
        states, mask = BATCH_TOKENS * self._config.hidden * 4, BATCH_TOKENS * context_tokens * 2
        whole = _compute_bytes(self._model, context_tokens)
        if not count:
            return {HOST: Use(0, 0, whole)}
        first = rest = whole - states
        host = 2 * states + mask
        if count <= self._config.layers:
            first, host = first + self._parts.largest + states, host + states
        elif len(self._cards) > 1:
            first += (COPIES - 1) * mask + COPIES * states
            rest = first + COPIES * states
            host = COPIES * mask + (COPIES + 1) * states
        sizes = {card: Use(0, 0, rest if card != self._cards[0] else first) for card in self._cards}
        return {HOST: Use(0, 0, host), **sizes}


@dataclass(frozen=True)
class Parts:
    """Bytes of a build's parts; `rope` is the long and short factors, which every device with a layer has."""

    layers: tuple[int, ...]
    embedding: int
    head: int
    norm: int
    rope: int
    largest: int  # matrix of a layer


@cache
def _parts(model: str, build: str) -> Parts:
    config, types = config_of(model), types_of(model)[build]
    sizes = {name: align(stored_bytes(shape, types[name])) for name, shape in tensor_shapes(config).items()}
    layers = [0] * config.layers
    for name, size_bytes in sizes.items():
        if name.startswith("blk."):
            layers[int(name.split(".")[1])] += size_bytes
    embedding = sizes["token_embd.weight"]
    return Parts(
        layers=tuple(layers),
        embedding=embedding,
        head=sizes.get("output.weight", embedding),
        norm=sizes["output_norm.weight"],
        rope=sum(size for name, size in sizes.items() if name.startswith("rope_")),
        largest=max(size for name, size in sizes.items() if name.startswith("blk.")),
    )


def config_of(model: str) -> Config:
    """The shape of a model of the catalogue."""
    found = model_of(model).config
    assert found is not None
    return found


def model_of(name: str) -> Model:
    """A model of the catalogue."""
    found = find_model(name)
    assert found is not None
    return found


@cache
def types_of(model: str) -> dict[str, Types]:
    """The type of every tensor in every build: the installed engine's answer, or the published file's."""
    config, published = config_of(model), model_of(model).described
    plain = source_types(tensor_shapes(config))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.gguf"
        write_skeleton(source, config, "BF16", plain)
        command = [sys.executable, "-m", "tests.machines", str(source)]
        answers = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    found = {build: {name: TYPES[kind] for name, kind in answer.items()} for build, answer in answers.items()}
    made = {build: published_types(build, types) if build in published else types for build, types in found.items()}
    return {**made, "BF16": plain}


def _asked(source: Path) -> dict[str, dict[str, str]]:
    """What `phi4local.backends.ask.tensor_types` asks, of all builds in one process of its own."""
    from phi4local.backends.asked import Log, tensor_types

    log = Log()
    return {build: tensor_types(source, kind, log) for build, kind in BUILDS.items() if build != "BF16"}


def _compute_bytes(model: str, context_tokens: int) -> int:
    """On the processor: from 4096 tokens on, straight through two answers (2 bytes a token of a batch and the mask)."""
    low, high = (real_answer(model, "Q4_K_M", context).compute_bytes for context in (CONTEXT, 2 * CONTEXT))
    return low + (high - low) * (context_tokens - CONTEXT) // CONTEXT


@cache
def real_answer(model: str, build: str, context_tokens: int, *, safe_mode: bool = False) -> Use:
    """What the installed engine says of a build in the main memory.

    In safe mode weights are what they are in the file; else they may be larger, repacked for a processor with AMX.
    Without it, flash attention keeps the compute buffers as small as they are on a card.
    """
    wanted = Wanted(build, published=build in model_of(model).described)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if safe_mode:
            remember_crash(memory_file(folder), machine_and_build(), "asked for")
        found = survey(Question(config_of(model), (wanted,), LARGE, context_tokens), folder)
    if len(found.rooms) > 1:
        pytest.skip("the installed engine has cards of its own")
    (only,) = found.builds
    return only.placement.memory[HOST]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_asked(Path(sys.argv[1]))))
