"""The process that answers a `Question`: run as a module, with the pickled question in and the pickled survey out.

A build that is not here is asked about through a skeleton with the types that its tensors would have, one that is
here by its file.
"""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path

from phi4local.backends.ask import read_facts
from phi4local.backends.asked import Log, build_facts, tensor_types
from phi4local.backends.calibrate import measure
from phi4local.backends.devices import cards
from phi4local.backends.load_settings import LoadSettings, wanted_context
from phi4local.backends.memory import Inquiry
from phi4local.backends.process import CRASHES, cause
from phi4local.backends.survey import Question, Survey, Surveyed, Wanted
from phi4local.errors import Phi4LocalError
from phi4local.fit import HOST, Room, most_context, place, rooms
from phi4local.speed import Rates, work_of
from quant.config import Config
from quant.ggml import BUILDS, TYPES
from quant.mix import published_types
from quant.skeleton import Types, source_types, stored_bytes, tensor_bytes, tensor_shapes, write_skeleton
from quant.sound import read_model_header

Tensors = dict[str, tuple[str, int]]  # matrices: name -> (type, bytes)


def answer(question: Question, log: Log) -> Survey:
    """Measure if that is wanted, then ask about each build."""
    crash, rates = "", None
    if question.calibrate:
        rates, crash = _measured(question.folder, question.safe_mode)
        question = replace(question, safe_mode=question.safe_mode or bool(crash))
    engine = read_facts(build_facts())
    room = rooms(question.main, [card.facts for card in cards()], question.replaced)
    files = _Files(question.config, question.folder, log)
    surveyed: list[Surveyed] = []
    problems: list[tuple[str, Phi4LocalError]] = []
    for wanted in question.builds:
        try:
            surveyed.append(_survey(wanted, question, room, files))
        except Phi4LocalError as error:
            problems.append((wanted.build, error))
    return Survey(engine, tuple(room), tuple(surveyed), tuple(problems), rates, crash)


def _measured(folder: Path, safe_mode: bool) -> tuple[Rates | None, str]:
    """This processor's rates, and the crash that came before them; each attempt in a fork, before llama.cpp is used.

    Not on macOS: Metal does not survive a fork, and its processors have none of the instructions that crash.
    """
    if sys.platform == "darwin":
        return measure(folder, safe_mode=safe_mode), ""
    found, crash = _forked(folder, safe_mode=safe_mode)
    if crash in CRASHES and not safe_mode:
        found, again = _forked(folder, safe_mode=True)
        return found, "" if again else crash
    return found, ""


def _forked(folder: Path, *, safe_mode: bool) -> tuple[Rates | None, str]:
    """The rates, or what a process died of that measured them."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            with os.fdopen(writer, "wb") as stream:
                pickle.dump(measure(folder, safe_mode=safe_mode), stream)
        except BaseException:  # noqa: BLE001  the end of the fork, not of the exception
            sys.excepthook(*sys.exc_info())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        data = stream.read()
    _, status = os.waitpid(child, 0)
    rates: Rates | None = pickle.loads(data) if data else None  # from our own fork
    return rates, cause(-os.WTERMSIG(status)) if os.WIFSIGNALED(status) else ""


def _survey(wanted: Wanted, question: Question, room: list[Room], files: _Files) -> Surveyed:
    path, size_bytes, tensors = files.stored(wanted.path) if wanted.path else files.skeleton(wanted)
    split = tuple(float(one.usable_bytes) for one in room if one.device != HOST)
    settings = LoadSettings(
        str(path), question.context, kv_type=question.kv_type, safe_mode=question.safe_mode, split=split
    )
    inquiry = Inquiry(settings, files.log.errors)
    try:
        context = wanted_context(settings, inquiry.trained_tokens)
        placement = place(inquiry, inquiry.layers, context, room)
        most = {"none": 0, "split": context}.get(placement.where)  # more context would move layers off the card
        if most is None:
            most = most_context(inquiry, placement, inquiry.trained_tokens, room, known=context)
        work = work_of(tensors, inquiry.layers, placement.gpu_layers)
        return Surveyed(wanted.build, size_bytes, context, inquiry.trained_tokens, placement, most, work)
    finally:
        inquiry.close()


class _Files:
    """What is asked about: a file, the bytes of its tensors, and its matrices."""

    def __init__(self, config: Config | None, folder: Path, log: Log) -> None:
        self._config = config
        self._source = folder / "source.gguf"
        self._path = folder / "build.gguf"
        self.log = log

    def stored(self, path: Path) -> tuple[Path, int, Tensors]:
        """A build that is here."""
        tensors = read_model_header(path).tensors
        matrices = {tensor.name: (tensor.type.name, tensor.size_bytes) for tensor in tensors if len(tensor.shape) > 1}
        return path, sum(tensor.size_bytes for tensor in tensors), matrices

    def skeleton(self, wanted: Wanted) -> tuple[Path, int, Tensors]:
        """A build that is not: a file without weights that is in everything else the build."""
        config = self._config
        assert config is not None
        shapes = tensor_shapes(config)
        types = self._types(config, source_types(shapes), wanted)
        write_skeleton(self._path, config, wanted.build, types)
        matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
        tensors = {name: (types[name].name, stored_bytes(shape, types[name])) for name, shape in matrices.items()}
        return self._path, tensor_bytes(shapes, types), tensors

    def _types(self, config: Config, types: Types, wanted: Wanted) -> Types:
        if wanted.build == "BF16":
            return types
        if not self._source.exists():
            write_skeleton(self._source, config, "BF16", types)
        named = tensor_types(self._source, BUILDS[wanted.build], self.log)
        types = {name: TYPES[kind] for name, kind in named.items()}
        return published_types(wanted.build, types) if wanted.published else types


def main() -> None:
    """Answer the question on standard input; nothing else is printed where the answer goes."""
    out = os.dup(1)
    os.dup2(2, 1)
    result = answer(pickle.load(sys.stdin.buffer), Log())
    with os.fdopen(out, "wb") as stream:
        pickle.dump(result, stream)


if __name__ == "__main__":
    main()
