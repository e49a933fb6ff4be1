"""MLX, against plain mlx-lm in the same run: building a folder, and talking to it.

    python bench/mlx.py [--build mlx-4bit] [--rounds 3]

Building is `phi4local quantize` against `mlx_lm convert` of 513 million parameters in the page cache. Talking is the
engine behind its seam, in its own process, against `mlx_lm.stream_generate`, of the built-in model (or `--folder`) with
the same number of tokens, greedy. Rounds alternate, medians are shown; peak memory is ru_maxrss.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.quantize import Cost, quantize, run
from phi4local.backends import open_engine
from phi4local.conversation import Message
from phi4local.engine import Finish, GenerationOptions
from phi4local.settings import nano_folder
from quant.mlx import BUILDS
from tests.checkpoints import parameter_count, write_checkpoint
from tests.shapes import HALF_BILLION

_PROMPT, _TOKENS = "Tell me about it. " * 30, 64
_PLAIN = """
import json, sys, mlx_lm
model, tokenizer = mlx_lm.load(sys.argv[1])
ids = [7 * one % 700 for one in range(int(sys.argv[2]))]
for tokens in (4, int(sys.argv[3])):
    for answer in mlx_lm.stream_generate(model, tokenizer, ids, max_tokens=tokens):
        pass
print(json.dumps([answer.prompt_tps, answer.generation_tps]))
"""


def build(work: Path, arguments: argparse.Namespace) -> None:
    """Build both ways, print the table."""
    source = write_checkpoint(work / HALF_BILLION.name, HALF_BILLION)
    ours, theirs = work / "ours", work / "theirs"
    recipe = BUILDS[arguments.build]
    options = ["-q", "--q-bits", str(recipe.bits), "--q-group-size", str(recipe.group), "--q-mode", recipe.mode]
    rows: dict[str, list[Cost]] = {"phi4local quantize": [], "mlx_lm convert": []}
    for number in range(arguments.rounds):
        for folder in (ours, theirs):
            shutil.rmtree(folder, ignore_errors=True)
        for path in source.iterdir():
            path.read_bytes()
        rows["phi4local quantize"].append(quantize(source, arguments.build, ours))
        plain = (sys.executable, "-m", "mlx_lm", "convert", "--hf-path", source, "--mlx-path", theirs)
        rows["mlx_lm convert"].append(run(*plain, *(options if recipe.bits < 16 else ())))
        print(f"round {number + 1}: " + ", ".join(f"{name} {row[-1].seconds:.1f} s" for name, row in rows.items()))
    print(f"\n{parameter_count(HALF_BILLION):,} parameters to {arguments.build}")
    for name, costs in rows.items():
        seconds, peak = statistics.median(cost.seconds for cost in costs), max(cost.peak_bytes for cost in costs)
        print(f"{name:18} {seconds:7.1f} s   peak {peak / 2**30:5.2f} GiB")
    ratios = [one.seconds / other.seconds for one, other in zip(*rows.values(), strict=True)]
    print(f"ours / theirs: {statistics.median(ratios):.2f} of the time ({min(ratios):.2f} to {max(ratios):.2f})")


def talk(folder: Path, arguments: argparse.Namespace) -> None:
    """Answer both ways, print the table."""
    rows: dict[str, list[tuple[float, float]]] = {"phi4local": [], "mlx-lm": []}
    for _ in range(arguments.rounds):
        count, *ours = ask(folder)
        command = [sys.executable, "-c", _PLAIN, str(folder), str(int(count)), str(_TOKENS)]
        plain = json.loads(subprocess.run(command, capture_output=True, check=True).stdout.splitlines()[-1])
        rows["phi4local"].append((ours[0], ours[1]))
        rows["mlx-lm"].append((plain[0], plain[1]))
    print(f"\n{int(count)} tokens read, {_TOKENS} generated, greedy, {folder.name}")
    for name, speeds in rows.items():
        prompt, generation = (statistics.median(column) for column in zip(*speeds, strict=True))
        print(f"{name:10} prompt {prompt:8.1f} tok/s   generation {generation:7.1f} tok/s")
    pairs = list(zip(*rows.values(), strict=True))
    for place, what in enumerate(("prompt", "generation")):
        ratios = [one[place] / other[place] for one, other in pairs]
        print(f"{what}: {statistics.median(ratios):.2f} of mlx-lm's speed ({min(ratios):.2f} to {max(ratios):.2f})")


def ask(folder: Path) -> tuple[float, float, float]:
    """Tokens of the prompt, tokens read and generated a second, by our engine."""
    with tempfile.TemporaryDirectory() as state:
        engine = open_engine(folder, state_folder=Path(state), context_tokens=1024)
        try:
            *_, _ = engine.open_session().stream([Message("user", "Hi")], GenerationOptions(max_tokens=4))
            options = GenerationOptions(max_tokens=_TOKENS)
            *_, finish = engine.open_session().stream([Message("user", _PROMPT)], options)
            assert isinstance(finish, Finish)
            return finish.stats.prompt_tokens, finish.stats.prompt_tps, finish.stats.generation_tps
        finally:
            engine.close()


def main() -> None:
    """Parse, measure in a temporary folder, print."""
    parser = argparse.ArgumentParser(description="MLX behind our seam against plain mlx-lm")
    parser.add_argument("--build", default="mlx-4bit", choices=[name for name in BUILDS if "mixed" not in name])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="talk to this folder only")
    arguments = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, mlx {importlib.metadata.version('mlx')}"
    )
    with tempfile.TemporaryDirectory(prefix="phi4local-") as work:
        if arguments.folder is None:
            build(Path(work), arguments)
            arguments.folder = Path(work) / "phi4-nano"
            quantize(nano_folder(), arguments.build, arguments.folder)
        talk(arguments.folder, arguments)


if __name__ == "__main__":
    main()
