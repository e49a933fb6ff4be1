"""How long `fit` takes and how much memory, and how near its predictions of speed are.

    python bench/fit.py [--keep FOLDER]

In homes of their own: the first `fit phi-4` on a machine and a later one; then, for the built-in model and a random one
of 0.5 billion weights, `bench` (which predicts before it measures), and once more after it has been corrected by that.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phi4local.settings import nano_folder
from tests.checkpoints import HALF_BILLION, write_checkpoint

BUILDS = ("BF16", "Q8_0", "Q4_K_M", "Q2_K")
# A small launcher: a child's peak memory begins with what its parent had when it was started.
LAUNCHER = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=sys.stderr, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def command(home: Path, *arguments: str | Path) -> Any:
    """The JSON that a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "phi4local", *map(str, arguments), "--json"],
        env=os.environ | {"PHI4LOCAL_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def time_fit(home: Path) -> tuple[float, float]:
    """Seconds of `fit phi-4`, and the largest process's peak memory in MiB."""
    start = time.perf_counter()
    child = subprocess.run(
        [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "phi4local", "fit", "phi-4"],
        env=os.environ | {"PHI4LOCAL_HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return time.perf_counter() - start, int(child.stdout) / (1 if sys.platform == "darwin" else 1024)


def compare(home: Path, source: Path, build: str) -> None:
    """Predicted and measured, before and after a benchmark."""
    made = command(home, "quantize", source, "--to", build)
    label = f"{made['name']}:{made['build']}"
    first, second = command(home, "bench", label), command(home, "bench", label)
    cells = []
    for result, told in ((first, first["predicted"]), (second, second["expected"])):
        measured = result["measured"]["generation_tps"]
        cells.append(f"{told['generation_tps']:8.1f} {measured:8.1f} {told['generation_tps'] / measured - 1:+7.0%}")
    prompt = first["predicted"]["prompt_tps"] / first["measured"]["prompt_tps"] - 1
    print(f"{label:28} {cells[0]}   {cells[1]}   {prompt:+7.0%}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder for the random checkpoint, used again when it is there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        for what in ("first on this machine", "later", "later"):
            seconds, peak = time_fit(home)
            print(f"fit phi-4, {what}: {seconds:.2f} s, peak {peak:.0f} MiB", flush=True)
        half = (arguments.keep or Path(name)) / "phi-4-half-billion"
        if not half.is_dir():
            write_checkpoint(half, HALF_BILLION)
        print(f"\n{'':28} predicted measured  error   corrected measured error   prompt (predicted)")
        for source in (nano_folder(), half):
            for build in BUILDS:
                compare(home, source, build)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {resource.getpagesize()} byte pages")


if __name__ == "__main__":
    main()
