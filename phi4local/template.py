"""A model's own chat template, run as what it is: a foreign program.

It runs in Jinja's sandbox with bounded output, operators and memory. Time is not bounded here: whoever calls this must
be able to end the process. Every failure is a Phi4LocalError. Knows no engine.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from phi4local.errors import FormatError, Phi4LocalError, UsageError

_OUTPUT_BYTES = 1 << 20  # what a template may add to four times the conversation
_OPERAND_BYTES = 1 << 20  # the largest result of `*`, `**` and `%`
_MEMORY_BYTES = 512 << 20
_MESSAGE_LENGTH = 200


class ChatTemplate:
    """The Jinja `source` of the model called `name`; compiled at the first `render`, under the same limits."""

    def __init__(self, source: str, *, name: str, bos: str = "", eos: str = "") -> None:
        self.source = source
        self._name = name
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._environment = _environment()
        self._compiled: Template | None = None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt up to the start of the next answer (FormatError; UsageError when the template refuses)."""
        limit = _OUTPUT_BYTES + 4 * sum(len(message["content"]) for message in messages)
        variables = {"messages": messages, "add_generation_prompt": True, "tools": None, "documents": None}
        try:
            with bounded_memory(_MEMORY_BYTES):
                self._compiled = self._compiled or self._environment.from_string(self.source)
                return "".join(_bounded(self._compiled.generate(**variables, **self._tokens), limit))
        except _Refused as refusal:
            raise UsageError(f"The chat template refuses this conversation: {_plain(refusal)}") from None
        except Exception as error:  # noqa: BLE001  a foreign program may end with any exception
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> Phi4LocalError:
        what = next(text for kind, text in _FAILURES if isinstance(error, kind))
        detail = _plain(error) or type(error).__name__
        return FormatError(
            f"The chat template of `{self._name}` {what}: {detail}",
            hint="Get another build of the model",
        )


class _Refused(Exception):
    """The template called raise_exception."""


_FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (TemplateSyntaxError, "is not valid Jinja"),
    (SecurityError, "is not safe to run"),
    (MemoryError, "needs too much memory"),
    (RecursionError, "calls itself without end"),
    (TemplateError, "does not work"),
    (Exception, "failed"),
)


def _bounded(parts: Iterator[str], limit: int) -> Iterator[str]:
    size = 0
    for part in parts:
        size += len(part)
        if size > limit:
            raise SecurityError(f"its output passes {limit} characters")
        yield part


def _plain(error: Exception) -> str:
    """An error's text for a terminal: one short line without control characters."""
    text = " ".join(str(error).split())[:_MESSAGE_LENGTH]
    return "".join(character if character.isprintable() else "?" for character in text)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _result_bytes(operator, left, right) > _OPERAND_BYTES:
            raise SecurityError(f"the result of `{operator}` would be too large")
        return super().call_binop(context, operator, left, right)


def _result_bytes(operator: str, left: Any, right: Any) -> int:
    """How large the result of an operator can become; 0 when it cannot become large."""
    whole = isinstance(left, int), isinstance(right, int)
    if operator == "%":
        return sum(int(width) for width in re.findall(r"\d+", left)) if isinstance(left, str) else 0
    if operator == "**":
        return abs(left).bit_length() * max(0, right) // 8 if all(whole) else 0
    if all(whole):
        return int(left.bit_length() + right.bit_length()) // 8
    sized, times = (right, left) if whole[0] else (left, right)
    return len(sized) * max(0, times) if any(whole) and hasattr(sized, "__len__") else 0


def _environment() -> _Sandbox:
    """The sandbox with the names that the ecosystem's chat templates expect, and no others."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    for name in ("lipsum", "cycler", "joiner"):
        del environment.globals[name]
    environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
    environment.filters["tojson"] = _to_json
    return environment


def _raise(message: object) -> NoReturn:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form[:_MESSAGE_LENGTH])


def _to_json(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """Plain JSON: Jinja's own filter would escape for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys)


@contextlib.contextmanager
def bounded_memory(extra_bytes: int) -> Iterator[None]:
    """Let this process map only `extra_bytes` more than now; without effect where the system cannot do it."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    caps = [limit for limit in before if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([mapped + extra_bytes, *caps]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
