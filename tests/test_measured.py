"""What was measured on this machine survives in a file; whatever happens to that file, it can be measured again."""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from phi4local.engine import Load
from phi4local.fit import HOST, Use
from phi4local.measured import Measured, keep_benchmark, keep_load, keep_rates, read_measured
from phi4local.speed import Benchmark, Curve, Rate, Rates, Speed

ENGINE, OTHER = "machine 1, engine 0.3.36", "machine 1, engine 0.3.37"
RATES = Rates(
    2.5e-5,
    {
        "Q4_K": Rate(Curve((4e5, 7e-5), (9e6, 1.1e-3), 1.2e-10), Curve((8e5, 5e-5), (1.6e7, 1e-3), 7e-11)),
        "BF16": Rate(Curve((1.5e6, 8e-5), (3.1e7, 2e-3), 6e-11), Curve((8e5, 5e-5), (1.6e7, 9e-4), 6e-11)),
    },
)
FIRST = Benchmark("phi-4", "Q4_K_M", "cpu", Speed(4.5, 20.25), Speed(4.25, None))
SECOND = Benchmark("phi4-nano", "BF16", "gpu", Speed(), Speed(900.5, 12000.0))
LOAD = Load("cpu", 0, 40, "f16", 8192, {HOST: Use(9_000_000_000, 1_677_721_600, 300_000_000)}, {HOST: Use(9, 8, 7)})
SPLIT = Load("split", 7, 40, "q8_0", 512, {HOST: Use(1), "CUDA0": Use(1, 2, 3)}, {}, 12_345, 67_890)
TRUTH = Measured(ENGINE, RATES, [FIRST, SECOND], {"/models/phi-4.gguf": LOAD, "/models/é \udc80\n.gguf": SPLIT})


@pytest.fixture
def file(home: Path) -> Path:
    """A file with all of the truth."""
    keep_rates(ENGINE, RATES)
    keep_benchmark(ENGINE, FIRST)
    keep_benchmark(ENGINE, SECOND)
    for path, load in TRUTH.loads.items():
        keep_load(ENGINE, Path(path), load)
    return home / "state" / "measured.json"


def whole(measured: Measured) -> bool:
    """Whether every value has the type and the range that its field promises."""
    numbers = []
    if measured.rates:
        numbers.append(measured.rates.token_seconds + 1)
        for rate in measured.rates.types.values():
            for curve in (rate.generation, rate.prompt):
                numbers += [*curve.small, *curve.large, curve.beyond]
    for one in measured.benchmarks:
        for speed in (one.predicted, one.measured):
            numbers += [tps for tps in (speed.generation_tps, speed.prompt_tps) if tps is not None]
    texts = [text for one in measured.benchmarks for text in (one.name, one.build, one.where)]
    sizes = [one for load in measured.loads.values() for one in integers(load)]
    texts += [text for load in measured.loads.values() for text in (load.where, load.kv_type)]
    return (
        all(type(number) is float and math.isfinite(number) and number > 0 for number in numbers)
        and all(type(size) is int for size in sizes)
        and all(type(text) is str for text in [*texts, *measured.loads])
    )


def integers(load: Load) -> Iterator[object]:
    yield from (load.gpu_layers, load.layers, load.context_tokens)
    yield from (size for size in (load.resident_bytes, load.cards_bytes) if size is not None)
    for memory in (load.predicted, load.took):
        for use in memory.values():
            yield from (use.weights_bytes, use.kv_bytes, use.compute_bytes)


def test_a_new_machine_knows_nothing(home: Path) -> None:
    assert read_measured(ENGINE) == Measured(ENGINE)
    assert not home.exists()


def test_what_is_kept_is_read_again(file: Path) -> None:
    assert read_measured(ENGINE) == TRUTH
    assert whole(TRUTH)
    assert list(read_measured(ENGINE).loads) == list(TRUTH.loads)
    assert [path.name for path in file.parent.iterdir()] == ["measured.json"]


def test_another_engine_begins_anew(file: Path) -> None:
    assert read_measured(OTHER) == Measured(OTHER)
    assert read_measured(ENGINE) == TRUTH  # looking forgets nothing
    keep_benchmark(OTHER, FIRST)
    assert read_measured(OTHER) == Measured(OTHER, None, [FIRST], {})
    assert read_measured(ENGINE) == Measured(ENGINE)


def test_only_better_rates_replace_the_old_ones(file: Path) -> None:
    """And then what was predicted from the old ones corrects nothing any more."""
    assert keep_rates(ENGINE, replace(RATES, token_seconds=0.0)) == TRUTH
    assert read_measured(ENGINE) == TRUTH
    fast = Rate(Curve((1.5e6, 8e-5), (3.1e7, 1e-3), 3e-11), RATES.types["BF16"].prompt)
    better = replace(RATES, types={**RATES.types, "BF16": fast})
    benchmarks = [replace(one, predicted=Speed()) for one in TRUTH.benchmarks]
    assert keep_rates(ENGINE, better) == replace(TRUTH, rates=better, benchmarks=benchmarks)
    assert read_measured(ENGINE) == replace(TRUTH, rates=better, benchmarks=benchmarks)


def test_a_benchmark_replaces_the_older_one_of_the_same_build_and_place(home: Path) -> None:
    newer = replace(FIRST, measured=Speed(5.0, 30.0))
    elsewhere = replace(FIRST, where="split")
    for benchmark in (FIRST, SECOND, elsewhere, newer):
        keep_benchmark(ENGINE, benchmark)
    assert read_measured(ENGINE).benchmarks == [SECOND, elsewhere, newer]


def test_the_oldest_go_where_there_are_too_many(home: Path) -> None:
    names = [f"/m/{n}.gguf" for n in range(200)]
    home.joinpath("state").mkdir(parents=True)
    load = {"where": "cpu", "gpu_layers": 0, "layers": 1, "kv_type": "f16", "context_tokens": 1}
    load |= {"predicted": {}, "took": {}, "resident_bytes": None, "cards_bytes": None}
    speed = {"generation_tps": 1, "prompt_tps": None}
    benchmarks = [{"name": n, "build": "", "where": "", "predicted": speed, "measured": speed} for n in names]
    values = {"engine": ENGINE, "rates": None, "benchmarks": benchmarks, "loads": dict.fromkeys(names, load)}
    home.joinpath("state", "measured.json").write_text(json.dumps(values))
    assert list(read_measured(ENGINE).loads) == names

    keep_load(ENGINE, Path("/m/new.gguf"), LOAD)
    keep_load(ENGINE, Path("/m/5.gguf"), SPLIT)
    kept = read_measured(ENGINE).loads
    assert list(kept) == [*names[1:5], *names[6:], "/m/new.gguf", "/m/5.gguf"]
    assert list(kept.values())[-2:] == [LOAD, SPLIT]

    keep_benchmark(ENGINE, FIRST)
    kept_names = [one.name for one in read_measured(ENGINE).benchmarks]
    assert kept_names == [*names[1:], "phi-4"]


def test_a_file_that_ends_early_is_no_file(file: Path) -> None:
    data = file.read_bytes()
    for length in range(0, len(data), 7):
        file.write_bytes(data[:length])
        assert read_measured(ENGINE) == Measured(ENGINE), length
    file.write_bytes(data[:-1])
    assert read_measured(ENGINE) == TRUTH  # the newline at the end tells nothing


@pytest.mark.parametrize("bits", [0x01, 0x10, 0x80, 0xFF])
def test_a_flipped_byte_makes_no_value_that_cannot_be(file: Path, bits: int) -> None:
    """A digit for another is not noticed; nothing else comes through."""
    data = bytearray(file.read_bytes())
    for place in range(len(data)):
        data[place] ^= bits
        file.write_bytes(data)
        data[place] ^= bits
        found = read_measured(ENGINE)
        assert found == Measured(ENGINE) or whole(found), place


def fields(values: Any) -> Iterator[tuple[str | int, ...]]:
    """The way to every value inside a JSON value."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(values, dict):
        inner = list(values.items())
    elif isinstance(values, list):
        inner = list(enumerate(values))
    for key, value in inner:
        yield (key,)
        yield from ((key, *rest) for rest in fields(value))


def changed(values: Any, way: tuple[str | int, ...], wrong: Any) -> Any:
    result = copy.deepcopy(values)
    inner = result
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = wrong
    return result


WRONG = (None, True, -1, 0, 5, 1.5, math.nan, "x", [[]], ["x"], {}, {"x": {}}, {"x": 1}, [None, None])
WORSE = ([], [1], math.inf, -math.inf, 10**400)


@pytest.mark.parametrize(
    "wrong",
    [*WRONG, *WORSE],
    ids=lambda wrong: repr(wrong)[:20],
)
def test_no_wrong_value_is_an_error(file: Path, wrong: Any) -> None:
    values = json.loads(file.read_text())
    for way in fields(values):
        file.write_text(json.dumps(changed(values, way, wrong)))
        assert read_measured(ENGINE).engine == ENGINE, way


@pytest.mark.parametrize("key", ["engine", "benchmarks", "rates", "loads"])
def test_no_value_of_a_wrong_type_comes_through(file: Path, key: str) -> None:
    values = json.loads(file.read_text())
    for way in fields(values):
        for wrong in WRONG if way[0] == key else ():
            file.write_text(json.dumps(changed(values, way, wrong)))
            assert whole(read_measured(ENGINE)), (way, wrong)


def test_a_missing_field_is_damage(file: Path) -> None:
    values = json.loads(file.read_text())
    for way in fields(values):
        less = copy.deepcopy(values)
        inner = less
        for key in way[:-1]:
            inner = inner[key]
        if isinstance(inner, dict) and "/" not in str(way[-1]):
            del inner[way[-1]]
            file.write_text(json.dumps(less))
            assert whole(read_measured(ENGINE)), way


DAMAGE = {
    "empty": b"",
    "no JSON": b"\x00\xff\xfe" * 10,
    "a list": b"[]",
    "a text": b'"engine"',
    "null": b"null",
    "deep": b"[" * 100_000,
    "deep objects": b'{"engine":' * 100_000,
    "20 MB of spaces after it": json.dumps({"engine": ENGINE, "rates": None}).encode() + b" " * 20_000_000,
    "20 MB of one number": b"1" * 20_000_000,
    "a long number": b'{"engine": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_replaced(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert read_measured(ENGINE) == Measured(ENGINE)
    keep_rates(ENGINE, RATES)
    assert read_measured(ENGINE) == Measured(ENGINE, RATES, [], {})


def keep_all() -> None:
    keep_rates(ENGINE, RATES)
    keep_benchmark(ENGINE, FIRST)
    keep_load(ENGINE, Path("/models/phi-4.gguf"), LOAD)


def test_a_folder_in_the_files_place_costs_nothing_but_the_memory(home: Path) -> None:
    folder = home / "state" / "measured.json"
    folder.mkdir(parents=True)
    assert read_measured(ENGINE) == Measured(ENGINE)
    keep_all()
    assert read_measured(ENGINE) == Measured(ENGINE)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_file_in_the_folders_place(home: Path) -> None:
    home.mkdir()
    home.joinpath("state").write_text("")
    keep_all()
    assert read_measured(ENGINE) == Measured(ENGINE)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_in_the_files_place_is_not_waited_for(home: Path) -> None:
    home.joinpath("state").mkdir(parents=True)
    os.mkfifo(home / "state" / "measured.json")
    assert read_measured(ENGINE) == Measured(ENGINE)
    keep_all()
    assert read_measured(ENGINE).rates == RATES


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_keeps_what_it_has(file: Path) -> None:
    file.parent.chmod(0o500)
    try:
        keep_rates(ENGINE, replace(RATES, token_seconds=1.0))
        keep_load(ENGINE, Path("/models/other.gguf"), LOAD)
        assert read_measured(ENGINE) == TRUTH
        file.parent.chmod(0o000)
        assert read_measured(ENGINE) == Measured(ENGINE)
    finally:
        file.parent.chmod(0o700)
