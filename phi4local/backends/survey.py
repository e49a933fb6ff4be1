"""What every build of a model would take of this machine: the question, the answer, and how the engine is asked.

The engine answers in a process of its own (`phi4local.backends.surveyor`). Both ends are this program: what goes
between them is pickled.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from hardware.report import EngineBuild
from phi4local.backends.ask import REINSTALL
from phi4local.backends.process import ENGINE_VARIABLES, cause, end_group, environment, own_group, python_module
from phi4local.backends.safe_mode import crash_remembered, machine_and_build, memory_file, remember_crash
from phi4local.errors import BackendError, Phi4LocalError
from phi4local.fit import Placement, Room
from phi4local.speed import Rates, Work
from quant.config import Config

_DEADLINE_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Wanted:
    """A build to ask about: one that would be made here, one that is `published`, or the file at `path`."""

    build: str
    published: bool = False
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A model (`config` None: files only), the context and KV type, and the main memory; `calibrate`: measure rates."""

    config: Config | None
    builds: tuple[Wanted, ...]
    main: Room
    context: int | None = None
    kv_type: str = "f16"
    replaced: dict[str, int] = field(default_factory=dict)
    calibrate: bool = False
    safe_mode: bool = False
    folder: Path = Path()  # for skeletons, while the question is answered


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One build: bytes of its tensors in the file, the context asked about and the one it was trained for, and where
    it goes. `most_context` is the largest that fits there, 0 where none does.
    """

    build: str
    tensor_bytes: int
    context: int
    trained: int
    placement: Placement
    most_context: int
    work: Work


@dataclass(frozen=True, slots=True)
class Survey:
    """The engine, the room of each device, the builds, those that it cannot tell about with the reason, and the rates.

    `crash`: what measuring died of before it was done with safe settings, which all the rest then is about.
    """

    engine: EngineBuild
    rooms: tuple[Room, ...]
    builds: tuple[Surveyed, ...]
    problems: tuple[tuple[str, Phi4LocalError], ...]
    rates: Rates | None
    crash: str = ""


def survey(question: Question, state_folder: Path) -> Survey:
    """Ask the engine (BackendError); a crash is remembered as one in a chat is."""
    memory, key = memory_file(state_folder), machine_and_build()
    found = _ask(replace(question, safe_mode=bool(crash_remembered(memory, key))))
    if found.crash:
        with contextlib.suppress(OSError):  # a full disk must not cost the answer
            remember_crash(memory, key, found.crash)
    return found


def _ask(question: Question) -> Survey:
    command, variables = python_module("phi4local.backends.surveyor"), {**ENGINE_VARIABLES, **environment()}
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryDirectory(prefix="phi4local-", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=variables, **own_group()) as child,
    ):
        try:
            data = pickle.dumps(replace(question, folder=Path(folder)))
            out, said = child.communicate(data, timeout=_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            raise BackendError("The engine did not answer", hint=REINSTALL) from None
        finally:
            end_group(child)
    if child.returncode:
        reason = said.decode(errors="replace").strip().splitlines()
        raise BackendError(f"The engine failed: {reason[-1] if reason else cause(child.returncode)}", hint=REINSTALL)
    answer = pickle.loads(out)
    assert isinstance(answer, Survey)
    return answer
