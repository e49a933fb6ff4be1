"""The seam between a loaded model and everything that talks to it.

An `Engine` is a loaded model; a `Session` is one timeline of tokens. The caller always gives the whole conversation;
the session finds the common prefix with what it has already read and never reads that again. `stream` yields `Chunk`s
and ends with exactly one `Finish`; closing the generator cancels within one token. Knows no runtime, file or screen.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from phi4local.conversation import Kind, Message
from phi4local.fit import Memory, Where

DEFAULT_CONTEXT_TOKENS = 8192  # or what the model was trained for, where that is less

FinishReason = Literal["stop", "length", "cancelled", "error"]
ChunkKind = Kind


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How to choose tokens. Temperature 0 is greedy; `max_tokens` None: until the end token or the context's end."""

    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 0.95
    seed: int = 0
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the answer, whole characters only; `thinking` is what stands between <think> and </think>."""

    text: str
    kind: ChunkKind = "answer"


@dataclass(frozen=True, slots=True)
class Stats:
    """What the answer cost. `prompt_tokens` counts the whole prompt, `cached_tokens` the part not read again."""

    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    prompt_tps: float
    generation_tps: float
    ttft_seconds: float


@dataclass(frozen=True, slots=True)
class Finish:
    """The last item of every stream."""

    reason: FinishReason
    stats: Stats


@dataclass(frozen=True, slots=True)
class Load:
    """How a model was loaded: where it went, and what that was said to take and took, by device.

    Both are of a context of `context_tokens`, the one that was opened. `resident_bytes` is by how much the engine's
    process grew, `cards_bytes` by how much the cards' free memory shrank; None: the system does not tell.
    `mapped_bytes` of the weights are pages of the file, which count as free memory.
    """

    where: Where
    gpu_layers: int
    layers: int
    kv_type: str
    context_tokens: int
    predicted: Memory
    took: Memory
    resident_bytes: int | None = None
    cards_bytes: int | None = None
    mapped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What was loaded and how. `notes` are sentences for the user (a safe retry, a rope choice)."""

    backend: str
    description: str
    context_tokens: int
    safe_mode: bool
    load: Load
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """How long it took to read a prompt, and to generate after it."""

    prompt_seconds: float
    generation_seconds: float


class Session(Protocol):
    """One mutable timeline."""

    def stream(self, messages: Sequence[Message], options: GenerationOptions) -> Generator[Chunk | Finish]: ...

    def cancel(self) -> None:
        """From any thread: this session's answer ends with Finish("cancelled"), also while it waits or reads."""

    def save(self, path: Path) -> int:
        """Keep what was read in a file, so that a later session need not read it again; how many bytes that took.

        0 where nothing of this session is in the engine any more, or where the file would be too large for the disk.
        What fails leaves the file as it was (UsageError, InsufficientResources, BackendError).
        """

    def restore(self, path: Path) -> int:
        """Take over what `save` wrote; how many tokens. The next answer does not read them again.

        0 where there is no such file, or where it is damaged or of another model, context, setting or engine; then it
        is removed. (UsageError, BackendError for an engine that is closed or does not start)
        """

    def close(self) -> None: ...


class Engine(Protocol):
    """A loaded model. All of it may be asked from any thread."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def alive(self) -> bool:
        """Whether the engine's process runs. It may die at any moment; the next question then starts it anew.

        Cheap, and waits for nobody.
        """

    def open_session(self) -> Session: ...

    def count(self, messages: Sequence[Message]) -> int:
        """How many tokens the prompt of this conversation takes: what `Stats.prompt_tokens` would be; 0 without any.

        Waits until the answer that is being given has ended. Reads nothing, so the next answer finds what it would
        have found. More than the context holds is no error here. (UsageError, FormatError, BackendError)
        """

    def time_tokens(self, prompt_tokens: int, generation_tokens: int) -> Timing:
        """Read a prompt of any tokens and generate after it, whatever comes."""

    def close(self) -> None:
        """End the engine at once, whatever it does: who is being answered gets a BackendError, who asks a UsageError.

        Its memory may be free a moment later; the next engine waits for that before it loads.
        """
