"""A BF16 build computes what the configuration says: llama.cpp's logits against an independent numpy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from phi4local.settings import nano_folder
from tests.llama import logits
from tests.reference import Reference, kl_divergence, same_top
from tests.running import make

KL_BOUND, SAME_TOP_BOUND = 1e-3, 0.99


def agree(path: Path, reference: Reference, tokens: list[int], context: int) -> tuple[float, float]:
    """Mean KL divergence (nats) and share of positions with the same top token."""
    theirs, ours = logits(path, tokens, context), reference.logits(tokens)
    return float(np.mean(kl_divergence(ours, theirs))), float(np.mean(same_top(ours, theirs)))


@pytest.mark.parametrize("folder", ["tiny", "nano"])
def test_phi4(folder: str, tiny: Path, tmp_path: Path) -> None:
    source = tiny if folder == "tiny" else nano_folder()
    make(source, "BF16", tmp_path / "bf16.gguf")
    reference = Reference(source)
    tokens = np.random.default_rng(1).integers(0, 700, 256).tolist()
    divergence, same = agree(tmp_path / "bf16.gguf", reference, tokens, 256)
    assert divergence < KL_BOUND
    assert same >= SAME_TOP_BOUND


# llama.cpp's CPU kernels round activations to the weights' type: eight bits in BF16, eleven in F16, which holds these
# weights exactly. With random weights one position in a hundred is nearer to a tie than eight bits can tell.
MINI_SAME_TOP = {"F16": SAME_TOP_BOUND, "BF16": 0.975}


@pytest.mark.parametrize("build", MINI_SAME_TOP)
@pytest.mark.parametrize(("length", "context"), [(300, 512), (900, 1024)], ids=["below", "above"])
def test_mini_on_both_sides_of_its_original_context(
    length: int, context: int, build: str, mini: Path, tmp_path: Path
) -> None:
    """The mini-shaped checkpoint was trained for 512 tokens and is stretched beyond them by longrope."""
    make(mini, build, tmp_path / "out.gguf")
    tokens = np.random.default_rng(2).integers(0, 700, length).tolist()
    divergence, same = agree(tmp_path / "out.gguf", Reference(mini), tokens, context)
    assert divergence < KL_BOUND
    assert same >= MINI_SAME_TOP[build]


def test_the_bound_would_notice_the_wrong_rope(mini: Path, tmp_path: Path) -> None:
    """Short text in a long context: llama.cpp takes the long factors, and the bound fails by far."""
    make(mini, "BF16", tmp_path / "bf16.gguf")
    tokens = np.random.default_rng(2).integers(0, 700, 300).tolist()
    divergence, same = agree(tmp_path / "bf16.gguf", Reference(mini), tokens, 1024)
    assert divergence > KL_BOUND
    assert same < SAME_TOP_BOUND
