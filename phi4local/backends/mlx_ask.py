"""Questions that mlx-lm answers without weights, each put to it in a child of its own (`phi4local.backends.mlx_asked`).

mlx-lm brings half of a machine-learning stack along and changes limits of the process that imports it.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Mapping
from typing import Any

from phi4local.backends.process import environment, python_module
from phi4local.errors import BackendError, UsageError

_DEADLINE_SECONDS = 180
INSTALL = "pip install 'phi4local[mlx]'"
_UNSUITABLE_STATUS = 3  # the recipe does not suit the model


def is_installed() -> bool:
    """Whether mlx-lm can be found; it is not imported."""
    return importlib.util.find_spec("mlx_lm") is not None


def check_installed() -> None:
    """Refuse where mlx-lm cannot be found (BackendError); it is not imported."""
    if not is_installed():
        raise BackendError("MLX is not installed", hint=INSTALL)


def tensor_forms(question: Mapping[str, Any]) -> dict[str, Any]:
    """What mlx-lm would make of each tensor, as `quant.mlx_plan.AskMlx` describes it (BackendError, UsageError)."""
    command = python_module("phi4local.backends.mlx_asked")
    asked = json.dumps(question).encode()
    try:
        child = subprocess.run(
            command, input=asked, capture_output=True, timeout=_DEADLINE_SECONDS, check=False, env=environment()
        )
        if child.returncode == 0:
            answer: dict[str, Any] = json.loads(child.stdout)
            return answer
    except (subprocess.TimeoutExpired, ValueError):
        raise BackendError("MLX did not answer", hint=f"Reinstall it: {INSTALL}") from None
    lines = child.stderr.decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else str(child.returncode)
    if child.returncode == _UNSUITABLE_STATUS:
        raise UsageError(f"mlx-lm cannot make this build: {reason}", hint="Take a build such as mlx-4bit")
    raise BackendError(f"MLX failed: {reason}", hint=f"Reinstall it: {INSTALL}")
