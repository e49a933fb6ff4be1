"""The sizes and habits that keep the program readable."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from phi4local.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = ("phi4local", "quant", "hardware", "ui")
FILE_LINES, FUNCTION_LINES = 400, 50


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(*PACKAGES, "bench", "tools", "tests"), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_nothing_is_called_utils() -> None:
    assert [path for path in sources(*PACKAGES) if re.search(r"util|helper|manager|common", path.stem)] == []


def test_the_data_stays_small() -> None:
    files = [path for path in (ROOT / "phi4local" / "data").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 9_000_000


def test_hints_name_commands_that_exist() -> None:
    texts = [path.read_text() for path in sources(*PACKAGES)]
    named = {word for text in texts for word in re.findall(r"`phi4local ([a-z]+)", text)}
    assert named <= COMMANDS.keys()
    assert "quantize" in named
