"""A model in llama.cpp, by its C interface: load, read a prompt, sample, write. Import in a child process only.

    LlamaModel   the weights and the vocabulary
    Timeline     one KV cache and the token ids in it; reads only what it has not read yet
    NativeLog    what llama.cpp says; the reason of a failure stands nowhere else

Phi-4-mini has two sets of rope factors, and llama.cpp chooses by the size of the *context*, not by the position. So a
timeline of such a model begins with a context no larger than the short factors reach, and when the conversation passes
that, it makes the large one and reads the tokens again; a shorter conversation later goes back.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as llama

from phi4local.backends.llamacpp_params import BATCH_TOKENS, context_params, model_params
from phi4local.backends.llamacpp_vocab import LlamaVocabulary
from phi4local.backends.load_settings import CONTEXT_STEP, LoadSettings, wanted_context, whole_context
from phi4local.backends.worker import Cancelled, reusable, size_for
from phi4local.engine import GenerationOptions
from phi4local.errors import BackendError, InsufficientResources

_STATE_FORMAT = 1
_ABORTED = 2
_LOG_BYTES = 1 << 20
_VALUE_BYTES = 1 << 20
_DEBUG, _ERROR, _CONTINUED = 1, 4, 5  # ggml's log levels
_MEMORY_SIGNS = ("failed to allocate", "unable to allocate", "out of memory")
CANNOT_LOAD = "The engine cannot load the model"
_NO_ABORT = llama.ggml_abort_callback()


class NativeLog:
    """Writes llama.cpp's messages to a file, bounded, and keeps the errors of one request."""

    def __init__(self, fd: int) -> None:
        self.errors: list[str] = []
        self._fd = fd
        self._left_bytes = _LOG_BYTES
        self._level = 0
        self._callback = llama.llama_log_callback(self._keep)  # must live as long as the library
        llama.llama_log_set(self._callback, None)

    def listen(self) -> None:
        """Forget the errors of earlier requests."""
        self.errors.clear()

    def _keep(self, level: int, text: bytes, _data: object) -> None:
        self._level = self._level if level == _CONTINUED else level
        if self._level == _DEBUG:  # some for every token
            return
        if self._level == _ERROR and text.strip():
            self.errors.append(text.decode(errors="replace").strip())
        if self._left_bytes > 0:
            self._left_bytes -= len(text)
            os.write(self._fd, text)


def failure(what: str, errors: Sequence[str]) -> BackendError | InsufficientResources:
    """What the engine's errors mean; the first one is the reason."""
    said = " ".join(errors).lower()
    reason = f"{what}: {errors[0] if said else 'it does not say why'}"
    if any(sign in said for sign in _MEMORY_SIGNS):
        return InsufficientResources(reason, hint="Choose a smaller build or a smaller `--context`")
    return BackendError(reason, hint="`phi4local verify` finds a damaged build; `--context` takes less memory")


class LlamaModel:
    """Loaded weights (BackendError, InsufficientResources when they do not load; UsageError for a wrong context)."""

    def __init__(self, settings: LoadSettings, log: NativeLog) -> None:
        self.settings = settings
        self.log = log
        llama.llama_backend_init()
        self.handle = llama.llama_model_load_from_file(os.fsencode(settings.path), model_params(settings))
        if not self.handle:
            raise self.failure(CANNOT_LOAD)
        self.vocabulary = LlamaVocabulary(llama.llama_model_get_vocab(self.handle))
        self.trained_tokens: int = llama.llama_model_n_ctx_train(self.handle)
        self.context_sizes = self._context_sizes()

    @property
    def description(self) -> str:
        """As llama.cpp calls it: `phi3 14B Q4_K - Medium`."""
        return self._text(llama.llama_model_desc, 256)

    @property
    def template(self) -> str:
        """The chat template in the file; empty when there is none."""
        source: bytes | None = llama.llama_model_chat_template(self.handle, None)
        return (source or b"").decode(errors="replace")

    def metadata(self, key: str) -> str:
        """A metadata value as text; empty when absent."""
        return self._text(lambda model, buffer, size: llama.llama_model_meta_val_str(model, key.encode(), buffer, size))

    def failure(self, what: str) -> BackendError | InsufficientResources:
        """The error to raise after the engine refused something."""
        return failure(what, self.log.errors)

    def _text(self, ask: Callable[[Any, Any, int], int], room: int = _VALUE_BYTES) -> str:
        buffer = ctypes.create_string_buffer(room)
        return buffer.value.decode(errors="replace") if ask(self.handle, buffer, room) >= 0 else ""

    def _context_sizes(self) -> tuple[int, ...]:
        """The sizes that a context of this model may have, smallest first: two when rope factors change in between."""
        wanted = wanted_context(self.settings, self.trained_tokens)
        whole = whole_context(wanted)
        short = self._short_rope_tokens() // CONTEXT_STEP * CONTEXT_STEP
        return (short, whole) if 0 < short < whole else (whole,)

    def _short_rope_tokens(self) -> int:
        """How far the short rope factors reach; 0 for a model with one set of factors."""
        name = self.metadata("general.architecture")
        original = self.metadata(f"{name}.rope.scaling.original_context_length")
        longrope = self.metadata(f"{name}.rope.scaling.type") in ("", "longrope")
        return int(original) if longrope and original.isdecimal() and int(original) < self.trained_tokens else 0


class Timeline:
    """One KV cache and the ids of the tokens in it. `cancelled` is asked while a prompt is read."""

    def __init__(self, model: LlamaModel, cancelled: Callable[[], bool]) -> None:
        self._model = model
        self._cancelled = cancelled
        self._abort = llama.ggml_abort_callback(lambda _data: cancelled())
        self._one = (ctypes.c_int32 * 1)()
        self._batch = llama.llama_batch_get_one(self._one, 1)
        self.tokens: list[int] = []
        self.size = 0  # of the context that is open
        self._open(model.context_sizes[0])

    def __len__(self) -> int:
        return len(self.tokens)

    def rewind(self, ids: Sequence[int]) -> int:
        """Keep the common beginning with `ids`, in a context that has room for them all; its length (UsageError)."""
        self._open(size_for(ids, self._model.context_sizes))
        return self._keep(reusable(self.tokens, ids))

    def clear(self) -> None:
        """Forget everything."""
        self._keep(0)

    @property
    def state_bytes(self) -> int:
        """About what `save` writes; 0 where nothing was read."""
        size: int = llama.llama_state_seq_get_size(self.context, 0)
        return size + ctypes.sizeof(self._one) * len(self.tokens) if self.tokens else 0

    def save(self, path: Path) -> int:
        """Write cache and tokens over the file; how many bytes, 0 where that failed."""
        ids = (ctypes.c_int32 * len(self.tokens))(*self.tokens)
        size: int = llama.llama_state_seq_save_file(self.context, os.fsencode(path), 0, ids, len(ids))
        return size

    def restore(self, path: Path, size: int) -> int:
        """Take over what was saved in a context of this size; how many tokens, 0 and an empty timeline if it fails.

        The file must be sound: llama.cpp may end the process over one that is not.
        """
        self._open(size)
        self._forget()
        ids, count = (ctypes.c_int32 * size)(), ctypes.c_size_t()
        read = llama.llama_state_seq_load_file(self.context, os.fsencode(path), 0, ids, size, ctypes.byref(count))
        ends = (llama.llama_memory_seq_pos_min(self._memory, 0), llama.llama_memory_seq_pos_max(self._memory, 0))
        if read and ends == (0, count.value - 1):
            self.tokens = ids[: count.value]
        else:
            self._forget()
        return len(self.tokens)

    def read(self, ids: Sequence[int]) -> None:
        """Add a part of a prompt, in batches (BackendError, Cancelled).

        The abort callback runs before every node of a graph, so it is set here only.
        """
        llama.llama_set_abort_callback(self.context, self._abort, None)
        try:
            for start in range(0, len(ids), BATCH_TOKENS):
                self._read_batch(ids[start : start + BATCH_TOKENS])
        finally:
            llama.llama_set_abort_callback(self.context, _NO_ABORT, None)

    def append(self, token: int) -> bool:
        """Add one token; False when the context is full (BackendError)."""
        if len(self.tokens) == self.size and not self._grow():
            return False
        self._one[0] = token
        if llama.llama_decode(self.context, self._batch):
            raise self._broken()
        self.tokens.append(token)
        return True

    def _open(self, size: int) -> None:
        """Have a context of this size; a new one is empty."""
        if size == self.size:
            return
        self._close()
        self.context = llama.llama_init_from_model(self._model.handle, context_params(self._model.settings, size))
        if not self.context:
            raise self._model.failure(f"The engine cannot make a context of {size} tokens")
        self._memory = llama.llama_get_memory(self.context)
        self.size = size

    def _close(self) -> None:
        if self.size:
            llama.llama_free(self.context)
        self.tokens, self.size = [], 0

    def _grow(self) -> bool:
        """Go on in the larger context, when there is one."""
        if self.size == self._model.context_sizes[-1]:
            return False
        tokens = self.tokens
        self._open(self._model.context_sizes[-1])
        self.read(tokens)
        return True

    def _keep(self, count: int) -> int:
        """Drop all but the first `count` tokens, or all when the cache cannot be cut; how many are left."""
        if not llama.llama_memory_seq_rm(self._memory, 0, count, -1):
            self._forget()
            return 0
        del self.tokens[count:]
        return count

    def _forget(self) -> None:
        """Empty the cache, whatever is in it."""
        llama.llama_memory_clear(self._memory, True)
        self.tokens = []

    def _read_batch(self, ids: Sequence[int]) -> None:
        array = (ctypes.c_int32 * len(ids))(*ids)
        status = (
            _ABORTED
            if self._cancelled()
            else llama.llama_decode(self.context, llama.llama_batch_get_one(array, len(ids)))
        )
        if status == _ABORTED:
            self._keep(len(self.tokens))
            raise Cancelled
        if status:
            raise self._broken()
        self.tokens.extend(ids)

    def _broken(self) -> BackendError | InsufficientResources:
        """After a failed decode nothing in the cache is trusted."""
        self._forget()
        return self._model.failure("The engine could not go on")


def make_sampler(options: GenerationOptions) -> Any:
    """llama.cpp's own chain; to be freed with `llama_sampler_free`."""
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    for sampler in _samplers(options):
        llama.llama_sampler_chain_add(chain, sampler)
    return chain


def _samplers(options: GenerationOptions) -> list[Any]:
    if options.temperature <= 0:
        return [llama.llama_sampler_init_greedy()]
    return [
        llama.llama_sampler_init_top_k(options.top_k),
        llama.llama_sampler_init_top_p(options.top_p, 1),
        llama.llama_sampler_init_temp(options.temperature),
        llama.llama_sampler_init_dist(options.seed & 0xFFFFFFFF),
    ]


def state_key(model: LlamaModel, identity: dict[str, Any]) -> dict[str, Any]:
    """All that the values in the cache depend on; the context sizes decide about the rope factors.

    The layers on a card are no part of it: they change with the free memory and the values do not depend on them. Where
    they change the layout of the cache (flash attention), llama.cpp refuses the file itself.
    """
    settings = model.settings
    return {
        "format": [_STATE_FORMAT, llama.LLAMA_STATE_SEQ_VERSION],
        "engine": llama_cpp.__version__,
        "system": llama.llama_print_system_info().decode(errors="replace"),
        "model": identity,
        "context_sizes": list(model.context_sizes),
        "kv_type": settings.kv_type,
        "flash_attention": int(context_params(settings, model.context_sizes[0]).flash_attn_type),
        "safe_mode": settings.safe_mode,
    }
