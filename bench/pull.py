"""Getting builds from a hub on loopback: against curl, and made from official weights while they arrive.

    python bench/pull.py [--rounds 3] [--rate 100000000] [--build Q4_K_M]      (--rate 0: the first part only)

Plain: a published file of 2.7 GB (zeros), `phi4local pull --from ready` against `curl` alone and against `curl` with
sha256sum after it, unthrottled; seconds are those of the transfer, from the first question to the checked file (curl
knows the address already). Official: 513 million parameters in six shards from a hub limited to `--rate`; the download
alone by curl, `phi4local quantize` alone, and `phi4local pull --from official`, alternating. Peak disk is what the home
folder holds at most, sampled every 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quant.safetensors import shard_names
from tests.checkpoints import parameter_count, write_checkpoint, write_sparse_checkpoint
from tests.hub import Hub
from tests.shapes import HALF_BILLION

_CATALOG = """
[models.bench]
repository = "acme/bench"
shape = "phi-4"
[[ready]]
model = "bench"
repository = "acme/bench-gguf"
flaws = []
[ready.files]
BF16 = { file = "bench-BF16.gguf" }
"""
# A child's peak memory begins with that of the process that started it, so a small one has to start it.
_MEASURE = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
out = child.stdout.read().decode()
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([json.loads(out) if out.startswith("{") else {}, usage.ru_maxrss * 1024]))
sys.exit(status != 0)
"""


class Disk:
    """The most that a folder held, between `with` and the end of the block."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most_bytes = folder, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            sizes = 0
            for path in self.folder.rglob("*"):
                try:
                    sizes += path.lstat().st_blocks * 512
                except FileNotFoundError:
                    continue
            self.most_bytes = max(self.most_bytes, sizes)

    def __enter__(self) -> Disk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def run(home: Path, endpoint: str, *arguments: str | Path) -> tuple[dict[str, Any], int, float]:
    """A command of ours: its JSON, its peak memory and its seconds."""
    environment = os.environ | {"PHI4LOCAL_HOME": str(home), "HF_ENDPOINT": endpoint}
    start = time.monotonic()
    command = [sys.executable, "-c", _MEASURE, sys.executable, "-m", "phi4local", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{arguments} failed: {done.stderr.decode()[-500:]}")
    answer, peak = json.loads(done.stdout)
    return answer, peak, time.monotonic() - start


def curl(endpoint: str, path: str, target: Path, *, check: bool = False) -> float:
    """Seconds that curl takes for a file; with `check`, sha256sum after it."""
    start = time.monotonic()
    subprocess.run(["curl", "-sSL", "--fail", "-o", target, endpoint + path], check=True)
    if check:
        subprocess.run(["sha256sum", target], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    target.unlink()
    return seconds


def empty_home(work: Path) -> Path:
    """A home that knows the benchmark's repositories."""
    home = work / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    (home / "catalog.toml").write_text(_CATALOG)
    return home


def measure_plain(hub: Hub, work: Path, rounds: int) -> None:
    """The published file."""
    path, out = "/acme/bench-gguf/resolve/main/bench-BF16.gguf", work / "out"
    size = (work / "hub/acme/bench-gguf/bench-BF16.gguf").stat().st_size
    rows: dict[str, list[float]] = {"curl": [], "curl, then sha256sum": [], "pull --from ready": []}
    for _ in range(rounds):
        rows["curl"].append(curl(hub.endpoint, path, out))
        rows["curl, then sha256sum"].append(curl(hub.endpoint, path, out, check=True))
        answer, peak, _ = run(empty_home(work), hub.endpoint, "pull", "bench:BF16", "--from", "ready")
        rows["pull --from ready"].append(answer["seconds"])
    print(f"\nA published file of {size / 1e9:.2f} GB, unthrottled; peak memory of pull {peak / 2**30:.2f} GiB")
    for name, seconds in rows.items():
        rates = [size / one / 1e9 for one in seconds]
        print(f"{name:22} {statistics.median(rates):5.2f} GB/s ({min(rates):.2f} to {max(rates):.2f})")
    for name in ("curl", "curl, then sha256sum"):
        ratios = [other / ours for other, ours in zip(rows[name], rows["pull --from ready"], strict=True)]
        print(f"pull / {name}: {statistics.median(ratios):.2f} of the rate ({min(ratios):.2f} to {max(ratios):.2f})")


def measure_official(hub: Hub, work: Path, arguments: argparse.Namespace) -> None:
    """Both halves of the work alone, and together."""
    source = work / "hub/acme/bench"
    shards = shard_names(source)
    sizes = [(source / name).stat().st_size for name in shards]
    rows: dict[str, list[float]] = {"download alone": [], "quantize alone": [], "pull --from official": []}
    most_disk = most_memory = result = 0
    for _ in range(arguments.rounds):
        hub.rate = arguments.rate
        rows["download alone"].append(
            sum(curl(hub.endpoint, f"/acme/bench/resolve/main/{name}", work / "out") for name in shards)
        )
        hub.rate = None
        home = empty_home(work)
        quantized, _, seconds = run(home, hub.endpoint, "quantize", source, "--to", arguments.build)
        rows["quantize alone"].append(seconds)
        hub.rate = arguments.rate
        home = empty_home(work)
        with Disk(home) as disk:
            pulled, peak, seconds = run(home, hub.endpoint, "pull", f"bench:{arguments.build}", "--from", "official")
        rows["pull --from official"].append(seconds)
        most_disk, most_memory = max(most_disk, disk.most_bytes), max(most_memory, peak)
        result = pulled["bytes"]
        if pulled["sha256"] != quantized["sha256"]:
            sys.exit("the two builds differ")
    print(
        f"\n{parameter_count(HALF_BILLION):,} parameters to {arguments.build}, {sum(sizes) / 1e9:.2f} GB of sources in"
    )
    print(f"{len(sizes)} shards, the hub limited to {arguments.rate / 1e6:.0f} MB/s; the same bytes as by quantize")
    for name, seconds in rows.items():
        print(f"{name:22} {statistics.median(seconds):6.1f} s ({min(seconds):.1f} to {max(seconds):.1f})")
    alone = zip(rows["download alone"], rows["quantize alone"], strict=True)
    ratios = [both / max(pair) for both, pair in zip(rows["pull --from official"], alone, strict=True)]
    print(f"pull / the longer half: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    bound = result + 2 * max(sizes)
    print(f"peak disk {most_disk / 1e9:.2f} GB (result and two shards: {bound / 1e9:.2f} GB)")
    print(f"peak memory {most_memory / 2**30:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=int, default=100_000_000)
    parser.add_argument("--build", default="Q4_K_M")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        work = Path(folder)
        write_checkpoint(work / "hub/acme/bench", HALF_BILLION, shards=6)
        large = write_sparse_checkpoint(work / "large", replace(HALF_BILLION, layers=22))
        run(work / "home", "http://127.0.0.1:9", "quantize", large, "--to", "BF16")
        built = next((work / "home/models").glob("*/*.gguf"))
        (work / "hub/acme/bench-gguf").mkdir()
        built.rename(work / "hub/acme/bench-gguf/bench-BF16.gguf")
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
        with Hub(work / "hub") as hub:
            measure_plain(hub, work, arguments.rounds)
            if arguments.rate:
                measure_official(hub, work, arguments)


if __name__ == "__main__":
    main()
