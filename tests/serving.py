"""Small Textual apps, and a server that shows one in browsers, in a process of its own."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import psutil

ROOT = Path(__file__).parents[1]
SECONDS = 20.0

ECHO = """
from textual.app import App
from textual.widgets import Input, Label

class Echo(App):
    def compose(self):
        yield Input()
        yield Label("ready")

    def on_input_submitted(self, event):
        self.query_one(Label).update(f"you said: {event.value}")
        if event.value == "quit":
            self.exit()
        if event.value == "crash":
            raise RuntimeError("as you wish")
        if event.value == "link":
            self.open_url("http://127.0.0.1:9/linked")

Echo().run()
"""
# Neither asked nor told does it end, it fills its output, and it has a child that knows of no end either.
STUBBORN = """
import signal, subprocess, time
from textual.app import App

subprocess.Popen(["sleep", "1000"])

class Stubborn(App):
    def on_mount(self):
        self.call_later(self.hang)

    def hang(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        while True:
            self._driver.write("x" * 65536)
            time.sleep(0.01)

Stubborn().run()
"""
FAILING = """
import sys
sys.exit("error: There is no model \\x1b[31m`nobody`")
"""
_SERVE = """
import sys
from ui.web import serve
serve([sys.executable, sys.argv[1]], announce=lambda line: print(line, file=sys.stderr, flush=True), title="echo")
"""


class Serving:
    """`with Serving(ECHO, tmp_path) as server`: its address, port and token; its app processes."""

    def __init__(self, app: str, folder: Path) -> None:
        script = folder / "app.py"
        script.write_text(app)
        command = [sys.executable, "-c", _SERVE, str(script)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)
        assert self.process.stderr is not None
        self.address = self.process.stderr.readline().strip()
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]{43})", self.address)
        assert match, self.address
        self.port, self.token = int(match[1]), match[2]

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.communicate(timeout=SECONDS)

    def apps(self) -> list[psutil.Process]:
        """The app processes that run now."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def ask(
        self, path: str, *, hosts: Iterable[str] | None = None, method: str = "GET", **headers: str
    ) -> tuple[int, http.client.HTTPMessage, str]:
        """Send one request with these Host lines and headers, `_` standing for `-`: status, headers and text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for host in [f"127.0.0.1:{self.port}"] if hosts is None else hosts:
            connection.putheader("Host", host)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value.encode())
        connection.endheaders()
        response = connection.getresponse()
        text = "" if response.status == 101 else response.read().decode(errors="replace")
        connection.close()
        return response.status, response.headers, text

    def interrupt(self, number: int = signal.SIGINT) -> tuple[str, str]:
        """End the server as Ctrl-C does; what it printed since its address."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=SECONDS)


def wait_gone(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Return once all of these have ended."""
    end = time.monotonic() + seconds
    for process in processes:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, process
            time.sleep(0.02)
