"""How fast llama.cpp is on this processor, measured in half a second with weights that do not exist.

Skeletons have one layer of each tensor type. One is as small as the built-in model and stays in the caches, one is
larger than those of most processors, and one with few types has layers like a model of some billions of weights.
Their files are holes, so nothing is written, and zeros take as long as other numbers.
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
from phi4local.speed import Curve, Rate, Rates
from quant.config import Config
from quant.ggml import TYPES
from quant.skeleton import Types, stored_bytes, tensor_shapes, write_skeleton

_MEASURED = (
    *("F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K"),
    *("Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"),
)
_FEW = ("BF16", "Q8_0", "Q4_K")  # of the small skeleton, so that all of it stays in a cache
_ENDS = "Q2_K"  # the first layer has none before it, the last reads one token of a prompt only: neither is measured
_SMALL = (256, 768, 4, 2)  # hidden, intermediate, heads, KV heads
_LARGE = (1024, 4096, 8, 4)
_WIDE = (1792, 5376, 14, 7)
_CONTEXT, _PROMPT = 256, 32
_SMALL_SECONDS, _LARGE_SECONDS, _WIDE_SECONDS, _LEAST_RUNS = 0.05, 0.12, 0.04, 4  # how long each is run
_LEAST_GAIN, _MOST_GAIN = 0.6, 1.2  # beyond that it is noise


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """A file without weights: bytes of each of its measured layers, and the weights of any of them."""

    path: Path
    layer_bytes: list[int]
    weights: int


@dataclass(frozen=True, slots=True)
class _Timed:
    """Seconds of each measured layer for a token, and for a token of a prompt, and of a whole token."""

    skeleton: _Skeleton
    layers: list[float]
    prompt: list[float]
    token: float


def measure(folder: Path, *, safe_mode: bool) -> Rates:
    """The rates of this processor with all its cores (BackendError); `folder` holds the skeletons meanwhile."""

    def time_layers(
        name: str, kinds: Sequence[str], shape: tuple[int, int, int, int], seconds: float, prompt: int = _PROMPT
    ) -> _Timed:
        skeleton = _write(folder / name, kinds, shape)
        return _time(skeleton, settings(skeleton), seconds, prompt)

    def settings(skeleton: _Skeleton) -> LoadSettings:
        return LoadSettings(str(skeleton.path), _CONTEXT, gpu_layers=0, safe_mode=safe_mode)

    small = time_layers("small.gguf", _FEW, _SMALL, _SMALL_SECONDS)
    large = time_layers("large.gguf", _MEASURED, _LARGE, _LARGE_SECONDS)
    wide = time_layers("wide.gguf", _FEW, _WIDE, _WIDE_SECONDS, prompt=2)
    # Looking at each layer costs as much as half a small one: a token without that tells how much.
    token_seconds = _token_seconds(settings(small.skeleton))
    unseen = token_seconds / small.token
    unseen_layers = [seconds * unseen for seconds in small.layers]
    regression = statistics.linear_regression(small.skeleton.layer_bytes, unseen_layers)
    prompt = (small.skeleton.weights, statistics.fmean(small.prompt) * unseen)
    gain = _gain(large, wide)
    rates: dict[str, Rate] = {}
    for place, kind in enumerate(_MEASURED):
        small_bytes = TYPES[kind].block_bytes * small.skeleton.weights / TYPES[kind].block_weights
        few = (small_bytes, max(min(unseen_layers) / 2, regression.intercept + regression.slope * small_bytes))
        many = (large.skeleton.layer_bytes[place], large.layers[place])
        most = (large.skeleton.weights, large.prompt[place])
        rates[kind] = Rate(Curve(few, many, many[1] / many[0] * gain), Curve(prompt, most, most[1] / most[0]))
    rest = token_seconds - (len(_FEW) + 2) * statistics.fmean(unseen_layers)
    return Rates(max(0.0, rest), rates)


def _gain(large: _Timed, wide: _Timed) -> float:
    """What a byte more takes in a very large layer, as a share of what a byte takes in a large one."""
    shares = []
    for place, kind in enumerate(_FEW):
        size, seconds = large.skeleton.layer_bytes[_MEASURED.index(kind)], large.layers[_MEASURED.index(kind)]
        more_seconds = (wide.layers[place] - seconds) / (wide.skeleton.layer_bytes[place] - size)
        shares.append(more_seconds / (seconds / size))
    return min(_MOST_GAIN, max(_LEAST_GAIN, statistics.median(shares)))


def _write(path: Path, kinds: Sequence[str], shape: tuple[int, int, int, int]) -> _Skeleton:
    """A skeleton with a layer of each kind, and one more at each end."""
    hidden, intermediate, heads, kv_heads = shape
    layers = (_ENDS, *kinds, _ENDS)
    config = Config(
        hidden=hidden,
        intermediate=intermediate,
        layers=len(layers),
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
    stored: list[int] = [0] * len(layers)
    weights: list[int] = [0] * len(layers)
    for name, dims in shapes.items():
        layer = int(name.split(".")[1]) if name.startswith("blk.") else None
        types[name] = TYPES[(_ENDS if layer is None else layers[layer]) if len(dims) == 2 else "F32"]
        if layer is not None and len(dims) == 2:
            stored[layer] += stored_bytes(dims, types[name])
            weights[layer] += math.prod(dims)
    write_skeleton(path, config, "BF16", types)
    return _Skeleton(path, stored[1:-1], weights[0])


def _time(skeleton: _Skeleton, settings: LoadSettings, run_seconds: float, prompt_tokens: int) -> _Timed:
    stamps: list[float] = []
    with _context(settings, _watcher(stamps)) as context:
        _decode(context, 2)  # where long prompts crash, this one does
        runs = _repeat(context, stamps, run_seconds)
        stamps.clear()
        _decode(context, prompt_tokens)
        prompt = [seconds / prompt_tokens for seconds in _layers(stamps)]
    token = min(seconds for seconds, _ in runs)
    layers = [min(layer) for layer in zip(*(layers for _, layers in runs), strict=True)]
    return _Timed(skeleton, layers, prompt, token)


def _token_seconds(settings: LoadSettings) -> float:
    with _context(settings, None) as context:
        return min(seconds for seconds, _ in _repeat(context, [], _SMALL_SECONDS))


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


def _repeat(context: Any, stamps: list[float], seconds: float) -> list[tuple[float, list[float]]]:
    """Seconds of a token and of its layers, for so long; the first two thirds warm up the caches and are left out.

    The least of them counts: what else runs on the machine only ever adds.
    """
    runs: list[tuple[float, list[float]]] = []
    sampler = llama.llama_sampler_init_greedy()
    end = time.perf_counter() + seconds
    while len(runs) < _LEAST_RUNS or time.perf_counter() < end:
        stamps.clear()
        start = time.perf_counter()
        _decode(context, 1)
        llama.llama_sampler_sample(sampler, context, -1)
        runs.append((time.perf_counter() - start, _layers(stamps)))
    llama.llama_sampler_free(sampler)
    return runs[len(runs) * 2 // 3 :]


def _layers(stamps: list[float]) -> list[float]:
    """The seconds of the measured layers, from the ends of all layers of a run."""
    return [after - before for before, after in itertools.pairwise(stamps[:-1])]


def _decode(context: Any, tokens: int) -> None:
    ids = (ctypes.c_int32 * tokens)(*[1] * tokens)
    if llama.llama_decode(context, llama.llama_batch_get_one(ids, tokens)):
        raise BackendError("The engine cannot run its own measuring model")
    llama.llama_get_logits_ith(context, -1)  # waits for the computation
