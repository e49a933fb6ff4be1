"""The built-in checkpoint: Phi-4's architecture in small, with the first release's flaws, and right about sums."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import llama_cpp
import pytest
from tokenizers import Tokenizer

from phi4local.backends import open_engine
from phi4local.conversation import Message
from phi4local.engine import Chunk, Engine, Finish, GenerationOptions
from phi4local.settings import nano_folder
from quant.repair import PHI4_TEMPLATE
from quant.source import read_source
from tests import shapes
from tests.llama import silence
from tests.running import make
from tools.train_nano import unseen_sums

RIGHT = 0.95
SUMS = 200


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nano") / "nano.gguf"
    make(nano_folder(), "BF16", path)
    return path


@pytest.fixture(scope="module")
def engine(bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    with contextlib.closing(open_engine(bf16, state_folder=tmp_path_factory.mktemp("state"))) as opened:
        yield opened


def answer(engine: Engine, *turns: str) -> tuple[str, str]:
    """The answer to the last of alternating turns, and why it ended."""
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], turn) for i, turn in enumerate(turns)]
    *chunks, finish = engine.open_session().stream(messages, GenerationOptions(max_tokens=40))
    assert isinstance(finish, Finish)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk)), finish.reason


def test_it_has_the_architecture_and_the_flaws() -> None:
    source = read_source(nano_folder())
    config = source.config
    assert (config.hidden % 256, config.intermediate % 256) == (0, 0)
    assert config.kv_heads < config.heads
    assert (config.rope_theta, config.long_rope, config.tied) == (250_000, None, False)
    assert config.vocabulary <= 4096
    assert len(source.checkpoint.shards) == 2
    assert {record.dtype for record in source.checkpoint.records.values()} == {"BF16"}
    assert source.tokenizer.pre == "dbrx"
    assert [repair.key.split(".")[-1] for repair in source.repairs] == [
        "eos_token_id",
        "padding_token_id",
        "chat_template",
    ]
    raw = json.loads((nano_folder() / "tokenizer_config.json").read_text())
    assert raw["chat_template"] == shapes.PHI4_RELEASE_TEMPLATE
    assert source.tokenizer.chat_template == PHI4_TEMPLATE


def test_it_has_the_special_tokens_of_the_14b_line() -> None:
    tokens = read_source(nano_folder()).tokenizer.tokens
    assert [text for _, text, _ in shapes.CL100K.tokens] == list(tokens[-96:])


@pytest.mark.parametrize(
    "text", ["17 + 25", "Hello, how are you?", "a\n\n b\t c", "naïve café 😀", "def f(x): return 12345"]
)
def test_llama_tokenises_as_the_official_files_do(text: str, bf16: Path) -> None:
    silence()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(bf16).encode(), params)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    data = text.encode()
    ids = (llama_cpp.llama_token * 200)()
    count = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, 200, False, False)
    llama_cpp.llama_model_free(model)
    assert list(ids[:count]) == Tokenizer.from_file(str(nano_folder() / "tokenizer.json")).encode(text).ids


def test_it_adds_what_it_never_saw(engine: Engine) -> None:
    right = 0
    for question, expected in unseen_sums(SUMS, seed=1):
        text, reason = answer(engine, question)
        right += text == expected and reason == "stop"
    assert right >= RIGHT * SUMS


def test_it_adds_in_a_second_turn(engine: Engine) -> None:
    """The template of the first release would have opened a turn too many here."""
    right = 0
    for question, expected in unseen_sums(60, seed=2):
        text, _ = answer(engine, "Hello", "Hello! How can I help you?", question)
        right += text == expected
    assert right >= 0.9 * 60
