"""A real load in a process of its own, and what llama.cpp's log says that it allocated: the oracle of predictions.

Run as a module: a file and load settings as JSON in, bytes of weights, KV cache and compute buffers as JSON out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

# `load_tensors:   CPU_Mapped model buffer size =  3.73 MiB`; and likewise KV, output and compute buffers
_LINE = re.compile(r"(\S+) (model|KV|output|compute) buffer size = +([0-9.]+) MiB")
_KINDS = {"model": "weights_bytes", "KV": "kv_bytes", "output": "kv_bytes", "compute": "compute_bytes"}


def load(path: Path, settings: dict[str, Any]) -> dict[str, int]:
    """Load `path` with a context, and sum what the log says of each kind."""
    command = [sys.executable, "-m", "tests.loads", str(path), json.dumps(settings)]
    child = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    result: dict[str, int] = json.loads(child.stdout)
    return result


def _main(path: str, settings: dict[str, Any]) -> None:
    import llama_cpp.llama_cpp as llama

    from phi4local.backends.llamacpp_params import context_params, model_params
    from phi4local.backends.load_settings import LoadSettings

    lines: list[str] = []
    callback = llama.llama_log_callback(lambda _level, text, _data: lines.append(text.decode(errors="replace")))
    llama.llama_log_set(callback, None)
    asked = LoadSettings(path, **settings)
    model = llama.llama_model_load_from_file(os.fsencode(path), model_params(asked))
    assert model, "".join(lines)
    assert asked.context_tokens
    assert llama.llama_init_from_model(model, context_params(asked, asked.context_tokens)), "".join(lines)
    sums = dict.fromkeys(_KINDS.values(), 0)
    for _, kind, size in _LINE.findall("".join(lines)):
        sums[_KINDS[kind]] += round(float(size) * (1 << 20))
    sys.stdout.write(json.dumps(sums))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1], json.loads(sys.argv[2]))
