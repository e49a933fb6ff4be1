"""Whether a model that is open could have a longer context on this machine. Nothing is loaded for the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hardware.probe import probe_memory
from phi4local.actions.chat import Opened, given_back
from phi4local.actions.fit import main_room
from phi4local.actions.fit_mlx import mlx_room_bytes
from phi4local.actions.model_files import is_folder, read_files
from phi4local.backends.mlx_folder import needed, read_folder
from phi4local.backends.survey import Question, Surveyed, Wanted, survey
from phi4local.errors import Phi4LocalError
from phi4local.settings import state_folder
from phi4local.units import memory


@dataclass(frozen=True, slots=True)
class Longer:
    """A context that fits, and what the whole model then takes; `slower`: fewer of its layers stay on the cards."""

    context_tokens: int
    total_bytes: int
    slower: bool = False


def longer_context(opened: Opened) -> Longer | str:
    """The largest of twice, four times, eight times ... the present context that fits once the engine is closed.

    The longest that fits without moving a layer off the cards comes before a longer one that is slow. Where there is
    none: the reason, in a sentence; also where the file or the engine cannot be asked.
    """
    try:
        return _longer(opened, read_files(opened.located.path).trained_tokens)
    except Phi4LocalError as error:
        return error.message


def _longer(opened: Opened, trained: int) -> Longer | str:
    info = opened.engine.info
    sizes = doubled(info.context_tokens, trained)
    if not sizes:
        return f"The model was trained for a context of {trained:,} tokens and has it already"
    if is_folder(opened.located.path):
        return _longer_folder(opened, sizes)
    most = _asked(opened, info.context_tokens).most_context
    wanted = max((size for size in sizes if size <= most), default=sizes[0])
    place = _asked(opened, wanted).placement
    if place.short_bytes:
        return _too_long(wanted, place.total.total_bytes, place.short_bytes)
    return Longer(wanted, place.total.total_bytes, slower=place.gpu_layers < info.load.gpu_layers)


def _longer_folder(opened: Opened, sizes: Sequence[int]) -> Longer | str:
    """The same by arithmetic: MLX has all layers in one place."""
    folder, kv_type = read_folder(opened.located.path), opened.engine.info.load.kv_type
    room = mlx_room_bytes() + sum(given_back(opened.engine).values())
    takes = {size: needed(folder, kv_type, size).total_bytes for size in sizes}
    fitting = [size for size in sizes if takes[size] <= room]
    if fitting:
        return Longer(fitting[-1], takes[fitting[-1]])
    return _too_long(sizes[0], takes[sizes[0]], takes[sizes[0]] - room)


def _too_long(wanted: int, takes: int, short: int) -> str:
    return f"A context of {wanted:,} tokens needs {memory(takes)}, {memory(short)} more than there is"


def doubled(present: int, trained: int) -> list[int]:
    """Twice the context and its doubles, up to what the model was trained for; the last step may be shorter."""
    sizes = []
    while 0 < present < trained:
        present = min(2 * present, trained)
        sizes.append(present)
    return sizes


def _asked(opened: Opened, context_tokens: int) -> Surveyed:
    """Where the file goes with that context (Phi4LocalError)."""
    located, load = opened.located, opened.engine.info.load
    wanted = (Wanted(located.build, path=located.path),)
    main = main_room(probe_memory())
    question = Question(None, wanted, main, context_tokens, load.kv_type, given_back(opened.engine))
    found = survey(question, state_folder())
    for _, error in found.problems:
        raise error
    return found.builds[0]
