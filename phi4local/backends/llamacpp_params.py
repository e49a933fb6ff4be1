"""How this program asks llama.cpp to load a model and to make a context: the loader and every prediction of memory.

Import in a child process only.
"""

from __future__ import annotations

import os
from typing import Any

import llama_cpp.llama_cpp as llama
import psutil

from phi4local.backends.devices import use_cards
from phi4local.backends.load_settings import KV_TYPES, LoadSettings

# Prompt tokens read at once, and between two looks at a cancellation.
BATCH_TOKENS = 512


def model_params(settings: LoadSettings) -> Any:
    """`llama_model_params`; weights are mapped, not read, where the device allows it."""
    params = llama.llama_model_default_params()
    params.n_gpu_layers = settings.gpu_layers
    use_cards(params, settings.split, wanted=settings.gpu_layers != 0)
    params.use_extra_bufts = not settings.safe_mode
    return params


def context_params(settings: LoadSettings, context_tokens: int) -> Any:
    """`llama_context_params` for one sequence. Only the last token of a batch has an output: the rest cost memory."""
    params = llama.llama_context_default_params()
    params.n_ctx = context_tokens
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.n_outputs_max = 1
    params.type_k = params.type_v = KV_TYPES[settings.kv_type]
    params.n_threads = params.n_threads_batch = settings.threads or physical_cores()
    if settings.safe_mode and settings.kv_type in ("f16", "f32"):  # a quantized V cache needs flash attention
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return params


def physical_cores() -> int:
    """The cores that this process may use; a second thread on a core only slows llama.cpp down."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)
