"""How fast llama.cpp is on this processor, measured in half a second with weights that do not exist.

Two skeletons have one layer of every tensor type: one is as small as the built-in model's, one is larger than what
processors keep in their caches. Their files are holes, so nothing is written, and zeros take as long as other numbers.
The time between the ends of two layers is a type's; two sizes give its rate and what a layer costs whatever its size.
Import in a child process only: on some machines the first prompt ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama
from llama_cpp._ggml import libggml

from phi4local.backends.llamacpp_params import context_params, model_params
from phi4local.backends.load_settings import LoadSettings
from phi4local.errors import BackendError
from phi4local.speed import Rate, Rates
from quant.config import Config
from quant.ggml import TYPES
from quant.skeleton import Types, stored_bytes, tensor_shapes, write_skeleton

_MEASURED = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0") + (
    "IQ4_NL",
    "IQ4_XS",
)
_LAYERS = ("Q4_0", *_MEASURED, "Q4_0")  # the first has no layer before it, the last reads one token of a prompt only
_SMALL = (256, 768, 4, 2)  # hidden, intermediate, heads, KV heads
_LARGE = (1024, 3072, 8, 4)
_CONTEXT, _PROMPT = 256, 64
_SECONDS, _LEAST, _MOST = 0.12, 4, 24  # how long and how often each skeleton is run


@dataclass(frozen=True, slots=True)
class _Skeleton:
    path: Path
    layer_bytes: dict[str, int]
    layer_weights: int


@dataclass(frozen=True, slots=True)
class _Timed:
    """Seconds of each measured layer for one token and for a prompt, and of a whole token."""

    layers: list[float]
    prompt: list[float]
    token: float


def measure(folder: Path, *, safe_mode: bool) -> Rates:
    """The rates of this processor with all its cores (BackendError); `folder` holds the skeletons meanwhile."""
    small = _write(folder / "small.gguf", *_SMALL)
    large = _write(folder / "large.gguf", *_LARGE)
    few, many = (_time(_settings(skeleton, safe_mode=safe_mode)) for skeleton in (small, large))
    # Looking at each layer costs half as much as a small one takes: a token without that tells how much.
    token_seconds = _token_seconds(_settings(small, safe_mode=safe_mode))
    few_layers = [seconds * token_seconds / few.token for seconds in few.layers]
    rates: dict[str, Rate] = {}
    overheads: list[float] = []
    for kind, low, high, prompt in zip(_MEASURED, few_layers, many.layers, many.prompt, strict=True):
        low_bytes, high_bytes = small.layer_bytes[kind], large.layer_bytes[kind]
        generation = (high_bytes - low_bytes) / max(high - low, high / 2)
        rates[kind] = Rate(generation, large.layer_weights * _PROMPT / prompt)
        overheads.append(low - low_bytes / generation)
    layer_seconds = max(0.0, statistics.median(overheads))
    rest = token_seconds - len(_LAYERS) * statistics.median(few_layers)
    return Rates(max(0.0, rest), layer_seconds, rates)


def _settings(skeleton: _Skeleton, *, safe_mode: bool) -> LoadSettings:
    return LoadSettings(str(skeleton.path), _CONTEXT, gpu_layers=0, safe_mode=safe_mode)


def _write(path: Path, hidden: int, intermediate: int, heads: int, kv_heads: int) -> _Skeleton:
    config = Config(
        hidden=hidden,
        intermediate=intermediate,
        layers=len(_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        vocabulary=256,
        context=_CONTEXT,
        original_context=_CONTEXT,
        rotary_dimensions=hidden // heads,
        rope_theta=10_000,
        long_rope=None,
        rms_epsilon=1e-5,
        sliding_window=0,
        tied=False,
        special_ids={},
    )
    shapes = tensor_shapes(config)
    types: Types = {}
    layer_bytes: dict[str, int] = {}
    layer_weights = 0
    for name, shape in shapes.items():
        kind = _LAYERS[int(name.split(".")[1])] if name.startswith("blk.") else "Q4_0"
        types[name] = TYPES[kind if len(shape) == 2 else "F32"]
        if name.startswith("blk.") and len(shape) == 2 and not name.startswith((f"blk.{len(_LAYERS) - 1}.", "blk.0.")):
            layer_bytes[kind] = layer_bytes.get(kind, 0) + stored_bytes(shape, types[name])
            layer_weights += math.prod(shape)
    write_skeleton(path, config, "BF16", types)
    return _Skeleton(path, layer_bytes, layer_weights // len(_MEASURED))


def _time(settings: LoadSettings) -> _Timed:
    stamps: list[float] = []
    with _context(settings, _watcher(stamps)) as context:
        _decode(context, 2)  # where long prompts crash, this one does
        runs = _repeat(context, stamps)
        _decode(context, _PROMPT)
        prompt = _layers(stamps)
    layers = [_low(layer) for layer in zip(*(layers for _, layers in runs), strict=True)]
    return _Timed(layers, prompt, _low([seconds for seconds, _ in runs]))


def _token_seconds(settings: LoadSettings) -> float:
    with _context(settings, None) as context:
        return _low([seconds for seconds, _ in _repeat(context, [])])


def _low(seconds: Sequence[float]) -> float:
    """The lower quartile: what else runs on the machine only ever adds."""
    return sorted(seconds)[len(seconds) // 4]


def _watcher(stamps: list[float]) -> Any:
    """A callback that notes when each layer ends."""
    libggml.ggml_get_name.restype, libggml.ggml_get_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]

    def at_node(tensor: int, ask: bool, _data: Any) -> bool:
        if ask:
            return bool(libggml.ggml_get_name(tensor).startswith(b"l_out"))
        stamps.append(time.perf_counter())
        return True

    return llama.ggml_backend_sched_eval_callback(at_node)


@contextlib.contextmanager
def _context(settings: LoadSettings, watch: Any) -> Iterator[Any]:
    model = llama.llama_model_load_from_file(os.fsencode(settings.path), model_params(settings))
    params = context_params(settings, _CONTEXT)
    if watch is not None:
        params.cb_eval = watch
    context = llama.llama_init_from_model(model, params) if model else None
    if not context:
        raise BackendError("The engine cannot run its own measuring model")
    try:
        yield context
    finally:
        llama.llama_free(context)
        llama.llama_model_free(model)


def _repeat(context: Any, stamps: list[float]) -> list[tuple[float, list[float]]]:
    """Seconds of a token and of its layers, some times; the first half warms up the caches and is left out."""
    runs: list[tuple[float, list[float]]] = []
    end = time.perf_counter() + _SECONDS
    while len(runs) < _LEAST or (len(runs) < _MOST and time.perf_counter() < end):
        stamps.clear()
        start = time.perf_counter()
        _decode(context, 1)
        runs.append((time.perf_counter() - start, _layers(stamps)))
    return runs[len(runs) // 2 :]


def _layers(stamps: list[float]) -> list[float]:
    """The seconds of the measured layers of the last run, from the ends of all of them."""
    ends = stamps[-len(_LAYERS) :][:-1]
    return [after - before for before, after in itertools.pairwise(ends)]


def _decode(context: Any, tokens: int) -> None:
    ids = (ctypes.c_int32 * tokens)(*[1] * tokens)
    if llama.llama_decode(context, llama.llama_batch_get_one(ids, tokens)):
        raise BackendError("The engine cannot run its own measuring model")
    llama.llama_get_logits_ith(context, -1)  # waits for the computation
