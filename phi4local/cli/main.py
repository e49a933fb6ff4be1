"""The console script: finds the command, runs it, and is the one place where errors are printed."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol

from phi4local import __version__
from phi4local.errors import Phi4LocalError, UsageError
from phi4local.printing import printable

# command -> what it does; its module is phi4local.cli.<command>, imported only when it is asked for
COMMANDS = {
    "demo": "the whole job on the built-in tiny model, offline, in seconds",
    "probe": "this machine, and what the engine can use of it",
    "fit": "which builds of a model this machine can run, and how fast",
    "pull": "get a build: the published file, or made here from the official weights",
    "quantize": "make a build from a folder of official weights",
    "import": "take in a GGUF that is on this disk already, without copying it",
    "chat": "talk to a model in the terminal",
    "bench": "how fast a build is on this machine, against what was predicted",
    "list": "the builds that are here",
    "show": "what a model is for, or what a build is made of",
    "verify": "whether builds are undamaged",
    "remove": "delete a build",
    "prune": "free what no finished build needs",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INTERRUPTED = 130  # what a shell expects after Ctrl-C


class _Command(Protocol):
    def configure(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class Parser(argparse.ArgumentParser):
    """argparse whose complaints end as a `UsageError`."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message[:1].upper() + message[1:], hint=f"`{self.prog} --help` shows how it is used")


def run() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command; the result is the exit code. What was printed has reached its reader before that is known."""
    _open_missing_streams()
    try:
        code = _dispatch(list(arguments))
        sys.stdout.flush()
    except Phi4LocalError as error:
        _print_error(error.message, error.hint)
        code = error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        code = _INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone; nothing is left to say
        code = 1
    except UnicodeEncodeError as error:
        _print_error(
            f"The output has a character that the encoding {error.encoding} lacks", "Set LANG to a UTF-8 locale"
        )
        code = 1
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        where = error.filename or "standard output"
        _print_error(f"{error.strerror}: `{where}`", "Check the path, its permissions and the free space")
        code = 6 if error.errno in _FULL else 1
    _silence_stdout()
    return code


def _open_missing_streams() -> None:
    """A program may be started with its standard streams closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115  open for good


def _silence_stdout() -> None:
    """Let the interpreter's last flush succeed, when what is left in the buffer can reach nobody."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        arguments = ["chat"]
    name, *rest = arguments
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if name in ("-V", "--version"):
        sys.stdout.write(f"phi4local {__version__}\n")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"Did you mean `phi4local {near[0]}`?" if near else "`phi4local --help` lists the commands"
        raise UsageError(f"No command called `{name}`", hint=hint)
    module = f"{name}_" if keyword.iskeyword(name) else name  # a keyword cannot be a module's name
    command: _Command = importlib.import_module(f"phi4local.cli.{module}")
    parser = Parser(prog=f"phi4local {name}", description=COMMANDS[name], allow_abbrev=False)
    command.configure(parser)
    return command.run(parser.parse_args(rest))


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = "".join(f"  {name:{width}}{text}\n" for name, text in COMMANDS.items())
    return (
        "Microsoft's Phi-4 family on your own machine\n\n"
        f"usage: phi4local [COMMAND] [ARGUMENTS]\n\nWithout a command it opens a chat.\n\ncommands:\n{lines}\n"
        "`phi4local COMMAND --help` shows a command's arguments. Every command takes --json.\n"
        "PHI4LOCAL_HOME is the folder that holds everything the tool keeps.\n"
    )


def _print_error(message: str, hint: str) -> None:
    """The fact and the next command; both may quote what a stranger wrote."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.write(f"error: {printable(message, limit=1000)}\n")
    if hint:
        sys.stderr.write(f"\nhint: {printable(hint, limit=1000)}\n")
