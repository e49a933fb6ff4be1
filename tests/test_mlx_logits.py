"""MLX computes what the configuration says: its logits against the independent numpy reference."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from phi4local.settings import nano_folder
from tests.checkpoints import write_checkpoint
from tests.mlx_models import logits
from tests.reference import Reference, kl_divergence, same_top
from tests.shapes import MINI_TINY_V5

KL_BOUND = 1e-3
# In float32 nothing is left but the order of sums. In bfloat16 the logits themselves have eight bits, and with random
# weights one position in twenty is nearer to a tie than that.
WIDE_KL_BOUND, WIDE_SAME_TOP_BOUND, SAME_TOP_BOUND = 1e-8, 0.99, 0.93


def check(folder: Path, count: int, context: int, out: Path, step: int = 1 << 20) -> None:
    """Compare the logits of random tokens, as stored and in float32."""
    tokens = random_tokens(count)
    ours = Reference(folder).logits(tokens)
    stored = logits(folder, tokens, context, out, step=step)
    assert np.mean(kl_divergence(ours, stored)) < KL_BOUND
    assert same_top(ours, stored) >= SAME_TOP_BOUND
    wide = logits(folder, tokens, context, out, step=step, wide=True)
    assert np.mean(kl_divergence(ours, wide)) < WIDE_KL_BOUND
    assert same_top(ours, wide) >= WIDE_SAME_TOP_BOUND


def random_tokens(count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(2).integers(0, 700, count)]


@pytest.mark.parametrize("name", ["tiny", "nano"])
def test_phi4(name: str, tiny: Path, tmp_path: Path) -> None:
    check(tiny if name == "tiny" else nano_folder(), 256, 512, tmp_path / "logits.npy")


@pytest.mark.parametrize(
    ("count", "context", "step"),
    [(300, 512, 1 << 20), (300, 2048, 200), (900, 1024, 200)],
    ids=["below", "below in a large context", "above"],
)
def test_mini_on_both_sides_of_its_original_context(
    count: int, context: int, step: int, mini: Path, tmp_path: Path
) -> None:
    """The mini-shaped checkpoint was trained for 512 tokens and is stretched beyond them by longrope."""
    check(mini, count, context, tmp_path / "logits.npy", step)


def test_the_bound_would_notice_the_long_factors_in_a_short_text(mini: Path, tmp_path: Path) -> None:
    """What mlx-lm by itself does: here made by giving the long factors' name to the short ones."""
    folder = tmp_path / "wrong"
    shutil.copytree(mini, folder)
    config = (folder / "config.json").read_text(encoding="utf-8")
    swapped = config.replace("long_factor", "other").replace("short_factor", "long_factor")
    (folder / "config.json").write_text(swapped.replace("other", "short_factor"), encoding="utf-8")
    tokens = random_tokens(300)
    theirs, ours = logits(folder, tokens, 512, tmp_path / "logits.npy"), Reference(mini).logits(tokens)
    assert np.mean(kl_divergence(ours, theirs)) > 10 * KL_BOUND


def test_the_spelling_of_transformers_5_is_understood(tmp_path: Path) -> None:
    """mlx-lm by itself reads no `rope_parameters`, loads such a folder without a word and is wrong."""
    folder = write_checkpoint(tmp_path / "v5", MINI_TINY_V5)
    check(folder, 200, 512, tmp_path / "logits.npy")
