"""An engine that says what a test wants it to say, behind the real interfaces."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

from phi4local.actions.chat import Located, Opened
from phi4local.conversation import Message, ThinkSplitter
from phi4local.engine import Chunk, EngineInfo, Finish, GenerationOptions, Load, Stats, Timing
from phi4local.errors import BackendError
from phi4local.fit import Use
from ui.told import ModelChoice

Script = Callable[[Sequence[Message]], Iterable[str]]


def echo(messages: Sequence[Message]) -> Iterable[str]:
    """Say the question again, word by word."""
    return (f"{word} " for word in messages[-1].content.split())


class FakeEngine:
    """Says what `script` yields, a piece every `seconds`; a word is a token. `die` is what SIGKILL does."""

    def __init__(self, script: Script = echo, *, seconds: float = 0.0, context_tokens: int = 4096) -> None:
        self.script = script
        self.seconds = seconds
        self.alive = True
        self.closed = False
        self.asked: list[list[Message]] = []
        self.options: list[GenerationOptions] = []
        use = Use(weights_bytes=50 << 20, kv_bytes=3 << 20, compute_bytes=1 << 20)
        load = Load("cpu", 0, 4, "f16", context_tokens, {"Host": use}, {"Host": use})
        self.info = EngineInfo("llama.cpp", "a fake of 1 B", context_tokens, False, load)

    def open_session(self) -> FakeSession:
        return FakeSession(self)

    def count(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) + 4 for message in messages)

    def time_tokens(self, prompt_tokens: int, generation_tokens: int) -> Timing:
        return Timing(0.01 * prompt_tokens, 0.01 * generation_tokens)

    def die(self) -> None:
        self.alive = False

    def close(self) -> None:
        self.closed = True


class FakeSession:
    """One timeline; keeps nothing on disk."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._cancelled = threading.Event()

    def stream(self, messages: Sequence[Message], options: GenerationOptions) -> Generator[Chunk | Finish]:
        self._cancelled.clear()
        return self._stream(list(messages), options)

    def _stream(self, messages: list[Message], options: GenerationOptions) -> Generator[Chunk | Finish]:
        engine = self._engine
        engine.alive = True
        engine.asked.append(messages)
        engine.options.append(options)
        splitter, start, count = ThinkSplitter(), time.perf_counter(), 0
        for piece in engine.script(messages):
            due = start + count * engine.seconds
            while time.perf_counter() < due and not self._cancelled.is_set() and engine.alive:
                time.sleep(min(0.002, max(0.0, due - time.perf_counter())))
            if not engine.alive:
                raise BackendError(
                    "The engine's process ended with SIGKILL", hint="Ask again: it starts anew by itself"
                )
            if engine.closed or self._cancelled.is_set():
                break
            count += 1
            yield from (Chunk(text, kind) for kind, text in splitter.feed(piece))
        yield from (Chunk(text, kind) for kind, text in splitter.end())
        seconds = max(1e-6, time.perf_counter() - start)
        stats = Stats(engine.count(messages), 0, count, 100.0, count / seconds, 0.01)
        yield Finish("cancelled" if self._cancelled.is_set() else "stop", stats)

    def cancel(self) -> None:
        self._cancelled.set()

    def save(self, path: Path) -> int:
        return 0

    def restore(self, path: Path) -> int:
        return 0

    def close(self) -> None:
        pass


def opened(engine: FakeEngine, label: str = "phi-4:Q4_K_M") -> Opened:
    """A model that was loaded without a file."""
    name, _, build = label.partition(":")
    return Opened(Located(label, name, build, Path(label)), engine, GenerationOptions())


def loads(engine: FakeEngine, label: str = "phi-4:Q4_K_M") -> Callable[..., Opened]:
    """How a screen comes by that engine."""

    def load(choice: ModelChoice, before: Opened | None, leave: Callable[[], None]) -> Opened:
        leave()
        return opened(engine, choice.name or label)

    return load
