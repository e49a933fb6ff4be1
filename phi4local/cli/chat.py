"""`phi4local chat`: a conversation in the terminal, or one answer with `-p` or piped input."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import select
import stat
import sys

from phi4local.actions.chat import Opened, check_room, locate, open_located, open_model
from phi4local.cli import output
from phi4local.cli.arguments import add_context, tokens
from phi4local.cli.load import load_json
from phi4local.conversation import Message
from phi4local.engine import Chunk, Finish, GenerationOptions, Session, Stats
from phi4local.errors import Phi4LocalError, UsageError
from phi4local.fit import total
from phi4local.printing import printable_lines
from phi4local.units import memory
from ui.interrupts import cancelling
from ui.lines import Lines

_INPUT_LIMIT = 16_000_000
_SILENCE_SECONDS = 0.2  # how long a pipe beside `-p` may say nothing before it counts as empty


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "model", nargs="?", metavar="NAME|PATH", help="a build or a .gguf file (default: the newest build)"
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="ask this, print the answer and exit")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_context(parser)
    parser.add_argument("--max-tokens", type=tokens, metavar="N", help="longest answer (default: to its end)")
    parser.add_argument("--temperature", type=_temperature, metavar="X", help="0 is greedy (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default: 0)")
    parser.add_argument("--json", action="store_true", help="with -p: print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Answer one prompt, or converse."""
    prompt = _joined(args.prompt, _piped_input(wait=args.prompt is None))
    if args.json and prompt is None:
        raise UsageError("--json needs a prompt", hint='phi4local chat -p "What is 2 + 2?" --json')
    if prompt is not None and not prompt.strip():
        raise UsageError("The prompt is empty", hint='phi4local chat -p "What is 2 + 2?"')
    opened = open_model(args.model, context_tokens=args.context, kv_type=args.kv)
    if prompt is None:
        _Conversation(opened, args).run()
        return 0
    with contextlib.closing(opened.engine):
        messages = [Message("system", args.system)] if args.system else []
        _answer(opened, [*messages, Message("user", prompt)], _options(opened.options, args), as_json=args.json)
    return 0


def _joined(prompt: str | None, piped: str | None) -> str | None:
    """The prompt, and what was piped in as its material."""
    return f"{prompt}\n\n{piped}" if prompt is not None and piped else piped if prompt is None else prompt


def _piped_input(*, wait: bool) -> str | None:
    """What a pipe or a file holds on standard input; without `wait` a pipe that stays silent is no input."""
    if sys.stdin.isatty():
        return None
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not wait and not (stat.S_ISREG(mode) or (stat.S_ISFIFO(mode) and _speaks_soon())):
        return None
    data = sys.stdin.buffer.read(_INPUT_LIMIT + 1)
    if len(data) > _INPUT_LIMIT:
        raise UsageError(f"The input is larger than {_INPUT_LIMIT} bytes", hint="Give a part of it")
    return data.decode("utf-8", errors="replace")


def _speaks_soon() -> bool:
    return bool(select.select([sys.stdin], [], [], _SILENCE_SECONDS)[0])


def _options(defaults: GenerationOptions, args: argparse.Namespace) -> GenerationOptions:
    temperature = defaults.temperature if args.temperature is None else args.temperature
    return dataclasses.replace(defaults, temperature=temperature, seed=args.seed, max_tokens=args.max_tokens)


class _Conversation:
    """A conversation whose model can be changed."""

    def __init__(self, opened: Opened, args: argparse.Namespace) -> None:
        self._opened = opened
        self._args = args
        self._room = {"context_tokens": args.context, "kv_type": args.kv}

    def run(self) -> None:
        """Converse until the input ends."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() its line editing and history
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # a byte that is no UTF-8 must not end the chat
        dim = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        try:
            session, options = self._begin()
            Lines(session, options, self._args.system, dim=dim, switch=self._switch).run()
        finally:
            self._opened.engine.close()

    def _begin(self) -> tuple[Session, GenerationOptions]:
        _say_load(self._opened)
        _say_notes(self._opened)
        return self._opened.engine.open_session(), _options(self._opened.options, self._args)

    def _switch(self, name: str) -> tuple[Session, GenerationOptions]:
        """Open another model in the place of this one, once it is certain that there is one and room for it."""
        before = self._opened
        located = locate(name, replaced=before.engine, **self._room)
        check_room(located, before.engine, **self._room)
        before.engine.close()
        try:
            self._opened = open_located(located, **self._room)
        except Phi4LocalError as error:
            output.say(f"error: {error.message}; going on with {before.label}")
            self._opened = open_located(before.located, **self._room)
        return self._begin()


def _answer(opened: Opened, messages: list[Message], options: GenerationOptions, *, as_json: bool) -> None:
    """Print one answer; thinking goes to stderr, so that stdout is the answer alone.

    An engine that fails in the middle ends the JSON with finish_reason `error`, and the program with the error.
    """
    if not as_json:
        _say_load(opened)
    said: dict[str, list[str]] = {"answer": [], "thinking": []}
    finish, failure = Finish("error", Stats(0, 0, 0, 0.0, 0.0, 0.0)), None
    session = opened.engine.open_session()
    try:
        with contextlib.closing(session.stream(messages, options)) as stream, cancelling(session):
            for item in stream:
                if isinstance(item, Finish):
                    finish = item
                    continue
                said[item.kind].append(item.text)
                if not as_json:
                    _show(item)
    except Phi4LocalError as error:
        failure = error
    text = "".join(said["answer"])
    if as_json:
        _end_json(opened, text, "".join(said["thinking"]), finish, failure)
    elif text or not failure:
        sys.stdout.write("\n")
    sys.stdout.flush()
    _say_notes(opened)
    _end(finish, failure, begun=bool(text), as_json=as_json)


def _end(finish: Finish, failure: Phi4LocalError | None, *, begun: bool, as_json: bool) -> None:
    """How the program ends after its answer."""
    if failure and begun:
        output.say("The answer is incomplete")
    if failure:
        raise failure
    if finish.reason == "cancelled":
        raise KeyboardInterrupt
    if finish.reason == "length" and not as_json:
        output.say("The answer was cut off: the limit or the end of the context is reached")


def _end_json(opened: Opened, text: str, thinking: str, finish: Finish, failure: Phi4LocalError | None) -> None:
    """The contract's object; nothing where nothing came before a failure."""
    if text or not failure:
        facts = {"text": text, "finish_reason": finish.reason, "thinking": thinking}
        told = {"error": failure.message} if failure else {}
        load = {"load": load_json(opened.engine.info.load)}
        output.emit_json(facts | dataclasses.asdict(finish.stats) | told | load)


def _show(chunk: Chunk) -> None:
    stream = sys.stderr if chunk.kind == "thinking" else sys.stdout
    stream.write(printable_lines(chunk.text) if stream.isatty() else chunk.text)
    stream.flush()


def _say_load(opened: Opened) -> None:
    """What was chosen and why, and what it took against what was predicted."""
    info = opened.engine.info
    load = info.load
    took, predicted = total(load.took).total_bytes, total(load.predicted).total_bytes
    share = f"{load.gpu_layers} of {load.layers + 1} layers on the card"
    place = {"gpu": "on the card", "split": share}.get(load.where, "in the main memory")
    output.say(
        f"{opened.label} on {info.backend}, {place}, context {info.context_tokens} tokens, KV cache {load.kv_type}: "
        f"takes {memory(took)}, {memory(predicted)} predicted"
    )
    if opened.located.why:
        output.say(opened.located.why)


def _say_notes(opened: Opened) -> None:
    for note in opened.engine.info.notes:
        output.say(f"note: {note}")


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a temperature between 0 and 10")
    return value
