"""Answers without a screen: one to a prompt, or a conversation line by line. Used by `phi4local chat`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import sys

from phi4local.actions.chat import Opened, check_room, locate, open_located, open_model
from phi4local.cli import output
from phi4local.cli.load import load_json
from phi4local.conversation import Message
from phi4local.engine import Chunk, Finish, GenerationOptions, Session, Stats
from phi4local.errors import Phi4LocalError
from phi4local.fit import total
from phi4local.printing import printable_lines
from phi4local.units import memory
from ui.interrupts import cancelling
from ui.lines import Lines


def answer(args: argparse.Namespace, prompt: str) -> None:
    """Print the answer to one prompt."""
    opened = _open(args)
    with contextlib.closing(opened.engine):
        messages = [Message("system", args.system)] if args.system else []
        _answer(opened, [*messages, Message("user", prompt)], _options(opened.options, args), as_json=args.json)


def converse(args: argparse.Namespace) -> None:
    """Ask and answer until the input ends."""
    _Conversation(_open(args), args).run()


def _open(args: argparse.Namespace) -> Opened:
    return open_model(args.model, context_tokens=args.context, kv_type=args.kv)


def _options(defaults: GenerationOptions, args: argparse.Namespace) -> GenerationOptions:
    temperature = defaults.temperature if args.temperature is None else args.temperature
    return dataclasses.replace(defaults, temperature=temperature, seed=args.seed or 0, max_tokens=args.max_tokens)


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
