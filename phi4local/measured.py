"""What was measured on this machine with this engine: rates, benchmarks, and what each file's last load took.

    state/measured.json    {"engine": which machine and build, "rates": {...}, "benchmarks": [...], "loads": {...}}

Another machine or engine begins anew, and so does a file that is damaged: all of it can be measured again.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from phi4local.engine import Load
from phi4local.errors import Phi4LocalError
from phi4local.files import atomic_write, read_bounded
from phi4local.fit import Memory, Use, Where
from phi4local.settings import state_folder
from phi4local.speed import Benchmark, Curve, Rate, Rates, Speed, bandwidth

_LIMIT_BYTES = 10_000_000
_MOST_LOADS = 200
_MOST_BENCHMARKS = 200
_BETTER = 1.1  # by how much rates must be faster to take the place of earlier ones
_DAMAGE = (Phi4LocalError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Measured:
    """All of it; `loads` by the file's path, the newest last."""

    engine: str
    rates: Rates | None = None
    benchmarks: Sequence[Benchmark] = ()
    loads: Mapping[str, Load] = field(default_factory=dict)


def read_measured(engine: str) -> Measured:
    """What is known of this machine with this engine."""
    try:
        values = json.loads(read_bounded(_path(), _LIMIT_BYTES))
        if values["engine"] != engine:
            return Measured(engine)
        rates = _rates(values["rates"]) if values["rates"] else None
        benchmarks = [_benchmark(one) for one in values["benchmarks"]]
        loads = {str(path): _load(one) for path, one in values["loads"].items()}
    except _DAMAGE:
        return Measured(engine)
    return Measured(engine, rates, benchmarks, loads)


def keep_rates(engine: str, rates: Rates) -> Measured:
    """Remember what the processor does, unless it was seen doing better; what is known then.

    Other rates than those that a benchmark's prediction came from leave nothing to learn from that prediction.
    """
    known = read_measured(engine)
    if known.rates and bandwidth(rates) < _BETTER * bandwidth(known.rates):
        return known
    benchmarks = [replace(one, predicted=Speed()) for one in known.benchmarks]
    measured = replace(known, rates=rates, benchmarks=benchmarks)
    _write(measured)
    return measured


def keep_benchmark(engine: str, benchmark: Benchmark) -> None:
    """Remember a benchmark in the place of an older one of the same build."""
    known = read_measured(engine)
    same = (benchmark.name, benchmark.build, benchmark.where)
    others = [one for one in known.benchmarks if (one.name, one.build, one.where) != same]
    _write(replace(known, benchmarks=[*others, benchmark][-_MOST_BENCHMARKS:]))


def keep_load(engine: str, path: Path, load: Load) -> None:
    """Remember how a file was loaded last."""
    known = read_measured(engine)
    loads = {name: one for name, one in known.loads.items() if name != str(path)} | {str(path): load}
    _write(replace(known, loads=dict(list(loads.items())[-_MOST_LOADS:])))


def _path() -> Path:
    return state_folder() / "measured.json"


def _write(measured: Measured) -> None:
    """A disk that is full or read-only costs what was measured, not the work that it was measured for."""
    with contextlib.suppress(OSError), atomic_write(_path()) as file:
        file.write(json.dumps(asdict(measured), indent=1).encode() + b"\n")


def _rates(values: Any) -> Rates:
    types = {str(kind): Rate(_curve(one["generation"]), _curve(one["prompt"])) for kind, one in values["types"].items()}
    if not types:
        raise ValueError("no rates")
    token_seconds = _number(values["token_seconds"])
    if token_seconds < 0:
        raise ValueError("time runs backwards")
    return Rates(token_seconds, types)


def _curve(values: Any) -> Curve:
    small, large = ((_positive(values[key][0]), _positive(values[key][1])) for key in ("small", "large"))
    if small[0] >= large[0]:
        raise ValueError("sizes in no order")
    return Curve(small, large, _positive(values["beyond"]))


def _benchmark(values: Any) -> Benchmark:
    name, build, where = (str(values[key]) for key in ("name", "build", "where"))
    return Benchmark(name, build, where, _speed(values["predicted"]), _speed(values["measured"]))


def _speed(values: Any) -> Speed:
    return Speed(*(None if values[key] is None else _positive(values[key]) for key in ("generation_tps", "prompt_tps")))


def _load(values: Any) -> Load:
    """A `Load` from JSON (one of `_DAMAGE`)."""
    if values["where"] not in get_args(Where):
        raise ValueError("no such place")
    return Load(
        where=values["where"],
        gpu_layers=_count(values["gpu_layers"]),
        layers=_count(values["layers"]),
        kv_type=str(values["kv_type"]),
        context_tokens=_count(values["context_tokens"]),
        predicted=_memory(values["predicted"]),
        took=_memory(values["took"]),
        resident_bytes=None if values["resident_bytes"] is None else int(_number(values["resident_bytes"])),
        cards_bytes=None if values["cards_bytes"] is None else int(_number(values["cards_bytes"])),
        mapped_bytes=_count(values.get("mapped_bytes", 0)),
    )


def _memory(values: Any) -> Memory:
    return {str(device): Use(**{name: _count(size) for name, size in use.items()}) for device, use in values.items()}


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("not a count")
    return value


def _positive(value: Any) -> float:
    if _number(value) <= 0:
        raise ValueError("not above 0")
    return float(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("not a number")
    return float(value)
