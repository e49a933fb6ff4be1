"""llama.cpp's own quantizer, asked without quantizing: which type does each tensor of a skeleton get?

`tensor_types` asks in a child process, because a question that llama.cpp does not like ends the process that asked.
Run as a module, this file is that child: skeleton and file type in, one JSON object out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from phi4local.errors import BackendError

_DEADLINE_SECONDS = 60
# `[  12/ 243]               blk.1.attn_qkv.weight - [ 5120,  7680,     1,     1], type =   bf16, size = ... (q4_K)`
_LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[[^\]]*\], type = +(\w+), size = [^(\n]*(?:\((\w+)\))?")


def tensor_types(skeleton: Path, file_type: int) -> dict[str, str]:
    """The name of the type that each tensor would get, as `quant.ggml.TYPES` spells it (BackendError)."""
    command = [sys.executable, "-m", "phi4local.backends.dry_run", str(skeleton), str(file_type)]
    try:
        child = subprocess.run(command, capture_output=True, timeout=_DEADLINE_SECONDS, check=False)
        if child.returncode == 0:
            answers: dict[str, str] = json.loads(child.stdout)
            return answers
    except (subprocess.TimeoutExpired, ValueError):
        raise BackendError("The engine's dry run did not answer", hint=_REINSTALL) from None
    reason = child.stderr.decode(errors="replace").strip().splitlines()
    raise BackendError(f"The engine's dry run failed: {reason[-1] if reason else child.returncode}", hint=_REINSTALL)


_REINSTALL = "Reinstall the engine: pip install --force-reinstall llama-cpp-python==0.3.36"


def _ask(skeleton: str, file_type: int) -> dict[str, str]:
    import llama_cpp

    lines: list[str] = []

    def keep(_level: int, text: bytes, _data: Any) -> None:
        lines.append(text.decode(errors="replace"))

    callback = llama_cpp.llama_log_callback(keep)  # must outlive the call
    llama_cpp.llama_log_set(callback, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.dry_run = True
    if llama_cpp.llama_model_quantize(skeleton.encode(), b"", params):
        raise RuntimeError("".join(lines).strip().splitlines()[-1])
    found = _LINE.finditer("".join(lines))
    return {match[1]: (match[3] or match[2]).upper() for match in found}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_ask(sys.argv[1], int(sys.argv[2]))))
