"""`phi4local chat`: a conversation in the terminal, or one answer with `-p` or piped input."""

from __future__ import annotations

import argparse
import os
import select
import stat
import sys
from typing import NoReturn

from phi4local.cli import output
from phi4local.cli.arguments import add_context, tokens
from phi4local.errors import UsageError

_INPUT_LIMIT = 16_000_000
_SILENCE_SECONDS = 0.2  # how long a pipe beside `-p` may say nothing before it counts as empty


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="NAME|PATH",
        help="a build, a .gguf file or an MLX folder (default: the newest build)",
    )
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="ask this, print the answer and exit")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_context(parser)
    parser.add_argument("--max-tokens", type=tokens, metavar="N", help="longest answer (default: to its end)")
    parser.add_argument("--temperature", type=_temperature, metavar="X", help="0 is greedy (default: the model's own)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the sampling (default: 0)")
    parser.add_argument("--plain", action="store_true", help="line by line, without a screen")
    parser.add_argument("--web", action="store_true", help="the same in a browser on this machine")
    parser.add_argument("--json", action="store_true", help="with -p: print one JSON value")


def run(args: argparse.Namespace) -> int:
    """Answer one prompt, or converse."""
    if "TEXTUAL_DRIVER" in os.environ:  # in a browser: standard input belongs to the page
        _open_screen(args)
    if args.web:
        return _serve(args)
    prompt = _joined(args.prompt, _piped_input(wait=args.prompt is None))
    if args.json and prompt is None:
        raise UsageError("--json needs a prompt", hint='phi4local chat -p "What is 2 + 2?" --json')
    if prompt is not None and not prompt.strip():
        raise UsageError("The prompt is empty", hint='phi4local chat -p "What is 2 + 2?"')
    if prompt is None and not args.plain and _has_screen():
        _open_screen(args)
    from phi4local.cli import lines  # with all that the engine needs, which a screen is faster without

    if prompt is None:
        lines.converse(args)
    else:
        lines.answer(args, prompt)
    return 0


def _has_screen() -> bool:
    """Whether a screen can be drawn on: not through a pipe, nor on a terminal that can only add lines."""
    return all(one.isatty() for one in (sys.stdin, sys.stdout, sys.stderr)) and os.environ.get("TERM", "dumb") != "dumb"


def _open_screen(args: argparse.Namespace) -> NoReturn:
    if args.model:
        from phi4local.actions.lookup import check_name

        check_name(args.model)
    from ui.app import run as run_app
    from ui.told import ModelChoice

    names = ("temperature", "seed", "max_tokens")
    sampling = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    code = run_app(ModelChoice(args.model, args.context, args.kv), system=args.system or "", sampling=sampling)
    # Not by the interpreter's end, which waits for the pools of threads of work that was left in the middle.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(args: argparse.Namespace) -> int:
    """Serve the screen to browsers of this machine; each tab is a program of its own."""
    if args.prompt is not None or args.json or args.plain:
        raise UsageError("`--web` is a screen: it takes no prompt", hint="phi4local chat --web")
    if args.model:
        from phi4local.actions.lookup import check_name

        check_name(args.model)
    from ui.web import serve

    given = {name: getattr(args, name) for name in ("system", "context", "kv", "max_tokens", "temperature", "seed")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    model = ["--", args.model] if args.model else []
    command = [sys.executable, "-P", "-m", "phi4local", "chat", *options, *model]
    serve(command, announce=output.say, title="phi4local")
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


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a temperature between 0 and 10")
    return value
