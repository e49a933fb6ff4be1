"""The chat around the engine: Ctrl-C at any moment, an engine that dies, what is piped in, what a name means."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pytest

from phi4local.actions.chat import Located, Opened, open_model
from phi4local.backends import open_engine
from phi4local.backends.child import ChildEngine, Host
from phi4local.backends.load_settings import LoadSettings
from phi4local.cli import lines as chat
from phi4local.conversation import Message
from phi4local.engine import Chunk, Engine, Finish, GenerationOptions, Session
from phi4local.errors import BackendError, NotFound, UsageError
from phi4local.settings import nano_folder
from tests.gguf_models import Geometry, write_random, write_scripted
from tests.running import json_of, phi4local
from tests.test_engine_crash import FAKE, SEGV
from ui.interrupts import on_interrupt
from ui.lines import Lines

GREEDY = GenerationOptions()
ASK = [Message("user", "Hi")]


class Noting:
    """A session that notes what is raised inside the engine."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.met: list[str] = []
        self.cancel, self.close = session.cancel, session.close

    def stream(self, messages: Sequence[Message], options: GenerationOptions) -> Generator[Chunk | Finish]:
        try:
            yield from self._session.stream(messages, options)
        except BaseException as error:
            self.met.append(type(error).__name__)
            raise


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Engine]:
    """An engine whose answers do not end by themselves."""
    write_scripted(tmp_path / "endless.gguf", ["a", "b"], loop=True)
    engine = open_engine(tmp_path / "endless.gguf", state_folder=tmp_path / "state", threads=1)
    yield engine
    engine.close()


@pytest.fixture
def dying(tmp_path: Path) -> Iterator[Engine]:
    """An engine that crashes after the first word."""
    (tmp_path / "model.gguf").write_bytes(b"")
    command = (sys.executable, "-c", FAKE.format(place="word", deed=SEGV))
    engine = ChildEngine(LoadSettings(str(tmp_path / "model.gguf")), Host(tmp_path / "state", command))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    json_of(phi4local("quantize", nano_folder(), "--to", "Q8_0", "--json", env={"PHI4LOCAL_HOME": str(folder)}))
    return folder


@pytest.fixture
def nano_home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PHI4LOCAL_HOME", str(shared_home))
    return shared_home


def press_after(seconds: float) -> None:
    """Ctrl-C, in a while."""
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_raises_nothing_in_the_engine(endless: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    session = Noting(endless.open_session())
    lines = Lines(session, GREEDY, None, dim=False)
    before = signal.getsignal(signal.SIGINT)
    press_after(0.2)
    lines._ask("Hi")
    assert session.met == []
    assert signal.getsignal(signal.SIGINT) is before
    out, err = capsys.readouterr()
    assert out.startswith("abab")
    assert out.endswith("\n")
    assert err == "stopped\n"
    assert lines.messages == [Message("user", "Hi"), Message("assistant", out.strip())]


def test_ctrl_c_at_any_moment_and_many_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_random(tmp_path / "slow.gguf", Geometry(hidden=128, layers=2, context=4096))
    engine = open_engine(tmp_path / "slow.gguf", state_folder=tmp_path / "state", threads=1)
    session = Noting(engine.open_session())
    luck = random.Random(7)
    for _ in range(15):
        lines = Lines(session, GREEDY, None, dim=False)
        moment = luck.random() * 0.1 + 0.01
        with on_interrupt(lambda: None):  # a key may be late
            press_after(moment)
            press_after(moment + 0.0005)
            lines._ask("x" * luck.choice((1, 3000)))
            time.sleep(0.02)
        assert [message.role for message in lines.messages] == ["user", "assistant"]
    assert session.met == []
    assert isinstance(list(session.stream(ASK, GenerationOptions(max_tokens=2)))[-1], Finish)
    engine.close()


def test_where_ctrl_c_is_ignored_it_stays_so(endless: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        press_after(0.02)
        Lines(endless.open_session(), GenerationOptions(max_tokens=200), None, dim=False)._ask("Hi")
        assert "stopped" not in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_in_one_answer(endless: Engine, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    press_after(0.2)
    with pytest.raises(KeyboardInterrupt):
        chat._answer(Opened(Located("endless", "endless", "", Path()), endless, GREEDY), ASK, GREEDY, as_json=as_json)
    out = capsys.readouterr().out
    if as_json:
        value = json.loads(out)
        assert (value["finish_reason"], len(value["text"])) == ("cancelled", value["generation_tokens"])
    assert "abab" in out
    assert out.endswith("\n")


# --- an engine that dies ---------------------------------------------------------------------------------------------


def test_a_crash_in_mid_answer_is_told_on_a_line_of_its_own(dying: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(dying.open_session(), GREEDY, None, dim=False)
    lines._ask("Hi")
    out, err = capsys.readouterr()
    assert out == "one \n"
    error, note, hint = err.splitlines()
    assert error.startswith("error: ")
    assert note == "the answer is incomplete"
    assert hint.startswith("hint: Ask again")
    assert lines.messages == [Message("user", "Hi"), Message("assistant", "one ")]


def test_an_error_before_the_first_word_takes_the_question_back(
    endless: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    endless.close()
    lines = Lines(endless.open_session(), GREEDY, None, dim=False)
    lines._ask("Hi")
    assert capsys.readouterr() == ("", "error: The engine is closed\n")  # there is no hint, so there is no such line
    assert lines.messages == []


@pytest.mark.parametrize("as_json", [False, True])
def test_a_crash_in_one_answer(dying: Engine, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    with pytest.raises(BackendError, match="SIGSEGV") as caught:
        chat._answer(Opened(Located("dying", "dying", "", Path()), dying, GREEDY), ASK, GREEDY, as_json=as_json)
    out, err = capsys.readouterr()
    assert "incomplete" in err
    if not as_json:
        assert out == "one \n"
        return
    value = json.loads(out)
    assert (value["text"], value["finish_reason"], value["error"]) == ("one ", "error", caught.value.message)
    assert (value["thinking"], value["prompt_tokens"], value["ttft_seconds"]) == ("", 0, 0)


# --- what is piped in ------------------------------------------------------------------------------------------------


def run_with(stdin: int) -> subprocess.CompletedProcess[str]:
    """17 + 25, with standard input as given."""
    command = [sys.executable, "-m", "phi4local", "chat", "-p", "What is 17 + 25?", "--json"]
    return subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("as_file", [False, True])
def test_what_is_piped_in_beside_a_prompt_is_its_material(nano_home: Path, tmp_path: Path, as_file: bool) -> None:
    alone = json_of(run_with(subprocess.DEVNULL))["prompt_tokens"]
    if as_file:
        (tmp_path / "text").write_text("some words and more words")
        with (tmp_path / "text").open() as file:
            more = json_of(run_with(file.fileno()))["prompt_tokens"]
    else:
        arguments = ("chat", "-p", "What is 17 + 25?", "--json")
        more = json_of(phi4local(*arguments, stdin="some words and more words"))["prompt_tokens"]
        assert json_of(phi4local(*arguments))["prompt_tokens"] == alone
    assert more > alone


def test_an_inherited_pipe_that_stays_open_is_not_waited_for(nano_home: Path) -> None:
    reader, writer = os.pipe()
    try:
        assert json_of(run_with(reader))["finish_reason"] == "stop"
    finally:
        os.close(reader)
        os.close(writer)


def test_closed_standard_input_is_empty(nano_home: Path) -> None:
    command = f"{sys.executable} -m phi4local chat <&-"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "The prompt is empty" in result.stderr


def test_a_state_folder_that_cannot_be_written(nano_home: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "models").symlink_to(nano_home / "models")
    (tmp_path / "home" / "state").write_text("")
    result = phi4local("chat", "-p", "What is 20 + 30?", env={"PHI4LOCAL_HOME": str(tmp_path / "home")})
    assert result.stdout.strip().rstrip(".").endswith("50"), result.stderr


# --- what a name means -----------------------------------------------------------------------------------------------


def test_a_folder_in_the_way_does_not_hide_a_build(
    nano_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("phi4-nano", "phi 9"):
        Path(name).mkdir()
    opened = open_model("phi4-nano")
    opened.engine.close()
    assert opened.label == "phi4-nano:Q8_0"
    with pytest.raises(NotFound, match="No model called `phi 9`") as caught:
        open_model("phi 9")
    assert "`phi4local quantize './phi 9' --to Q4_K_M`" in caught.value.hint
    with pytest.raises(UsageError, match="is a folder") as folder:
        open_model("./phi4-nano")
    assert "phi4local quantize" in folder.value.hint


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".gguf", "./" + "x" * 300, "pipe.gguf"])
def test_names_that_can_be_no_file(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.gguf")
    with pytest.raises(NotFound):
        open_model(name)
