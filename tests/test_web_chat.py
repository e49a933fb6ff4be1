"""`chat --web` as somebody uses it: the real program, a real model, a real browser."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from phi4local.history import History
from phi4local.settings import history_file, nano_folder
from tests import chromium
from tests.chromium import Chromium
from tests.running import json_of, phi4local
from tests.serving import wait_gone

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="no chromium, chromium-browser or google-chrome")


def test_a_question_is_answered_in_a_browser(home: Path, tmp_path: Path) -> None:
    json_of(phi4local("quantize", nano_folder(), "--to", "BF16", "--json"))
    command = [sys.executable, "-m", "phi4local", "chat", "--web", "--context=1024", "phi4-nano"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stderr
            address = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", server.stderr.readline())
            assert address
            asyncio.run(talk(address[0], tmp_path))
            children = psutil.Process(server.pid).children(recursive=True)
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 0
            wait_gone(children, 10)
        finally:
            server.kill()
    history = History(history_file())
    [summary] = history.chats()
    history.close()
    assert (summary.start, summary.messages) == ("What is 17 + 25?", 2)


async def talk(address: str, folder: Path) -> None:
    async with Chromium(folder / "profile") as browser:
        await browser.open(address)
        await browser.wait_for("Ask something")
        await browser.type("What is 17 + 25?")
        await browser.press("Enter")
        await browser.wait_for("17 + 25 = 42")
        assert "1,024" in await browser.wait_for("ready")
        await browser.press("F1")
        await browser.wait_for("All keys")
        assert browser.complaints() == []


def test_a_wrong_name_is_said_at_once(home: Path) -> None:
    result = phi4local("chat", "--web", "phi4-nothing")
    assert result.returncode == 3
    assert "phi4-nothing" in result.stderr


def test_a_prompt_needs_no_browser(home: Path) -> None:
    assert phi4local("chat", "--web", "-p", "hello").returncode == 2
