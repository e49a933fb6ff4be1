"""A reopened conversation is not read again, and a state that does not fit or is damaged costs no more than that."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from phi4local.backends.child import ChildEngine, Host
from phi4local.backends.load_settings import LoadSettings
from phi4local.backends.state_file import _END, _MAGIC, _digest
from phi4local.conversation import Message
from phi4local.engine import Chunk, Finish, GenerationOptions, Session
from phi4local.errors import BackendError, InsufficientResources, UsageError
from phi4local.settings import nano_folder
from tests.gguf_models import Geometry, smollm2, write_random, write_scripted
from tests.running import make

FEW = GenerationOptions(max_tokens=12)
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
Opener = Callable[..., ChildEngine]
# The worker with something changed before it begins.
WORKER = "{}; from phi4local.backends.llamacpp_worker import main; main()"


def ask(session: Session, talk: Sequence[Message], options: GenerationOptions = FEW) -> tuple[str, Finish]:
    *chunks, finish = session.stream(talk, options)
    assert isinstance(finish, Finish)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk)), finish


def told(session: Session, talk: list[Message], *more: str) -> list[Message]:
    """The conversation after each question was answered."""
    for text in more:
        talk = [*talk, Message("user", text)]
        talk = [*talk, Message("assistant", ask(session, talk)[0])]
    return talk


def folder_of(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Opener]:
    """Opens engines, and closes them after the test."""
    engines: list[ChildEngine] = []

    def opener(path: Path, change: str = "", **settings: Any) -> ChildEngine:
        host = Host(tmp_path / "engine")
        if change:
            host = replace(host, command=(sys.executable, "-c", WORKER.format(change)))
        engines.append(ChildEngine(LoadSettings(str(path), **{"threads": 1, **settings}), host))
        return engines[-1]

    yield opener
    for one in engines:
        one.close()
    assert not psutil.Process().children(recursive=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write_random(path, Geometry(hidden=128))
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "states" / "one.state"


@pytest.fixture
def kept(engine: Opener, model: Path, state: Path) -> list[Message]:
    """A conversation whose state was saved by an engine that is closed."""
    opened = engine(model)
    session = opened.open_session()
    talk = told(session, [], "Hello there", "And then?")
    assert session.save(state) == state.stat().st_size > 0
    opened.close()
    return [*talk, Message("user", "Go on")]


# --- a state that fits -----------------------------------------------------------------------------------------------


def check_reopened(engine: Opener, path: Path, state: Path, *talk: str, **settings: Any) -> None:
    """A reopened conversation goes on as it would have without a break, and reads only what is new."""
    first = engine(path, **settings)
    session = first.open_session()
    history = told(session, [], *talk)
    assert session.save(state) == state.stat().st_size
    assert folder_of(state) == [state.name]
    more = [*history, Message("user", "2 + 3")]
    expected, unbroken = ask(session, more)
    first.close()
    session = engine(path, **settings).open_session()
    tokens = session.restore(state)
    text, finish = ask(session, more)
    assert text == expected
    assert finish.stats.cached_tokens == unbroken.stats.cached_tokens > 0
    assert tokens - finish.stats.cached_tokens in (0, 1)  # an answer's last token may not be part of the prompt


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("safe_mode", [False, True])
def test_every_kind_of_cache(engine: Opener, model: Path, state: Path, kv_type: str, safe_mode: bool) -> None:
    check_reopened(engine, model, state, "Hello", "More", kv_type=kv_type, safe_mode=safe_mode)


def test_the_built_in_model(engine: Opener, tmp_path: Path, state: Path) -> None:
    make(nano_folder(), "Q8_0", tmp_path / "nano.gguf")
    check_reopened(engine, tmp_path / "nano.gguf", state, "12 + 34", "5 + 6")


def test_a_real_chat_model(engine: Opener, state: Path) -> None:
    check_reopened(engine, smollm2(), state, "Tell me a story about a ship.", "Go on.", threads=None)


def test_answers_keep_the_tokens_that_they_were_made_of(engine: Opener, tmp_path: Path, state: Path) -> None:
    path = tmp_path / "scripted.gguf"
    write_scripted(path, ["h", "e", b"\xff", "y", "<|im_end|>"])  # a tokenizer would give `he`, and no id for U+FFFD
    first = engine(path).open_session()
    talk = [Message("user", "Hi")]
    answer, finish = ask(first, talk)
    first.save(state)
    later = engine(path).open_session()
    tokens = later.restore(state)
    assert tokens == finish.stats.prompt_tokens + finish.stats.generation_tokens
    _, finish = ask(later, [*talk, Message("assistant", answer), Message("user", "And?")])
    assert finish.stats.cached_tokens == tokens


@pytest.mark.parametrize(("length", "factors"), [(300, "short"), (700, "long")])
def test_rope_factors_are_restored(engine: Opener, tmp_path: Path, state: Path, length: int, factors: str) -> None:
    path = tmp_path / "longrope.gguf"
    write_random(path, Geometry(context=2048, short_context=512), seed=5, template=PLAIN)
    check_reopened(engine, path, state, "ab" * (length // 2), context_tokens=1500)
    other = engine(path, context_tokens=512 if factors == "long" else 1800)
    assert other.open_session().restore(state) == 0


def test_a_restored_conversation_can_be_changed(engine: Opener, model: Path, state: Path) -> None:
    first = engine(model).open_session()
    talk = told(first, [], "Hello there", "And then?")
    first.save(state)
    changed = [*talk[:2], Message("user", "Other")]
    expected, unbroken = ask(first, changed)
    session = engine(model).open_session()
    assert session.restore(state) > 0
    text, finish = ask(session, changed)
    assert text == expected
    assert finish.stats.cached_tokens == unbroken.stats.cached_tokens > 0
    assert session.save(state) == state.stat().st_size


# --- a state that does not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        ("", {"context_tokens": 512}),
        ("", {"kv_type": "q8_0"}),
        ("", {"kv_type": "f32"}),
        ("", {"safe_mode": True}),
        ("import llama_cpp; llama_cpp.__version__ = '0.3.99'", {}),
        ("import llama_cpp.llama_cpp as l; l.llama_print_system_info = lambda: b'another processor'", {}),
    ],
)
def test_another_engine_does_not_take_it(
    engine: Opener, model: Path, state: Path, kept: list[Message], change: str, settings: dict[str, Any]
) -> None:
    session = engine(model, change, **settings).open_session()
    assert session.restore(state) == 0
    assert not state.exists()
    assert ask(session, kept)[1].stats.cached_tokens == 0


def test_another_file_does_not_take_it(engine: Opener, model: Path, state: Path, kept: list[Message]) -> None:
    whole, facts = state.read_bytes(), model.stat()
    write_random(model, Geometry(hidden=128), seed=1)  # as large, another time
    assert engine(model).open_session().restore(state) == 0
    assert not state.exists()
    state.write_bytes(whole)
    write_random(model, Geometry(hidden=128))
    data = bytearray(model.read_bytes())
    data[data.index(b"tokenizer.chat_template") + 60] ^= 1
    model.write_bytes(data)
    os.utime(model, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as large and as old, another header
    assert engine(model).open_session().restore(state) == 0
    assert not state.exists()


def test_no_file_is_no_error(engine: Opener, model: Path, tmp_path: Path) -> None:
    session = engine(model).open_session()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "pipe", model / "x", tmp_path / ("x" * 300)):
        assert session.restore(path) == 0
    assert (tmp_path / "pipe").exists()


def test_nothing_read_is_not_saved(engine: Opener, model: Path, state: Path) -> None:
    opened = engine(model)
    session, other = opened.open_session(), opened.open_session()
    assert session.save(state) == 0
    ask(session, [Message("user", "Hi")])
    assert other.save(state) == 0
    opened.time_tokens(16, 2)
    assert session.save(state) == 0
    ask(session, [Message("user", "Hi")])
    psutil.Process().children()[0].kill()
    psutil.Process().children()[0].wait()
    assert session.save(state) == 0
    assert not state.parent.exists()
    opened.close()
    for use in (session.save, session.restore):
        with pytest.raises(UsageError, match="closed"):
            use(state)


def test_an_answer_that_is_still_coming_is_waited_for(engine: Opener, model: Path, state: Path) -> None:
    session = engine(model).open_session()
    stream = session.stream([Message("user", "Hi")], FEW)
    next(stream)
    with pytest.raises(UsageError, match="another answer"):
        session.save(state)
    stream.close()
    assert session.save(state) > 0


# --- damage, deaths, full disks --------------------------------------------------------------------------------------


def test_a_damaged_file_is_never_used(engine: Opener, model: Path, state: Path, kept: list[Message]) -> None:
    whole = state.read_bytes()
    expected = ask(engine(model).open_session(), kept)[0]
    session = engine(model).open_session()
    luck = random.Random(50)
    places = [*range(8), *(len(whole) - 1 - i for i in range(8)), *(luck.randrange(len(whole)) for _ in range(50))]
    mutants = [whole[: len(whole) * i // 50] for i in range(50)] + [whole[:-1], whole + b"\0", whole[1:], whole * 2]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << luck.randrange(8)
        mutants.append(bytes(data))
    for data in mutants:
        state.write_bytes(data)
        assert session.restore(state) == 0
        assert not state.exists()
    assert ask(session, kept)[0] == expected
    state.write_bytes(whole)
    assert session.restore(state) > 0


def sealed(data: bytes, path: Path) -> None:
    """A state as it would be if llama.cpp had written these bytes."""
    _, size, length, _ = _END.unpack(data[-_END.size :])
    path.write_bytes(data)
    with path.open("r+b") as file:
        facts = data[size : size + length]
        digest = _digest(file, size, facts)
        file.write(facts + _END.pack(_MAGIC, size, length, digest))


def test_what_the_engine_dies_of_costs_only_a_reading(
    engine: Opener, model: Path, state: Path, kept: list[Message]
) -> None:
    """As if the checksum had not found it: values flipped where llama.cpp believes them."""
    whole = state.read_bytes()
    opened = engine(model)
    session = opened.open_session()
    luck = random.Random(3)
    starts = opened._starts
    for place in [*range(16), *(luck.randrange(16, 1500) for _ in range(24))]:
        data = bytearray(whole)
        data[place] ^= 1 << luck.randrange(8)
        sealed(bytes(data), state)
        if session.restore(state) == 0:
            assert not state.exists()
        assert ask(session, kept)[1].reason == "length"
    assert not opened.info.safe_mode
    assert opened._starts - starts < 20


def test_a_file_that_kills_the_engine_is_removed(engine: Opener, model: Path, state: Path, kept: list[Message]) -> None:
    deadly = "import os, phi4local.backends.worker as w; w.read_state = lambda *_: os.abort()"
    opened = engine(model, deadly)
    session = opened.open_session()
    assert session.restore(state) == 0
    assert not state.exists()
    assert ask(session, kept)[1].stats.cached_tokens == 0
    assert not opened.info.safe_mode


def test_a_new_worker_is_given_the_state_once(engine: Opener, model: Path, state: Path, kept: list[Message]) -> None:
    session = engine(model).open_session()
    tokens = session.restore(state)
    cached = []
    for _ in range(3):
        cached.append(ask(session, kept)[1].stats.cached_tokens)
        psutil.Process().children()[0].kill()
        psutil.Process().children()[0].wait()
    assert cached[0] == cached[1] >= tokens - 1
    assert cached[2] == 0
    assert state.exists()


def test_a_full_disk_leaves_nothing_behind(engine: Opener, model: Path, state: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))"
    session = engine(model, limit).open_session()
    talk = told(session, [], "Hello there, this becomes larger than that")
    state.parent.mkdir()
    state.write_bytes(b"old")
    with pytest.raises(InsufficientResources, match="too full"):
        session.save(state)
    assert folder_of(state) == [state.name]
    assert state.read_bytes() == b"old"
    assert ask(session, [*talk, Message("user", "Go on")])[1].stats.cached_tokens > 0


def test_a_folder_that_cannot_be_written(engine: Opener, model: Path, tmp_path: Path) -> None:
    session = engine(model).open_session()
    told(session, [], "Hello")
    with pytest.raises(BackendError, match="cannot be kept"):
        session.save(model / "one.state")


def test_a_state_that_is_too_large_for_the_disk(
    engine: Opener, model: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine(model).open_session()
    told(session, [], "Hello")
    monkeypatch.setattr("phi4local.backends.requests.room_bytes", lambda _: 1000)
    assert session.save(state) == 0
    assert not state.exists()


def test_a_death_while_saving_leaves_nothing_behind(engine: Opener, model: Path, state: Path) -> None:
    deadly = "import os, phi4local.backends.worker as w; w.write_state = lambda *_: os.abort()"
    session = engine(model, deadly).open_session()
    talk = told(session, [], "Hello")
    with pytest.raises(BackendError, match="SIGABRT"):
        session.save(state)
    assert folder_of(state) == []
    assert ask(session, [*talk, Message("user", "Go on")])[1].reason == "length"
