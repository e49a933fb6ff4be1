"""What a context takes of each device, as llama.cpp itself counts it. Import in a child process only.

The count is a C++ function that returns a std::map by value, and no C function gives the same. Its tree is read
node by node; the words that lead through it are those of libstdc++ (Linux) and libc++ (macOS), stable for a decade.

    map    libstdc++: compare, colour, root, leftmost, rightmost, size      libc++: leftmost, root, size
    node   libstdc++: colour, parent, left, right, then the value           libc++: left, right, parent, colour, value
    value  buffer type, model, context, compute
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import llama_cpp.llama_cpp as llama
from llama_cpp._ggml import libggml

from phi4local.backends.devices import cards
from phi4local.backends.llamacpp_model import CANNOT_LOAD, failure
from phi4local.backends.llamacpp_params import context_params, model_params
from phi4local.backends.load_settings import LoadSettings
from phi4local.errors import BackendError
from phi4local.fit import HOST, Memory, Use

_MAP_WORDS, _ROOT, _LEFT, _RIGHT = (3, 1, 0, 1) if sys.platform == "darwin" else (6, 2, 2, 3)
_VALUE = 4
_NODE_WORDS = _VALUE + 4
_CPU_KINDS = (0, 3)  # enum ggml_backend_dev_type: the processor, and what computes with it in the main memory
_ALL_LAYERS = -1
MAPPED = "_Mapped"  # ends the name of a buffer that is the file itself


class _Map(ctypes.Structure):
    _fields_ = [("words", ctypes.c_size_t * _MAP_WORDS)]


def _functions() -> Any:
    try:
        count = llama._lib._Z26llama_get_memory_breakdownPK13llama_context
    except AttributeError:
        raise BackendError("This build of the engine cannot count its memory") from None
    count.restype, count.argtypes = _Map, [ctypes.c_void_p]
    return count


def _declare_ggml() -> None:
    pointer = ctypes.c_void_p
    for function, result in (
        (libggml.ggml_backend_buft_name, ctypes.c_char_p),
        (libggml.ggml_backend_buft_is_host, ctypes.c_bool),
        (libggml.ggml_backend_buft_get_device, pointer),
        (libggml.ggml_backend_dev_name, ctypes.c_char_p),
        (libggml.ggml_backend_dev_type, ctypes.c_int),
    ):
        function.restype, function.argtypes = result, [pointer]


def buffers(context: Any) -> dict[str, tuple[str, Use]]:
    """Every buffer type of a context: its name -> (device, what is in it)."""
    count = _functions()
    _declare_ggml()
    found: dict[str, tuple[str, Use]] = {}
    for buffer_type, *sizes in _values(count(context).words[_ROOT]):
        name = libggml.ggml_backend_buft_name(buffer_type).decode(errors="replace")
        found[name] = (_device(buffer_type), Use(*sizes))
    return found


def _values(address: int) -> Iterator[list[int]]:
    if address:
        node = (ctypes.c_size_t * _NODE_WORDS).from_address(address)
        yield from _values(node[_LEFT])
        yield list(node[_VALUE:])
        yield from _values(node[_RIGHT])


def _device(buffer_type: int) -> str:
    device = libggml.ggml_backend_buft_get_device(buffer_type)
    if not device or libggml.ggml_backend_buft_is_host(buffer_type):
        return HOST
    kind = libggml.ggml_backend_dev_type(device)
    return HOST if kind in _CPU_KINDS else libggml.ggml_backend_dev_name(device).decode(errors="replace")


def by_device(found: dict[str, tuple[str, Use]]) -> Memory:
    """The buffers of each device together."""
    memory: dict[str, Use] = {}
    for device, use in found.values():
        memory[device] = memory.get(device, Use()) + use
    return memory


class Inquiry:
    """Asks what a file would take, by a load that allocates nothing (BackendError where llama.cpp refuses it).

    `errors` is where the process keeps what llama.cpp complains of.
    """

    def __init__(self, settings: LoadSettings, errors: Sequence[str]) -> None:
        self._settings = settings
        self._errors = errors
        self._model: Any = None
        self._gpu_layers = _ALL_LAYERS
        self._has_cards = bool(cards())
        self._answers: dict[tuple[int, int], dict[str, tuple[str, Use]]] = {}

    def __call__(self, gpu_layers: int, context_tokens: int) -> Memory:
        """What each device would have to hold."""
        return by_device(self.buffers(gpu_layers, context_tokens))

    def buffers(self, gpu_layers: int, context_tokens: int) -> dict[str, tuple[str, Use]]:
        """The same by buffer type."""
        gpu_layers = _ALL_LAYERS if gpu_layers > self.layers else gpu_layers
        key = (gpu_layers, context_tokens)
        if key not in self._answers:
            self._load(gpu_layers)
            context = llama.llama_init_from_model(self._model, context_params(self._settings, context_tokens))
            if not context:
                raise failure(f"The engine cannot make a context of {context_tokens} tokens", self._errors)
            self._answers[key] = buffers(context)
            llama.llama_free(context)
        return self._answers[key]

    @property
    def layers(self) -> int:
        """Of the model, the output not counted."""
        return int(llama.llama_model_n_layer(self._any_model()))

    @property
    def trained_tokens(self) -> int:
        """The context that the model was trained for."""
        return int(llama.llama_model_n_ctx_train(self._any_model()))

    def close(self) -> None:
        """Give the model back."""
        if self._model:
            llama.llama_model_free(self._model)
            self._model = None

    def _any_model(self) -> Any:
        if not self._model:
            self._load(_ALL_LAYERS)
        return self._model

    def _load(self, gpu_layers: int) -> None:
        if self._model and (gpu_layers == self._gpu_layers or not self._has_cards):
            return
        self.close()
        settings = replace(self._settings, gpu_layers=gpu_layers)
        params = model_params(settings)
        params.no_alloc = True
        params.load_mode = llama.LLAMA_LOAD_MODE_NONE  # with any other, no_alloc ends the process
        self._model = llama.llama_model_load_from_file(os.fsencode(settings.path), params)
        if not self._model:
            raise failure(CANNOT_LOAD, self._errors)
        self._gpu_layers = gpu_layers
