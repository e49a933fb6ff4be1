"""The engine as its caller sees it: what comes out, what is read again, how it ends."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from phi4local.backends import open_engine
from phi4local.backends.child import ChildEngine, Host
from phi4local.backends.load_settings import LoadSettings
from phi4local.conversation import Message
from phi4local.engine import Chunk, Engine, Finish, GenerationOptions, Session, Stats
from phi4local.errors import BackendError, FormatError, NotFound, UsageError
from tests.gguf_models import Geometry, smollm2, write_random, write_scripted

ASK = [Message("user", "Hi")]
GREEDY = GenerationOptions()


@dataclass(frozen=True)
class Heard:
    """A whole answer."""

    answer: str
    thinking: str
    finish: Finish

    @property
    def stats(self) -> Stats:
        return self.finish.stats


def listen(session: Session, messages: Sequence[Message], options: GenerationOptions = GREEDY) -> Heard:
    *chunks, finish = session.stream(messages, options)
    assert isinstance(finish, Finish)
    texts = {"answer": "", "thinking": ""}
    for chunk in chunks:
        assert isinstance(chunk, Chunk)
        assert chunk.text
        texts[chunk.kind] += chunk.text
    return Heard(texts["answer"], texts["thinking"], finish)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[object]:
    """Opens engines, and closes them after the test."""
    engines: list[Engine] = []

    def opener(path: Path, **settings: Any) -> Engine:
        engines.append(open_engine(path, state_folder=tmp_path / "state", **{"threads": 1, **settings}))
        return engines[-1]

    yield opener
    for engine in engines:
        engine.close()


@pytest.fixture
def says(tmp_path: Path, opened):
    """A session with a model that answers as scripted."""

    def session(*script: str | bytes, loop: bool = False, **template: str) -> Session:
        path = tmp_path / "scripted.gguf"
        write_scripted(path, script, loop=loop, **template)
        return opened(path).open_session()

    return session


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A session with a real chat model."""
    engine = open_engine(smollm2(), state_folder=tmp_path_factory.mktemp("state"))
    yield engine.open_session()
    engine.close()


@pytest.fixture
def slow(tmp_path: Path, opened) -> Session:
    """A session with a model that needs seconds for `LONG_ASK`."""
    path = tmp_path / "slow.gguf"
    write_random(path, Geometry(hidden=256, layers=4, feed_forward=1024, context=8192))
    return opened(path).open_session()


LONG_ASK = [Message("user", "x" * 6000)]


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["<|im_end|>", "<|end|>", "<|endoftext|>"])
def test_every_end_token_of_the_family_ends_an_answer(says, end: str) -> None:
    heard = listen(says("Hello", " you", end, "never"), ASK)
    assert (heard.answer, heard.finish.reason, heard.stats.generation_tokens) == ("Hello you", "stop", 2)


def test_other_control_tokens_are_shown(says) -> None:
    heard = listen(says("a", "<|tool|>", "[]", "<|tag|>", "<|im_start|>", "<|im_end|>"), ASK)
    assert heard.answer == "a<|tool|>[]<|tag|><|im_start|>"


def test_characters_come_whole(says) -> None:
    wave = "🌊".encode()
    session = says("é", wave[:1], wave[1:3], wave[3:], b"\xff", " ok", wave[:2], "<|im_end|>")
    chunks = [chunk.text for chunk in session.stream(ASK, GREEDY) if isinstance(chunk, Chunk)]
    assert chunks == ["é", "🌊", "\ufffd", " ok", "\ufffd"]


@pytest.mark.parametrize(
    ("script", "thinking", "answer"),
    [
        (("<think>", "hm", "</think>", "Yes"), "hm", "Yes"),
        (("\n", "<th", "ink>h", "m</t", "hink>\n\n", "Yes"), "hm", "\n\nYes"),
        (("<think>", "hm"), "hm", ""),
        (("So ", "<think>", "hm", "</think>"), "", "So <think>hm</think>"),
        (("<thin", "g"), "", "<thing"),
    ],
)
def test_thinking_is_told_from_the_answer(says, script: tuple[str, ...], thinking: str, answer: str) -> None:
    heard = listen(says(*script, "<|im_end|>"), ASK)
    assert (heard.thinking, heard.answer) == (thinking, answer)


def test_a_template_may_open_the_thinking(says) -> None:
    template = "{{ messages[0].content }}<|im_sep|><think>\n"
    heard = listen(says("hm", "</think>", "Yes", "<|im_end|>", template=template, after=">"), ASK)
    assert (heard.thinking, heard.answer) == ("hm", "Yes")


def test_an_answer_has_the_length_that_was_asked_for(says) -> None:
    session = says("a", "b", loop=True)
    for most in (0, 1, 5):
        heard = listen(session, ASK, GenerationOptions(max_tokens=most))
        assert (heard.answer, heard.finish.reason) == (("ab" * 3)[:most], "length")


def test_samples_follow_the_seed(tmp_path: Path, opened) -> None:
    write_random(tmp_path / "random.gguf", Geometry())
    session = opened(tmp_path / "random.gguf").open_session()
    warm = GenerationOptions(temperature=1.0, top_k=0, top_p=1.0, seed=3, max_tokens=20)
    texts = [listen(session, ASK, replace(warm, seed=seed)).answer for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    assert (
        listen(session, ASK, replace(warm, top_k=1)).answer
        == listen(session, ASK, replace(GREEDY, max_tokens=20)).answer
    )


# --- what is read again ----------------------------------------------------------------------------------------------


def test_a_second_turn_reads_only_what_is_new(says) -> None:
    session = says("h", "e", b"\xff", "y", "<|im_end|>")  # a tokenizer would give `he`, and no id for U+FFFD
    first = listen(session, ASK)
    assert first.answer == "he\ufffdy"
    second = listen(session, [*ASK, Message("assistant", first.answer), Message("user", "And?")])
    kept = first.stats.prompt_tokens + first.stats.generation_tokens
    assert second.stats.cached_tokens == kept
    assert second.stats.prompt_tokens > kept
    third = listen(session, [*ASK, Message("assistant", "other"), Message("user", "And?")])
    assert third.stats.cached_tokens == first.stats.prompt_tokens


def test_asking_the_same_again_reads_one_token(says) -> None:
    session = says("a", "b", "<|im_end|>")
    first, again = listen(session, ASK), listen(session, ASK)
    assert again.answer == first.answer
    assert again.stats.cached_tokens == again.stats.prompt_tokens - 1
    assert again.stats.prompt_tps > 0


def test_sessions_take_turns_with_one_cache(tmp_path: Path, opened) -> None:
    write_random(tmp_path / "random.gguf", Geometry())
    engine = opened(tmp_path / "random.gguf")
    one, other = engine.open_session(), engine.open_session()
    short = GenerationOptions(max_tokens=10)
    long_ask = [Message("user", "x" * 200)]
    alone = [listen(one, ASK, short).answer, listen(one, long_ask, short).answer]
    for _ in range(2):
        assert [listen(one, ASK, short).answer, listen(other, long_ask, short).answer] == alone


# --- how it ends -----------------------------------------------------------------------------------------------------


def test_a_closed_answer_leaves_an_engine_at_rest(says) -> None:
    session = says("a", "b", loop=True)
    for count in (1, 2, 7):
        stream = session.stream(ASK, GREEDY)
        for _ in range(count):
            next(stream)
        started = time.monotonic()
        stream.close()
        assert time.monotonic() - started < 2
        assert listen(session, ASK, GenerationOptions(max_tokens=3)).answer == "aba"
    unread = session.stream(ASK, GREEDY)
    unread.close()
    assert listen(session, ASK, GenerationOptions(max_tokens=3)).answer == "aba"


def test_a_prompt_can_be_cancelled_while_it_is_read(slow: Session) -> None:
    few = GenerationOptions(max_tokens=8)
    expected = listen(slow, ASK, few).answer
    threading.Timer(0.3, slow.cancel).start()
    started = time.monotonic()
    heard = listen(slow, LONG_ASK)
    assert time.monotonic() - started < 2
    assert (heard.answer, heard.finish.reason, heard.stats.generation_tokens) == ("", "cancelled", 0)
    kept = listen(slow, LONG_ASK, few).stats.cached_tokens
    assert kept > len(ASK[0].content)
    assert (kept - heard.stats.cached_tokens) % 512 == 0  # whole batches
    assert listen(slow, ASK, few).answer == expected


def test_an_answer_can_be_cancelled_from_another_thread(says) -> None:
    session = says("a", "b", loop=True)
    threading.Timer(0.3, session.cancel).start()
    heard = listen(session, ASK)
    assert heard.finish.reason == "cancelled"
    assert len(heard.answer) == heard.stats.generation_tokens
    session.cancel()  # nothing to cancel
    assert listen(session, ASK, GenerationOptions(max_tokens=3)).answer == "aba"


def test_ctrl_c_leaves_an_engine_at_rest(slow: Session) -> None:
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        listen(slow, LONG_ASK)
    assert listen(slow, ASK, GenerationOptions(max_tokens=3)).finish.reason == "length"


def test_a_session_cancels_its_own_answer_only(tmp_path: Path, opened) -> None:
    write_scripted(tmp_path / "loop.gguf", ["a", "b"], loop=True)
    engine = opened(tmp_path / "loop.gguf")
    speaking, waiting = engine.open_session(), engine.open_session()
    heard: list[Heard] = []
    stream = speaking.stream(ASK, GREEDY)
    next(stream)
    waiter = threading.Thread(target=lambda: heard.append(listen(waiting, ASK)))
    waiter.start()
    time.sleep(0.1)
    waiting.cancel()
    assert isinstance(next(stream), Chunk)
    stream.close()
    waiter.join()
    assert (heard[0].finish.reason, heard[0].answer) == ("cancelled", "")


def test_what_is_timed_after_a_cancelled_answer_is_not_cancelled(says) -> None:
    session = says("a", "b", loop=True)
    stream = session.stream(ASK, GREEDY)
    next(stream)
    stream.close()
    timing = session._engine.time_tokens(16, 2)
    assert timing.prompt_seconds > 0


def test_two_answers_at_once_are_refused_in_one_thread(says) -> None:
    session = says("a", "b", loop=True)
    with_first = session.stream(ASK, GREEDY)
    next(with_first)
    with pytest.raises(UsageError, match="another answer"):
        next(session.stream(ASK, GREEDY))
    with_first.close()
    assert listen(session, ASK, GenerationOptions(max_tokens=2)).answer == "ab"


def test_two_threads_take_turns(says) -> None:
    session = says("a", "b", loop=True)
    answers: list[str] = []
    options = GenerationOptions(max_tokens=30)
    threads = [threading.Thread(target=lambda: answers.append(listen(session, ASK, options).answer)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["ab" * 15] * 4


def test_a_conversation_longer_than_the_context_is_refused(tmp_path: Path, opened) -> None:
    write_random(tmp_path / "random.gguf", Geometry())
    engine = opened(tmp_path / "random.gguf", context_tokens=256)
    session = engine.open_session()
    assert engine.info.context_tokens == 256
    with pytest.raises(UsageError, match=r"318 tokens long; the context holds 256") as caught:
        listen(session, [Message("user", "x" * 300)])
    assert "--context" in caught.value.hint
    heard = listen(session, [Message("user", "x" * 200)])
    assert heard.finish.reason == "length"
    assert heard.stats.prompt_tokens + heard.stats.generation_tokens == 257  # the last token has no place of its own


def test_a_word_of_any_length_can_be_read(tmp_path: Path, opened) -> None:
    """llama.cpp's regex for this pre-tokenizer, Phi-4-mini's, needs a stack frame for every letter."""
    write_random(tmp_path / "random.gguf", Geometry(), pre="gpt-4o")
    session = opened(tmp_path / "random.gguf").open_session()
    with pytest.raises(UsageError, match="is 200018 tokens long"):
        listen(session, [Message("user", "a" * 200_000)])


@pytest.mark.parametrize("context", [-1, 1025, 10**12])
def test_a_context_that_the_model_does_not_have(tmp_path: Path, opened, context: int) -> None:
    write_random(tmp_path / "random.gguf", Geometry())
    with pytest.raises(UsageError, match="1024"):
        opened(tmp_path / "random.gguf", context_tokens=context)


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0", "f32"])
def test_a_smaller_kv_cache(tmp_path: Path, kv_type: str) -> None:
    write_random(tmp_path / "random.gguf", Geometry(hidden=128))
    settings = LoadSettings(str(tmp_path / "random.gguf"), None, 1, kv_type=kv_type)
    with contextlib.closing(ChildEngine(settings, Host(tmp_path / "state"))) as engine:
        session = engine.open_session()
        assert listen(session, ASK, GenerationOptions(max_tokens=3)).finish.reason == "length"


def test_files_that_cannot_be_loaded(tmp_path: Path, opened) -> None:
    with pytest.raises(NotFound, match=r"absent\.gguf"):
        opened(tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("this is no model")
    with pytest.raises(BackendError, match=r"cannot load the model: .*magic"):
        opened(tmp_path / "text.gguf")
    write_random(tmp_path / "mute.gguf", Geometry(), template="")
    with pytest.raises(FormatError, match=r"`mute\.gguf` carries no chat template"):
        opened(tmp_path / "mute.gguf")


def test_a_closed_engine_says_so(says) -> None:
    session = says("a", "<|im_end|>")
    session._engine.close()
    with pytest.raises(UsageError, match="closed"):
        listen(session, ASK)


# --- a real chat model -----------------------------------------------------------------------------------------------


def test_a_real_model_talks(talker: Session) -> None:
    heard = listen(talker, [Message("user", "What is the capital of France? Answer in one word.")])
    assert "Paris" in heard.answer
    assert heard.finish.reason == "stop"
    assert heard.stats.generation_tps > 0
    assert 0 < heard.stats.ttft_seconds < 60


def test_a_control_string_in_a_message_is_read_as_text(talker: Session) -> None:
    one = GenerationOptions(max_tokens=1)
    plain = listen(talker, [Message("user", "a b")], one).stats.prompt_tokens
    typed = listen(talker, [Message("user", "a<|im_end|>b")], one).stats.prompt_tokens
    assert typed >= plain + 4  # `<`, `|`, `im`, `_`, `end`, ... and not one token


def test_a_real_conversation_reads_only_what_is_new(talker: Session) -> None:
    few = GenerationOptions(max_tokens=12)
    talk = [Message("user", "Tell me a story about a ship.")]
    read = []
    for _ in range(3):
        heard = listen(talker, talk, few)
        read.append(heard.stats.prompt_tokens - heard.stats.cached_tokens)
        talk += [Message("assistant", heard.answer), Message("user", "Go on.")]
    assert read[1] == read[2] < 16
