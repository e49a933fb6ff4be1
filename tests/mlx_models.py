"""MLX without our engine's process: logits of every position of a text, by our model and caches, in a child."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

_CHILD = """
import json, sys
from pathlib import Path
import mlx.core as mx, numpy as np
from phi4local.backends.load_settings import LoadSettings
from phi4local.backends.mlx_folder import read_folder
from phi4local.backends.mlx_model import MlxModel, Timeline
folder, out, context, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ids = json.loads(sys.stdin.read())
settings = LoadSettings(str(folder), context)
model = MlxModel(settings, read_folder(folder))
if sys.argv[5] == "wide":
    model.module.set_dtype(mx.float32)
timeline = Timeline(model, lambda: False)
timeline.rewind(ids + [0])  # which chooses the rope factors
parts = []
for start in range(0, len(ids), step):
    logits = timeline._module(mx.array([ids[start:start + step]]), cache=timeline.caches.layers)
    parts.append(logits[0].astype(mx.float32))
    mx.eval(parts[-1])
np.save(out, np.concatenate([np.array(part) for part in parts]))
"""


def logits(
    folder: Path, tokens: Sequence[int], context: int, out: Path, *, step: int = 1 << 20, wide: bool = False
) -> npt.NDArray[np.float32]:
    """Logits [tokens, vocabulary] in a context of `context` tokens, read in steps of `step`; `out` is written on.

    `wide`: computed in float32 throughout.
    """
    arguments = [str(folder), str(out), str(context), str(step), "wide" if wide else "as stored"]
    command = [sys.executable, "-c", _CHILD, *arguments]
    result = subprocess.run(command, input=json.dumps(list(tokens)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    found: npt.NDArray[np.float32] = np.load(out)
    return found
