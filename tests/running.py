"""Running the work under test: generators to their end, the command line as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

from phi4local.backends.ask import tensor_types
from quant.convert import Built, convert
from quant.plan import Plan, make_plan
from quant.progress import Progress
from quant.source import read_source

Result = TypeVar("Result")


def finish(work: Generator[Any, None, Result]) -> Result:
    """The value that a generator returns."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: Result = stop.value
            return result


def plan(folder: Path, build: str) -> Plan:
    """The plan of a build."""
    return make_plan(read_source(folder), build, tensor_types)


def start(folder: Path, build: str, target: Path) -> Generator[Progress, None, Built]:
    """A build that has not begun."""
    return convert(plan(folder, build), target, threads=2, certify=lambda _built: None)


def make(folder: Path, build: str, target: Path) -> Built:
    """A finished build."""
    return finish(start(folder, build, target))


def phi4local(
    *arguments: str | Path, stdin: str | None = None, env: dict[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; nothing is read from this process's standard input."""
    return subprocess.run(
        [sys.executable, "-m", "phi4local", *map(str, arguments)],
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | (env or {}),
        check=False,
    )


def json_of(result: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON value that a successful command printed."""
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
