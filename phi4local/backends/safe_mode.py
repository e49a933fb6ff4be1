"""On which machines, and with which build of the engine, llama.cpp has to run with safe settings: found out by a crash.

The memory is a small JSON file. A damaged one counts as empty: the worst that follows is one more crash and retry.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
from pathlib import Path

from phi4local.errors import Phi4LocalError
from phi4local.files import atomic_write, read_bounded

_FILE_BYTES = 1 << 16
_LIBRARIES = ("libllama.so", "libllama.dylib", "llama.dll")


def memory_file(state_folder: Path) -> Path:
    """Where the memory is kept."""
    return state_folder / "safe-mode.json"


def machine_and_build() -> str:
    """What the memory is about: processor, platform and the engine's build, in one line."""
    try:
        version = importlib.metadata.version("llama_cpp_python")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    machine = f"{platform.system()} {platform.machine()} {_processor()}"
    return f"{machine}, llama-cpp-python {version}, library of {_library_bytes()} bytes"


def crash_remembered(memory: Path, key: str) -> str:
    """The cause that was remembered for `key`; empty when there is none."""
    cause = _read(memory).get(key, "")
    return cause if isinstance(cause, str) else ""


def remember_crash(memory: Path, key: str, cause: str) -> None:
    """Note that `key` needs safe settings because of `cause`."""
    with atomic_write(memory) as file:
        file.write(json.dumps({**_read(memory), key: cause}, indent=1).encode())


def _read(memory: Path) -> dict[str, object]:
    try:
        known = json.loads(read_bounded(memory, _FILE_BYTES))
    except (Phi4LocalError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor()  # which starts a process


def _library_bytes() -> int:
    """The size of libllama, found without importing it; 0 when it is not there."""
    found = importlib.util.find_spec("llama_cpp")
    folder = os.environ.get("LLAMA_CPP_LIB_PATH") or (
        Path(found.origin).parent / "lib" if found and found.origin else ""
    )
    sizes = (path.stat().st_size for path in (Path(folder) / name for name in _LIBRARIES) if path.is_file())
    return next(sizes, 0)
