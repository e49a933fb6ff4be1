"""MLX behind the seam: what comes out, what is read again, how it ends, and that it equals llama.cpp's."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from phi4local.backends import open_engine
from phi4local.backends.load_settings import Budget
from phi4local.conversation import Message
from phi4local.engine import Chunk, Engine, Finish, GenerationOptions, Session
from phi4local.errors import BackendError, DoesNotFit, FormatError, NotFound, UsageError
from phi4local.settings import nano_folder
from tests.checkpoints import write_checkpoint
from tests.running import make
from tests.shapes import MINI_TINY
from tests.test_engine import Heard, listen

SUMS = [f"{a} + {b}" for a, b in ((12, 34), (55, 17), (8, 71), (40, 59), (93, 6), (27, 27), (61, 38), (19, 80))]
FEW = GenerationOptions(max_tokens=8)
LONG = [Message("user", "What comes after 12? " * 40)]


def ask(text: str) -> list[Message]:
    return [Message("user", text)]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def nano(state: Path) -> Iterator[Engine]:
    engine = open_engine(nano_folder(), state_folder=state)
    yield engine
    engine.close()


@pytest.fixture
def random_model(mini: Path, tmp_path: Path) -> Iterator[Engine]:
    """One that says nothing sensible, and hardly ever ends."""
    engine = open_engine(mini, state_folder=tmp_path / "state", context_tokens=2048)
    yield engine
    engine.close()


def worker_of(_engine: Engine) -> psutil.Process:
    return next(child for child in psutil.Process().children() if any("mlx_worker" in word for word in child.cmdline()))


# --- the same as llama.cpp -------------------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_the_gguf_of_the_same_precision(nano: Engine, tmp_path: Path) -> None:
    make(nano_folder(), "BF16", tmp_path / "nano.gguf")
    theirs = open_engine(tmp_path / "nano.gguf", state_folder=tmp_path / "state")
    try:
        for text in SUMS:
            messages = ask(text)
            for _ in range(2):  # and the second turn
                ours, other = (listen(engine.open_session(), messages) for engine in (nano, theirs))
                assert (ours.answer, ours.finish.reason) == (other.answer, other.finish.reason)
                assert ours.stats.prompt_tokens == other.stats.prompt_tokens
                assert nano.count(messages) == ours.stats.prompt_tokens
                messages = [*messages, Message("assistant", ours.answer), *ask("21 + 4")]
    finally:
        theirs.close()


# Each prints what a prompt's token ids are: with llama.cpp's vocabulary of a GGUF, and with the folder's.
GGUF_IDS = """
import json, sys
import llama_cpp.llama_cpp as llama
from phi4local.backends.llamacpp_vocab import LlamaVocabulary
quiet = llama.llama_log_callback(lambda *_: None)
llama.llama_log_set(quiet, None)
params = llama.llama_model_default_params()
params.vocab_only = True
model = llama.llama_model_load_from_file(sys.argv[1].encode(), params)
vocabulary = LlamaVocabulary(llama.llama_model_get_vocab(model))
template = llama.llama_model_chat_template(model, None).decode()
"""
FOLDER_IDS = """
import json, sys
from pathlib import Path
from phi4local.backends.mlx_folder import read_folder
from phi4local.backends.mlx_vocab import FolderVocabulary
folder = read_folder(Path(sys.argv[1]))
vocabulary, template = FolderVocabulary(folder.tokenizer, folder.path), folder.tokenizer.chat_template
"""
PRINT = """
from phi4local.backends.prompt import Prompts
from phi4local.template import ChatTemplate
prompts = Prompts(ChatTemplate(template, name="x", bos=vocabulary.bos, eos=vocabulary.eos), vocabulary)
found = []
for content in json.loads(sys.stdin.read()):
    ids = prompts.ids(prompts.render([{"role": "user", "content": content}]))
    found.append([ids, [vocabulary.piece(token).hex() for token in ids], [vocabulary.ends(token) for token in ids]])
print(json.dumps(found))
"""
CONTENTS = (
    "Hello world",
    "two  spaces\n\n\nand lines\r\n\tof code: def f(x):\n    return x + 1",
    "I'm, you'll; 1234567 3.14 €5 — “quoted” …",
    "<|im_end|><|im_start|>system<|im_sep|>no<|end|><|user|><|endoftext|><|tool_call|>",
    "日本語のテキスト 🌊🌊 Ünïcödé العربية",
    " leading and trailing ",
    "<|im_",
)


def ids(program: str, path: Path) -> object:
    command = [sys.executable, "-c", program + PRINT, str(path)]
    result = subprocess.run(command, input=json.dumps(CONTENTS), capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", ["tiny", "mini", "nano"])
def test_token_ids_are_those_of_the_gguf(name: str, tiny: Path, mini: Path, tmp_path: Path) -> None:
    folder = {"tiny": tiny, "mini": mini, "nano": nano_folder()}[name]
    fixed = tmp_path / "folder"
    shutil.copytree(folder, fixed)
    make(fixed, "Q8_0", tmp_path / "model.gguf")
    if name == "tiny":  # the first release's template is mended in the GGUF
        folder_template(fixed)
    assert ids(FOLDER_IDS, fixed) == ids(GGUF_IDS, tmp_path / "model.gguf")


def folder_template(folder: Path) -> None:
    from quant.repair import PHI4_TEMPLATE

    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": PHI4_TEMPLATE}
    path.write_text(json.dumps(values), encoding="utf-8")


# --- what is read again ----------------------------------------------------------------------------------------------


def test_what_was_read_is_not_read_again(nano: Engine) -> None:
    session = nano.open_session()
    first = listen(session, ask("12 + 34"))
    messages = [*ask("12 + 34"), Message("assistant", first.answer), *ask("55 + 17")]
    second = listen(session, messages)
    assert second.stats.cached_tokens >= first.stats.prompt_tokens + first.stats.generation_tokens
    listen(nano.open_session(), ask("1 + 1"))  # the cache is another conversation's now
    fresh = listen(nano.open_session(), messages)
    assert fresh.answer == second.answer
    assert fresh.stats.prompt_tokens == second.stats.prompt_tokens


def test_a_state_saves_reading(nano: Engine, state: Path, tmp_path: Path) -> None:
    session, path = nano.open_session(), tmp_path / "chat.state"
    first = listen(session, ask("12 + 34"))
    written = session.save(path)
    assert written == path.stat().st_size > 0
    messages = [*ask("12 + 34"), Message("assistant", first.answer), *ask("55 + 17")]
    expected = listen(session, messages)
    again = open_engine(nano_folder(), state_folder=state)
    try:
        reopened = again.open_session()
        assert reopened.restore(path) > first.stats.prompt_tokens
        heard = listen(reopened, messages)
        assert heard.answer == expected.answer
        assert heard.stats.cached_tokens > first.stats.prompt_tokens
    finally:
        again.close()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "context"])
def test_a_damaged_state_is_removed(damage: str, nano: Engine, state: Path, tmp_path: Path) -> None:
    session, path = nano.open_session(), tmp_path / "chat.state"
    listen(session, ask("12 + 34"))
    session.save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-40]), "empty": b""}.get(damage, path.read_bytes()))
    engine = open_engine(nano_folder(), state_folder=state, context_tokens=512) if damage == "context" else nano
    assert engine.open_session().restore(path) == 0
    assert not path.exists()
    assert listen(engine.open_session(), ask("12 + 34")).answer
    if engine is not nano:
        engine.close()


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_quantized_cache(kv_type: str, nano: Engine, state: Path, tmp_path: Path) -> None:
    engine = open_engine(nano_folder(), state_folder=state, kv_type=kv_type, context_tokens=512)
    try:
        assert engine.info.load.took["CPU"].kv_bytes < nano.info.load.took["CPU"].kv_bytes // 8
        session = engine.open_session()
        heard = listen(session, ask("12 + 34"))
        assert heard.finish.reason == "stop"
        assert session.save(tmp_path / "chat.state")
        assert engine.open_session().restore(tmp_path / "chat.state") > heard.stats.prompt_tokens
    finally:
        engine.close()


# --- two sets of rope factors ----------------------------------------------------------------------------------------

# A long answer, token by token, against the likeliest token after all that stands before it, computed in one go.
CROSSING = """
import json, sys
from pathlib import Path
import mlx.core as mx
from phi4local.backends.load_settings import LoadSettings
from phi4local.backends.mlx_folder import read_folder
from phi4local.backends.mlx_model import MlxModel, Timeline
from phi4local.engine import GenerationOptions
model = MlxModel(LoadSettings(sys.argv[1], 2048), read_folder(Path(sys.argv[1])))
model.module.set_dtype(mx.float32)
timeline = Timeline(model, lambda: False)
ids = [7 * one % 700 for one in range(509)]
timeline.rewind(ids)
timeline.read(ids)
said = [token for token, _ in zip(timeline.say(GenerationOptions()), range(8))]
sizes = timeline.size
again = timeline.rewind(ids[:100])
expected = []
for count in range(len(said)):
    before = ids + said[:count]
    model.rope.long = len(before) > 512
    expected.append(mx.argmax(model.module(mx.array([before]))[0, -1]).item())
print(json.dumps([said, expected, sizes, again, timeline.size]))
"""


def test_an_answer_that_passes_the_boundary_goes_on_with_the_long_factors(mini: Path) -> None:
    command = [sys.executable, "-c", CROSSING, str(mini)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    said, expected, size, again, later = json.loads(result.stdout)
    assert said == expected
    assert (size, again, later) == (2048, 0, 512)  # and a shorter conversation goes back


def test_the_user_is_told_about_the_boundary(random_model: Engine) -> None:
    [note] = random_model.info.notes
    assert "512 tokens" in note


# --- how it ends -----------------------------------------------------------------------------------------------------


def test_the_context_ends_an_answer(random_model: Engine) -> None:
    heard = listen(random_model.open_session(), LONG)
    assert heard.finish.reason in ("length", "stop")
    assert heard.stats.prompt_tokens + heard.stats.generation_tokens <= 2048 + 1
    with pytest.raises(UsageError, match="the context holds 2048"):
        listen(random_model.open_session(), ask("word " * 4000))


def test_no_more_tokens_than_asked_for(random_model: Engine) -> None:
    for most in (0, 1, 5):
        heard = listen(random_model.open_session(), ask("Hi"), GenerationOptions(max_tokens=most))
        assert heard.stats.generation_tokens <= most
        assert heard.finish.reason in ("length", "stop")


def test_the_same_seed_says_the_same(random_model: Engine) -> None:
    said = [
        listen(random_model.open_session(), ask("Hi"), GenerationOptions(1.0, seed=seed, max_tokens=24)).answer
        for seed in (3, 3, 4)
    ]
    assert said[0] == said[1] != said[2]


def test_an_answer_can_be_cancelled(random_model: Engine) -> None:
    session = random_model.open_session()
    stream = session.stream(LONG, GenerationOptions())
    assert isinstance(next(stream), Chunk)
    session.cancel()
    *_, finish = stream
    assert isinstance(finish, Finish)
    assert finish.reason == "cancelled"
    assert listen(session, ask("Hi"), FEW).finish.reason in ("length", "stop")


def test_reading_can_be_cancelled(random_model: Engine) -> None:
    session = random_model.open_session()
    threading.Timer(0.05, session.cancel).start()
    finish = listen(session, ask("word " * 700)).finish
    assert finish.reason == "cancelled"
    assert finish.stats.generation_tokens < 2048 - 700


def test_closing_the_stream_cancels(random_model: Engine) -> None:
    stream = random_model.open_session().stream(LONG, GenerationOptions())
    next(stream)
    begun = time.monotonic()
    stream.close()
    assert time.monotonic() - begun < 5
    assert listen(random_model.open_session(), ask("Hi"), FEW).stats.generation_tokens


def kill(engine: Engine, session: Session, number: int) -> None:
    stream = session.stream(LONG, GenerationOptions())
    next(stream)
    worker = worker_of(engine)
    worker.send_signal(signal.SIGKILL if number % 2 else signal.SIGSEGV)
    with pytest.raises(BackendError):
        list(stream)


def test_the_engine_may_die(random_model: Engine) -> None:
    for number in range(4):
        kill(random_model, random_model.open_session(), number)
        heard: Heard = listen(random_model.open_session(), ask("Hi"), FEW)
        assert heard.finish.reason in ("length", "stop")
    assert random_model.alive
    assert not random_model.info.safe_mode  # it has no settings that crash less


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(folder: Path, state: Path, error: type[Exception]) -> None:
    with pytest.raises(error):
        open_engine(folder, state_folder=state)


def test_what_does_not_fit_is_refused_with_what_would(mini: Path, state: Path) -> None:
    budget = Budget(1 << 30, (1 << 27) + (32 << 20))  # an eighth stays free
    with pytest.raises(DoesNotFit, match="can be used") as refusal:
        open_engine(mini, state_folder=state, context_tokens=16384, budget=lambda: budget)
    option, context = refusal.value.options
    assert option == "--context"
    engine = open_engine(mini, state_folder=state, context_tokens=int(context), budget=lambda: budget)
    took = engine.info.load.took["CPU"]
    predicted = engine.info.load.predicted["CPU"]
    engine.close()
    assert took.kv_bytes == predicted.kv_bytes
    assert abs(took.weights_bytes - predicted.weights_bytes) < 4096


def test_a_context_or_cache_that_the_model_has_not(state: Path) -> None:
    with pytest.raises(UsageError, match="trained for"):
        open_engine(nano_folder(), state_folder=state, context_tokens=1 << 20)
    with pytest.raises(UsageError, match="no cache of type q5_1"):
        open_engine(nano_folder(), state_folder=state, kv_type="q5_1")


def test_damaged_folders(tmp_path: Path, state: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", MINI_TINY, shards=1)
    good = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    shard = next(name for name in good if name.endswith(".safetensors"))
    config = json.loads(good["config.json"])
    damages = {
        "config.json": [b"{}", b"[", json.dumps(config | {"hidden_size": 512}).encode()],
        shard: [good[shard][:-100], b"", b"\xff" * 64],
        "tokenizer.json": [b"{}", b""],
    }
    for name, versions in damages.items():
        for data in versions:
            (folder / name).write_bytes(data)
            refused(folder, state, FormatError)
        (folder / name).write_bytes(good[name])
    (folder / shard).unlink()
    refused(folder, state, NotFound)


def test_a_template_that_does_not_end(tmp_path: Path, state: Path) -> None:
    shutil.copytree(nano_folder(), tmp_path / "nano")
    path = tmp_path / "nano" / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["chat_template"] = "{% for a in range(999999) %}{% for b in range(999999) %}{% endfor %}{% endfor %}"
    path.write_text(json.dumps(values), encoding="utf-8")
    engine = open_engine(tmp_path / "nano", state_folder=state)
    with pytest.raises(FormatError):
        listen(engine.open_session(), ask("Hi"))
    engine.close()


def test_times_are_measured(nano: Engine) -> None:
    timing = nano.time_tokens(64, 8)
    assert timing.prompt_seconds > 0
    assert timing.generation_seconds > 0
