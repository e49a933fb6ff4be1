"""MLX behind the seam: what comes out, what is read again, how it ends, and that it equals llama.cpp's."""

from __future__ import annotations

import json
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
from phi4local.conversation import Message
from phi4local.engine import Chunk, Engine, Finish, GenerationOptions, Session
from phi4local.errors import BackendError, UsageError
from phi4local.settings import nano_folder
from tests.flash_checkpoints import FLASH_TINY, write_flash_checkpoint
from tests.running import make
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
    engine = open_engine(mini, state_folder=tmp_path / "state", context_tokens=1024)
    yield engine
    engine.close()


def newest_worker() -> psutil.Process:
    """The engine's that was opened last."""
    workers = [child for child in psutil.Process().children() if any("mlx_worker" in word for word in child.cmdline())]
    return max(workers, key=lambda worker: worker.create_time())


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
said = [token for token, _ in zip(timeline.say(GenerationOptions()), range(6))]
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
    assert heard.stats.prompt_tokens + heard.stats.generation_tokens <= 1024 + 1
    with pytest.raises(UsageError, match="the context holds 1024"):
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
    threading.Timer(0.1, session.cancel).start()
    finish = listen(session, ask("word " * 150)).finish
    assert finish.reason == "cancelled"
    assert finish.stats.generation_tokens < 500


def test_closing_the_stream_cancels(random_model: Engine) -> None:
    stream = random_model.open_session().stream(LONG, GenerationOptions())
    next(stream)
    begun = time.monotonic()
    stream.close()
    assert time.monotonic() - begun < 5
    assert listen(random_model.open_session(), ask("Hi"), FEW).stats.generation_tokens


def kill(session: Session, number: int) -> None:
    stream = session.stream(LONG, GenerationOptions())
    next(stream)
    worker = newest_worker()
    worker.send_signal(signal.SIGKILL if number % 2 else signal.SIGSEGV)
    with pytest.raises(BackendError):
        list(stream)


def test_the_engine_may_die(random_model: Engine) -> None:
    for number in range(4):
        kill(random_model.open_session(), number)
        heard: Heard = listen(random_model.open_session(), ask("Hi"), FEW)
        assert heard.finish.reason in ("length", "stop")
    assert random_model.alive
    assert not random_model.info.safe_mode  # it has no settings that crash less


def test_times_are_measured(nano: Engine) -> None:
    timing = nano.time_tokens(64, 8)
    assert timing.prompt_seconds > 0
    assert timing.generation_seconds > 0


# --- a model that no runtime knows -----------------------------------------------------------------------------------


def test_flash_goes_on_where_it_was_and_reads_again_what_it_cannot_cut(tmp_path: Path, state: Path) -> None:
    folder, path = write_flash_checkpoint(tmp_path / "flash", FLASH_TINY), tmp_path / "chat.state"
    engine = open_engine(folder, state_folder=state, context_tokens=1024)
    try:
        assert engine.info.load.took["CPU"].kv_bytes > 0  # made whole before the first token
        session = engine.open_session()
        first = listen(session, ask("Hi there"), FEW)
        assert session.save(path)
        longer = [*ask("Hi there"), Message("assistant", first.answer), *ask("and?")]
        second = listen(session, longer, FEW)
        assert second.stats.cached_tokens >= first.stats.prompt_tokens + first.stats.generation_tokens - 1
        other = listen(session, [*ask("Hi there"), Message("assistant", "No."), *ask("and?")], FEW)
        assert other.stats.cached_tokens == 0
        fresh = listen(session, longer, FEW)
        assert (fresh.answer, fresh.stats.cached_tokens) == (second.answer, 0)
        reopened = engine.open_session()
        assert reopened.restore(path) > first.stats.prompt_tokens
        assert listen(reopened, longer, FEW).answer == second.answer
    finally:
        engine.close()
    with pytest.raises(UsageError, match="no cache of type q8_0"):
        open_engine(folder, state_folder=state, kv_type="q8_0")
