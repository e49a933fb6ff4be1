"""llama.cpp through its C interface, without our engine: logits of every position of a text."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt


@llama_cpp.llama_log_callback
def _silent(_level: int, _text: bytes, _data: Any) -> None: ...


def silence() -> None:
    """Keep llama.cpp's log out of the test report."""
    llama_cpp.llama_log_set(_silent, None)


def logits(path: Path, tokens: Sequence[int], context: int) -> npt.NDArray[np.float32]:
    """Logits [len(tokens), vocabulary] in a context of `context` tokens, keys and values in float32."""
    silence()
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = False  # compiled by gcc 12, AMX kernels crash (llama.cpp #20824)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, path
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = context
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.n_threads = settings.n_threads_batch = 2
    state = llama_cpp.llama_init_from_model(model, settings)
    assert state
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    assert llama_cpp.llama_decode(state, batch) == 0
    pointer = ctypes.cast(llama_cpp.llama_get_logits(state), ctypes.POINTER(ctypes.c_float))
    result = np.ctypeslib.as_array(pointer, (len(tokens), size)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(state)
    llama_cpp.llama_model_free(model)
    return result
