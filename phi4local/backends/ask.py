"""Questions that llama.cpp answers without loading a model, each put to it in a child of its own.

A question that llama.cpp does not like ends the process that asked. Run as a module, this file is that child: the
question's name and its arguments in, one JSON value out.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hardware.report import EngineBuild, EngineDevice
from phi4local.backends.process import environment, python_module
from phi4local.errors import BackendError

_DEADLINE_SECONDS = 60
_REINSTALL = "Reinstall the engine: pip install --force-reinstall llama-cpp-python==0.3.36"
# `[  12/ 243]               blk.1.attn_qkv.weight - [ 5120,  7680,     1,     1], type =   bf16, size = ... (q4_K)`
_LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[[^\]]*\], type = +(\w+), size = [^(\n]*(?:\((\w+)\))?")


def tensor_types(skeleton: Path, file_type: int) -> dict[str, str]:
    """The type that llama.cpp's quantizer would give each tensor, as `quant.ggml.TYPES` spells it (BackendError)."""
    answer: dict[str, str] = _ask("types", str(skeleton), str(file_type))
    return answer


def engine_build() -> EngineBuild:
    """What the installed engine was built with, and the devices that it sees (BackendError)."""
    facts = _ask("build")
    devices = tuple(EngineDevice(**device) for device in facts.pop("devices"))
    return EngineBuild(**facts | {"features": tuple(facts["features"]), "devices": devices})


def _ask(*question: str) -> Any:
    command = [*python_module("phi4local.backends.ask"), *question]
    try:
        child = subprocess.run(command, capture_output=True, timeout=_DEADLINE_SECONDS, check=False, env=environment())
        if child.returncode == 0:
            return json.loads(child.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise BackendError("The engine did not answer", hint=_REINSTALL) from None
    reason = child.stderr.decode(errors="replace").strip().splitlines()
    raise BackendError(f"The engine failed: {reason[-1] if reason else child.returncode}", hint=_REINSTALL)


def _types(skeleton: str, file_type: str) -> dict[str, str]:
    import llama_cpp

    lines: list[str] = []

    def keep(_level: int, text: bytes, _data: Any) -> None:
        lines.append(text.decode(errors="replace"))

    callback = llama_cpp.llama_log_callback(keep)  # must outlive the call
    llama_cpp.llama_log_set(callback, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(file_type)
    params.dry_run = True
    if llama_cpp.llama_model_quantize(skeleton.encode(), b"", params):
        raise RuntimeError("".join(lines).strip().splitlines()[-1])
    found = _LINE.finditer("".join(lines))
    return {match[1]: (match[3] or match[2]).upper() for match in found}


def _build() -> dict[str, Any]:
    import llama_cpp

    llama_cpp.llama_backend_init()
    info = llama_cpp.llama_print_system_info().decode(errors="replace")
    return {
        "version": llama_cpp.__version__,
        "supports_gpu": bool(llama_cpp.llama_supports_gpu_offload()),
        "features": re.findall(r"(\w+) = 1\b", info),
        "devices": list(_devices()),
    }


_DEVICE_KINDS = ("cpu", "gpu", "igpu", "accel", "meta")  # enum ggml_backend_dev_type


def _devices() -> Iterator[dict[str, Any]]:
    """ggml's device list; the binding has no functions for it, so its library is called directly."""
    from llama_cpp._ggml import libggml

    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    libggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for text in (libggml.ggml_backend_dev_name, libggml.ggml_backend_dev_description):
        text.restype, text.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    libggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    size = ctypes.POINTER(ctypes.c_size_t)
    libggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size, size]
    for index in range(libggml.ggml_backend_dev_count()):
        device = libggml.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        libggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        kind = libggml.ggml_backend_dev_type(device)
        yield {
            "name": libggml.ggml_backend_dev_name(device).decode(errors="replace"),
            "description": libggml.ggml_backend_dev_description(device).decode(errors="replace"),
            "kind": _DEVICE_KINDS[kind] if kind < len(_DEVICE_KINDS) else "other",
            "free_bytes": free.value,
            "total_bytes": total.value,
        }


if __name__ == "__main__":
    questions: dict[str, Callable[..., dict[str, Any]]] = {"types": _types, "build": _build}
    sys.stdout.write(json.dumps(questions[sys.argv[1]](*sys.argv[2:])))
