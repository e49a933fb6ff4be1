"""Questions that llama.cpp answers without loading a model, each put to it in a child of its own.

A question that llama.cpp does not like ends the process that asked (`phi4local.backends.asked`).
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from hardware.report import EngineBuild, EngineDevice
from phi4local.backends.process import environment, python_module
from phi4local.errors import BackendError

_DEADLINE_SECONDS = 60
REINSTALL = "Reinstall the engine: pip install --force-reinstall llama-cpp-python==0.3.36"


def tensor_types(skeleton: Path, file_type: int) -> dict[str, str]:
    """The type that llama.cpp's quantizer would give each tensor, as `quant.ggml.TYPES` spells it (BackendError)."""
    answer: dict[str, str] = _ask("types", str(skeleton), str(file_type))
    return answer


def engine_build() -> EngineBuild:
    """What the installed engine was built with, and the devices that it sees (BackendError)."""
    return read_facts(_ask("build"))


def read_facts(facts: dict[str, Any]) -> EngineBuild:
    """The engine's build from its facts in JSON's types."""
    devices = tuple(EngineDevice(**device) for device in facts["devices"])
    return EngineBuild(**facts | {"features": tuple(facts["features"]), "devices": devices})


def _ask(*question: str) -> Any:
    command = [*python_module("phi4local.backends.asked"), *question]
    try:
        child = subprocess.run(command, capture_output=True, timeout=_DEADLINE_SECONDS, check=False, env=environment())
        if child.returncode == 0:
            return json.loads(child.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise BackendError("The engine did not answer", hint=REINSTALL) from None
    reason = child.stderr.decode(errors="replace").strip().splitlines()
    raise BackendError(f"The engine failed: {reason[-1] if reason else child.returncode}", hint=REINSTALL)
