"""A model with two sets of rope factors reads every conversation with the right one, in a context of any size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from phi4local.backends.child import ChildEngine, Host
from phi4local.backends.load_settings import LoadSettings
from phi4local.conversation import Message
from phi4local.engine import Chunk, Finish, GenerationOptions
from tests.gguf_models import Geometry, TinyVocabulary, write_random

SHORT = 512
# llama.cpp by itself: the greedy tokens after a prompt, in a context of a given size. Every token a letter.
BARE = """
import ctypes, json, sys
import llama_cpp.llama_cpp as llama
quiet = llama.llama_log_callback(lambda *_: None)
llama.llama_log_set(quiet, None)
path, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ids = json.loads(sys.stdin.read())
mp = llama.llama_model_default_params()
mp.use_extra_bufts = False
model = llama.llama_model_load_from_file(path.encode(), mp)
cp = llama.llama_context_default_params()
cp.n_ctx = size
cp.n_threads = cp.n_threads_batch = 1
context = llama.llama_init_from_model(model, cp)
sampler = llama.llama_sampler_init_greedy()
said = []
while len(said) < count:
    for start in range(0, len(ids), 512):
        part = (ctypes.c_int32 * len(ids[start:start + 512]))(*ids[start:start + 512])
        assert not llama.llama_decode(context, llama.llama_batch_get_one(part, len(part)))
    ids = [llama.llama_sampler_sample(sampler, context, -1)]
    said += ids
print(json.dumps(said))
"""
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


class Model:
    """The model under test, and what llama.cpp alone makes of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "longrope.gguf"
        geometry = Geometry(context=2048, short_context=SHORT)
        self.vocabulary: TinyVocabulary = write_random(self.path, geometry, seed=5, template=TEMPLATE)

    def ids(self, text: str) -> list[int]:
        return [self.vocabulary.id(letter) for letter in text]

    def bare(self, ids: list[int], context: int, count: int) -> list[int]:
        command = [sys.executable, "-c", BARE, str(self.path), str(context), str(count)]
        result = subprocess.run(command, input=json.dumps(ids), capture_output=True, text=True, check=True)
        said: list[int] = json.loads(result.stdout)
        return said

    def text(self, ids: list[int]) -> str:
        letters = {self.vocabulary.id(bytes([byte])): bytes([byte]) for byte in range(256)}
        letters |= {self.vocabulary.id(text): text.encode() for text in ("he", "ll")}
        return b"".join(letters[token] for token in ids).decode(errors="replace")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("rope"))


@pytest.fixture
def engine(model: Model, tmp_path: Path) -> Iterator[ChildEngine]:
    opened = ChildEngine(LoadSettings(str(model.path), context_tokens=1500, threads=1), Host(tmp_path / "state"))
    yield opened
    opened.close()


def ask(engine: ChildEngine, prompt: str, count: int) -> tuple[str, Finish]:
    *chunks, finish = engine.open_session().stream([Message("user", prompt)], GenerationOptions(max_tokens=count))
    assert isinstance(finish, Finish)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk)), finish


def letters(count: int) -> str:
    return "".join(chr(ord("A") + i * i % 23) for i in range(count))


def test_the_user_is_told(engine: ChildEngine) -> None:
    assert engine.info.context_tokens == 1536  # rounded up to 256
    [note] = engine.info.notes
    assert str(SHORT) in note


def test_short_conversations_use_the_short_factors(model: Model, engine: ChildEngine) -> None:
    prompt = letters(100)
    right = model.text(model.bare(model.ids(prompt), SHORT, 30))
    wrong = model.text(model.bare(model.ids(prompt), 1536, 30))
    assert ask(engine, prompt, 30)[0] == right != wrong


def test_long_conversations_use_the_long_factors(model: Model, engine: ChildEngine) -> None:
    prompt = letters(SHORT + 200)
    assert ask(engine, prompt, 30)[0] == model.text(model.bare(model.ids(prompt), 1536, 30))


def test_an_answer_that_passes_the_boundary_goes_on_with_the_long_factors(model: Model, engine: ChildEngine) -> None:
    prompt = letters(SHORT - 10)
    before = model.bare(model.ids(prompt), SHORT, 11)  # the last one is said from a full context
    after = model.bare(model.ids(prompt) + before, 1536, 20)
    text, finish = ask(engine, prompt, 31)
    assert text == model.text(before + after)
    assert finish.reason == "length"


def test_a_shorter_conversation_goes_back(model: Model, engine: ChildEngine) -> None:
    short, long = letters(100), letters(SHORT + 1)
    first = ask(engine, short, 10)[0]
    ask(engine, long, 10)
    again, finish = ask(engine, short, 10)
    assert again == first
    assert finish.stats.cached_tokens == 0
    assert ask(engine, short, 10)[1].stats.cached_tokens == len(short) - 1


def test_a_prompt_that_fills_the_short_context_gets_the_long_one(model: Model, engine: ChildEngine) -> None:
    for length, context in ((SHORT - 1, SHORT), (SHORT, 1536)):
        prompt = letters(length)
        assert ask(engine, prompt, 1)[0] == model.text(model.bare(model.ids(prompt), context, 1))


@pytest.mark.parametrize("wanted", [SHORT, SHORT - 100])
def test_a_small_context_needs_no_second_one(model: Model, tmp_path: Path, wanted: int) -> None:
    settings = LoadSettings(str(model.path), context_tokens=wanted, threads=1)
    engine = ChildEngine(settings, Host(tmp_path / "state"))
    try:
        assert (engine.info.context_tokens, engine.info.notes) == (SHORT, ())
    finally:
        engine.close()
