"""The engine's process dies, at any moment and of anything; the program does not notice more than it must."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from phi4local.backends.child import ChildEngine, Deadlines, Host
from phi4local.backends.load_settings import LoadSettings
from phi4local.backends.safe_mode import crash_remembered, machine_and_build, remember_crash
from phi4local.conversation import Message
from phi4local.engine import Chunk, Finish, GenerationOptions
from phi4local.errors import BackendError, FormatError, Phi4LocalError
from tests.gguf_models import Geometry, write_random, write_scripted

ASK = [Message("user", "Hi")]
FEW = GenerationOptions(max_tokens=4)
# Speaks the worker's protocol; at `place` it does `deed`, in which `safe` says whether safe settings were asked for.
FAKE = """
import json, os, sys, time
def say(event): print(json.dumps(event), flush=True)
def reach(place):
    if place == {place!r}: {deed}
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "load":
        safe = request["settings"]["safe_mode"]
        reach("load")
        say({{"placed": 1000}})
        load = dict(where="cpu", gpu_layers=0, layers=1, kv_type="f16", context_tokens=256, predicted={{}}, took={{}})
        say({{"loaded": {{"description": f"safe {{safe}}", "context_sizes": [256], "load": load}}}})
    elif request["op"] == "answer":
        reach("template")
        say({{"rendered": {{"thinking": False}}}})
        reach("prompt")
        say("one ")
        reach("word")
        say("two")
        say({{"finish": dict(reason="stop", prompt_tokens=1, cached_tokens=0, read_tokens=1, generation_tokens=2,
                            prompt_seconds=1, generation_seconds=1)}})
        reach("end")
"""
SEGV, KILL, ABORT = (f"os.kill(os.getpid(), {int(sent)})" for sent in (signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT))


class Place:
    """Where engines with a misbehaving worker are opened."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.memory = self.state / "safe-mode.json"
        self._model = folder / "model.gguf"
        self._model.write_bytes(b"")
        self._engines: list[ChildEngine] = []

    def open(self, place: str, deed: str, deadlines: Deadlines | None = None) -> ChildEngine:
        command = (sys.executable, "-c", FAKE.format(place=place, deed=deed))
        host = Host(self.state, command, deadlines or Deadlines())
        self._engines.append(ChildEngine(LoadSettings(str(self._model)), host))
        return self._engines[-1]

    def close(self) -> None:
        for engine in self._engines:
            engine.close()


def check_gone() -> None:
    """No child is left; one that takes its time to die is taken in by a thread."""
    end = time.monotonic() + 10
    while left := psutil.Process().children(recursive=True):
        assert time.monotonic() < end, left
        time.sleep(0.01)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    here = Place(tmp_path)
    yield here
    here.close()
    check_gone()


def ask(engine: ChildEngine, options: GenerationOptions = FEW) -> str:
    return "".join(item.text for item in engine.open_session().stream(ASK, options) if isinstance(item, Chunk))


# --- one retry with safe settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["load", "prompt"])
@pytest.mark.parametrize("deed", [SEGV, ABORT])
def test_a_crash_before_the_first_word_is_got_over_and_remembered(place: Place, where: str, deed: str) -> None:
    engine = place.open(where, f"safe or {deed}")
    assert ask(engine) == "one two"
    assert engine.info.safe_mode
    [note] = engine.info.notes
    assert ("SIGSEGV" if deed == SEGV else "SIGABRT") in note
    assert str(place.memory) in note
    later = place.open("load", f"safe or {deed}")
    assert later.info.description == "safe True"
    assert later.info.safe_mode
    assert later.info.notes == ()  # told once


def test_a_crash_with_safe_settings_too_is_told_and_not_remembered(place: Place) -> None:
    engine = place.open("prompt", SEGV)
    for _ in range(2):
        with pytest.raises(BackendError, match="SIGSEGV"):
            ask(engine)
        assert not engine.info.safe_mode
    with pytest.raises(BackendError, match="SIGSEGV"):
        place.open("load", SEGV)
    assert not place.memory.exists()


def test_a_crash_after_the_first_word_is_told(place: Place) -> None:
    engine = place.open("word", SEGV)
    heard = []
    with pytest.raises(BackendError, match="SIGSEGV") as caught:
        heard.extend(engine.open_session().stream(ASK, FEW))
    assert "Ask again" in caught.value.hint
    assert not engine.info.safe_mode
    assert not place.memory.exists()


def test_a_kill_is_no_crash(place: Place) -> None:
    engine = place.open("prompt", KILL)
    with pytest.raises(BackendError, match="SIGKILL") as caught:
        ask(engine)
    assert "memory" in caught.value.hint
    assert not place.memory.exists()


@pytest.mark.parametrize("deed", [KILL, SEGV, "os._exit(0)"])
def test_a_death_between_two_questions_goes_unnoticed(place: Place, deed: str) -> None:
    engine = place.open("end", f"time.sleep(0.05), {deed}")
    for pause in (0, 0, 0.2, 0):
        assert ask(engine) == "one two"
        time.sleep(pause)
    assert not engine.info.safe_mode


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"a":', b"[" * 50_000, b'{"%s": 7}', b"x" * 100_000])
def test_a_damaged_memory_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    memory = tmp_path / "safe-mode.json"
    key = machine_and_build()
    memory.write_bytes(content.replace(b"%s", key.encode()))
    assert crash_remembered(memory, key) == ""
    remember_crash(memory, key, "SIGILL")
    remember_crash(memory, "another machine", "SIGBUS")
    assert crash_remembered(memory, key) == "SIGILL"
    assert len(json.loads(memory.read_bytes())) == 2


def test_the_key_names_machine_and_build() -> None:
    assert "llama-cpp-python 0." in machine_and_build()
    assert "library of 0 bytes" not in machine_and_build()


# --- deadlines and nonsense ------------------------------------------------------------------------------------------


def test_a_load_without_end_is_ended(place: Place) -> None:
    with pytest.raises(BackendError, match="did not load the model in time"):
        place.open("load", "time.sleep(60)", Deadlines(load_seconds=0.3))


def test_a_template_without_end_is_ended(place: Place) -> None:
    engine = place.open("template", "time.sleep(60)", Deadlines(template_seconds=0.3))
    for _ in range(2):
        with pytest.raises(FormatError, match=r"template of `model\.gguf` did not come to an end"):
            ask(engine)


def test_a_cancellation_without_end_is_ended(place: Place) -> None:
    engine = place.open("word", "time.sleep(60)", Deadlines(cancel_seconds=0.3))
    stream = engine.open_session().stream(ASK, FEW)
    assert next(stream) == Chunk("one ")
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 2
    assert next(engine.open_session().stream(ASK, FEW)) == Chunk("one ")


@pytest.mark.parametrize(
    ("deed", "cause"),
    [
        ("print('nonsense', flush=True)", "a garbled message"),
        ("print('\"half', end='', flush=True) or os._exit(0)", "status 0"),
    ],
)
def test_nonsense_is_a_death(place: Place, deed: str, cause: str) -> None:
    engine = place.open("prompt", deed)
    with pytest.raises(BackendError, match=f"ended with {cause}"):
        ask(engine)


def test_a_missing_engine_says_what_to_install(place: Place) -> None:
    with pytest.raises(BackendError, match="No module named 'llama_cpp_x'") as caught:
        place.open("load", "__import__('llama_cpp_x')")
    assert "pip install" in caught.value.hint


# --- the real worker -------------------------------------------------------------------------------------------------


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[ChildEngine]:
    """An engine whose answers do not end by themselves."""
    path = tmp_path / "endless.gguf"
    write_scripted(path, ["a", "b"], loop=True)
    engine = ChildEngine(LoadSettings(str(path), threads=1), Host(tmp_path / "state"))
    yield engine
    engine.close()
    check_gone()


def test_twenty_deaths_at_random_moments(endless: ChildEngine) -> None:
    luck = random.Random(20)
    broken = 0
    for sent in [signal.SIGKILL, signal.SIGSEGV] * 10:
        process = psutil.Process().children()[0]
        stream = endless.open_session().stream(ASK, GenerationOptions(max_tokens=400))
        last = luck.randrange(60)
        try:
            for number, _ in enumerate(stream):
                if number == last:
                    process.send_signal(sent)
                    struck = time.monotonic()
        except BackendError as error:
            broken += sent.name in error.message
            assert time.monotonic() - struck < 2
        started = time.monotonic()
        assert ask(endless) == "abab"
        assert time.monotonic() - started < 5
        children = psutil.Process().children(recursive=True)
        assert [child.status() != psutil.STATUS_ZOMBIE for child in children] == [True]
    assert broken > 10


PARENT = """
import sys, threading, time
from pathlib import Path
from phi4local.backends.child import Host, ChildEngine
from phi4local.backends.load_settings import LoadSettings
from phi4local.conversation import Message
from phi4local.engine import GenerationOptions
engine = ChildEngine(LoadSettings(sys.argv[1], context_tokens=16384, threads=1), Host(Path(sys.argv[2])))
if int(sys.argv[3]):
    stream = engine.open_session().stream([Message("user", "x" * int(sys.argv[3]))], GenerationOptions())
    threading.Thread(target=lambda: list(stream)).start()
    time.sleep(0.3)
print("ready", flush=True)
time.sleep(60)
"""
BUSY = {
    "idle": ("{{ messages[0].content }}", 0),
    "answering": ("{{ messages[0].content }}", 1),
    "reading": ("{{ messages[0].content }}", 12_000),
    "rendering": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", 1),
}


@pytest.mark.parametrize("doing", BUSY)
def test_a_killed_program_takes_its_worker_along(tmp_path: Path, doing: str) -> None:
    template, length = BUSY[doing]
    path = tmp_path / "model.gguf"
    write_random(path, Geometry(hidden=256, layers=4, feed_forward=1024, context=16384), template=template)
    command = [sys.executable, "-c", PARENT, str(path), str(tmp_path / "state"), str(length)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        [worker] = psutil.Process(parent.pid).children()
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs([worker], timeout=3)
        assert not alive


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_ends_in_one_clear_error(tmp_path: Path, seed: int) -> None:
    check_mutants(tmp_path, range(seed, seed + 1))


@pytest.mark.slow
def test_many_damaged_files(tmp_path: Path) -> None:
    check_mutants(tmp_path, range(1000, 1200))


def check_mutants(folder: Path, seeds: range) -> None:
    """Flip a few bits near the start of a model, or cut it; load it and ask it something."""
    path = folder / "damaged.gguf"
    write_random(path, Geometry(layers=1))
    whole = path.read_bytes()
    for seed in seeds:
        luck = random.Random(seed)
        data = bytearray(whole[: luck.choice((len(whole), len(whole), luck.randrange(len(whole))))])
        for _ in range(luck.choice((1, 3, 20))):
            data[luck.randrange(min(len(data), 12_000))] ^= 1 << luck.randrange(8)
        path.write_bytes(data)
        started = time.monotonic()
        try:
            engine = ChildEngine(LoadSettings(str(path), threads=1), Host(folder / "state"))
            try:
                assert isinstance(list(engine.open_session().stream(ASK, FEW))[-1], Finish)
            finally:
                engine.close()
        except Phi4LocalError as error:
            assert error.message.isprintable(), seed
        assert time.monotonic() - started < 25
        check_gone()
