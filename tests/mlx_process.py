"""mlx-lm in a process of its own, where it changes limits and logs, and which imports it once for many questions.

`ask` puts the program's own question, `convert` runs mlx-lm's converter, `load` tells what a user of a folder sees.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from quant.mlx import Recipe

_PROGRAM = """
import contextlib, json, sys
import mlx.core as mx
mx.set_default_device(mx.cpu)
import mlx_lm
from phi4local.backends.mlx_asked import answer

def convert(source, target, bits, group, mode, mixed):
    more = dict(q_mode=mode, q_group_size=group, q_bits=None if mixed else bits, quant_predicate=mixed or None)
    mlx_lm.convert(source, target, quantize=bits < 16, **(more if bits < 16 else {}))

def load(folder):
    model, tokenizer = mlx_lm.load(folder)
    text, chat = "Hello 12345\\n\\nworld", [{"role": "user", "content": "Hi"}]
    logits = model(mx.array([tokenizer.encode(text)]))[0, -1].astype(mx.float32)
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=end, tokenize=False) for end in (True, False)]
    return {
        "eos": sorted(tokenizer.eos_token_ids), "pad": tokenizer.pad_token, "prompt": prompts[0], "past": prompts[1],
        "text": text, "ids": tokenizer.encode(text), "logits": logits.tolist(),
    }

known = {"ask": answer, "convert": convert, "load": load}
for line in sys.stdin:
    name, *arguments = json.loads(line)
    with contextlib.redirect_stdout(sys.stderr):
        result = known[name](*arguments)
    print(json.dumps(result), flush=True)
"""


class MlxProcess:
    """A running one."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _PROGRAM]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> MlxProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.close()
        self._child.wait(20)
        self._child.stdout.close()

    def _do(self, *question: Any) -> Any:
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(json.dumps(question) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        assert line, f"mlx-lm failed at {question[0]} {question[1]!s:.200}"
        return json.loads(line)

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of `phi4local.backends.mlx_ask`, without another process."""
        answer: dict[str, Any] = self._do("ask", question)
        return answer

    def convert(self, source: Path, target: Path, recipe: Recipe) -> None:
        """Run mlx-lm's converter."""
        self._do("convert", str(source), str(target), recipe.bits, recipe.group, recipe.mode, recipe.mixed)

    def load(self, folder: Path) -> dict[str, Any]:
        """The ids that end a turn, what the template makes of a question, ids and logits of a text."""
        facts: dict[str, Any] = self._do("load", str(folder))
        return facts
