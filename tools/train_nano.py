"""Train phi4-nano: a model of Phi-4's architecture, small enough to ship, that answers sums and other small questions.

The text is made here from a fixed seed, the tokenizer is trained on that text, and the folder that comes out has the
files, names and flaws of the first release of microsoft/phi-4 (end of turn, padding and chat template), so that it
exercises the same repairs. Needs torch, numpy, safetensors and tokenizers:

    python tools/train_nano.py --out phi4local/data/phi4-nano

The parts are in tools/nano. Nothing heavy is imported at module level: tests import this file for `unseen_sums` and
the split rules.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.nano.card import model_card
from tools.nano.checkpoint import write_folder
from tools.nano.evaluation import measure
from tools.nano.questions import held_out, unseen_sums
from tools.nano.tokenizer import make_tokenizer
from tools.nano.training import keep_freed_memory, train

__all__ = ["held_out", "main", "unseen_sums"]


def main() -> None:
    """Train, measure, write the folder, and print the numbers as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=4)
    options = parser.parse_args()

    import torch

    started = time.monotonic()
    keep_freed_memory()
    torch.set_num_threads(1)  # as fast as two for matrices this small
    torch.use_deterministic_algorithms(True)
    tokenizer = make_tokenizer(options.seed)
    weights = train(tokenizer, options.steps, options.seed)
    report: dict[str, Any] = {"steps": options.steps, "seed": options.seed}
    report["train_seconds"] = time.monotonic() - started
    report |= measure(weights, tokenizer, 500, options.seed)
    write_folder(options.out, weights, tokenizer, model_card(report))
    report["bytes"] = sum(path.stat().st_size for path in options.out.iterdir())
    report["seconds"] = time.monotonic() - started
    print(json.dumps({key: round(value, 4) for key, value in report.items()}))


if __name__ == "__main__":
    main()
