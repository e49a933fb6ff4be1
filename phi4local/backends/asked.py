"""What llama.cpp answers without loading weights. Import in a child process only: a question may end the process."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as llama

from hardware.report import plain
from phi4local.backends.devices import devices
from phi4local.errors import BackendError

_DEBUG, _ERROR = 1, 4  # ggml's log levels
# `[  12/ 243]               blk.1.attn_qkv.weight - [ 5120,  7680,     1,     1], type =   bf16, size = ... (q4_K)`
_LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[[^\]]*\], type = +(\w+), size = [^(\n]*(?:\((\w+)\))?")


class Log:
    """What llama.cpp says, kept until it is forgotten. One for a process."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._texts: list[str] = []
        self._callback = llama.llama_log_callback(self._keep)  # must live as long as the library
        llama.llama_log_set(self._callback, None)

    def forget(self) -> None:
        """Begin anew."""
        self._texts.clear()
        self.errors.clear()

    def text(self) -> str:
        """All that was said."""
        return "".join(self._texts)

    def _keep(self, level: int, text: bytes, _data: object) -> None:
        if level != _DEBUG:
            self._texts.append(text.decode(errors="replace"))
        if level == _ERROR:
            self.errors.append(text.decode(errors="replace").strip())


def tensor_types(skeleton: Path, file_type: int, log: Log) -> dict[str, str]:
    """The type that the quantizer would give each tensor: its dry run tells them line by line (BackendError)."""
    log.forget()
    params = llama.llama_model_quantize_default_params()
    params.ftype = file_type
    params.dry_run = True
    if llama.llama_model_quantize(os.fsencode(skeleton), b"", params):
        raise BackendError(log.text().strip().splitlines()[-1])
    return {match[1]: (match[3] or match[2]).upper() for match in _LINE.finditer(log.text())}


def build_facts() -> dict[str, Any]:
    """What the engine was built with and the devices that it sees, in JSON's types."""
    llama.llama_backend_init()
    info = llama.llama_print_system_info().decode(errors="replace")
    return {
        "version": llama_cpp.__version__,
        "supports_gpu": bool(llama.llama_supports_gpu_offload()),
        "features": re.findall(r"(\w+) = 1\b", info),
        "devices": [plain(device.facts) for device in devices()],
    }


def main(question: str, *arguments: str) -> None:
    """Answer one question on standard output."""
    log = Log()
    answer = tensor_types(Path(arguments[0]), int(arguments[1]), log) if question == "types" else build_facts()
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
