"""How a model was loaded, for people and for programs: what it took of which memory, and what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from phi4local.engine import Load
from phi4local.fit import Use, total
from phi4local.speed import Benchmark
from phi4local.units import memory


def load_json(load: Load) -> dict[str, Any]:
    """How a model was loaded: predicted and taken memory by device, in bytes, and both sums."""
    return asdict(load) | {
        "predicted_bytes": total(load.predicted).total_bytes,
        "took_bytes": total(load.took).total_bytes,
    }


def describe(load: Load | None, benchmarks: Sequence[Benchmark]) -> list[tuple[str, str]]:
    """What this machine knows of it."""
    facts = []
    if load:
        took, predicted = total(load.took).total_bytes, total(load.predicted).total_bytes
        error = f" ({took / predicted - 1:+.1%})" if predicted else ""
        facts += [
            ("Last load", f"context {load.context_tokens}, KV cache {load.kv_type}, {load.gpu_layers} layers on cards"),
            ("  took", f"{memory(took)}, {memory(predicted)} predicted{error}"),
            *((f"  {device}", _use(use)) for device, use in load.took.items()),
        ]
        if load.resident_bytes is not None:
            facts.append(("  process", f"grew by {memory(load.resident_bytes)} in memory"))
    for one in benchmarks:
        speeds = f"{one.measured.generation_tps:.1f} tokens per second" if one.measured.generation_tps else "?"
        told = f", {one.predicted.generation_tps:.1f} predicted" if one.predicted.generation_tps else ""
        facts.append(("Benchmark", f"{speeds}{told} ({one.where})"))
    return facts or [("Last load", "never on this machine")]


def _use(use: Use) -> str:
    return f"weights {memory(use.weights_bytes)}, KV {memory(use.kv_bytes)}, compute {memory(use.compute_bytes)}"
