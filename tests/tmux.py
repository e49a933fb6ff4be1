"""A terminal for a test: a program in a window of exact size, typed into and read through tmux.

    with Terminal([sys.executable, "-m", "phi4local"], 80, 24) as terminal:
        terminal.wait_for("Ask something")
        terminal.type("What is 17 + 25?")
        terminal.press("Enter")

Each has a server of its own, which is killed with everything in it at the end. Knows no program of ours.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest

_CALL_SECONDS = 20  # a machine that is busy with something else
_GLANCE_SECONDS = 0.03
_NUMBERS = itertools.count(1)
_OPTIONS = {
    "remain-on-exit": "on",  # for the exit code and the last screen
    "remain-on-exit-format": "",
    "status": "off",  # all lines are the program's
    "default-terminal": "tmux-256color",
    "history-limit": "5000",
}


class Terminal:
    """A window with a program in it; keys are named as tmux does: `Enter`, `C-c`, `C-Up`, `F3`."""

    def __init__(
        self,
        command: Sequence[str | Path],
        width: int = 80,
        height: int = 24,
        *,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        if shutil.which("tmux") is None:
            pytest.skip("tmux is not installed")
        self._server = f"phi4local-test-{os.getpid()}-{next(_NUMBERS)}"
        self._command = [str(part) for part in command]
        self._size = str(width), str(height)
        self._env = env or {}
        self._folder = folder

    def __enter__(self) -> Terminal:
        settings = [part for name, value in _OPTIONS.items() for part in ("set-option", "-g", name, value, ";")]
        width, height = self._size
        where = ("-c", str(self._folder)) if self._folder else ()
        # Variables go by `env`, because tmux has a mind of its own about TERM.
        variables = (f"{name}={value}" for name, value in self._env.items())
        command = ("env", *variables, *self._command)
        try:
            self._tmux("start-server", ";", *settings, "new-session", "-x", width, "-y", height, "-d", *where, *command)
            self.pid, self._server_pid = int(self.fact("pane_pid")), int(self.fact("pid"))
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def type(self, text: str) -> None:
        """Type a text; a newline in it is no Enter."""
        self._tmux("send-keys", "-l", "--", text)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        self._tmux("send-keys", "--", *keys)

    def paste(self, text: str) -> None:
        """Paste a text: in brackets where the program has asked for them."""
        self._tmux("set-buffer", "--", text, ";", "paste-buffer", "-p")

    def screen(self) -> str:
        """The lines as they are seen, without spaces at their ends."""
        return self._tmux("capture-pane", "-p")

    def colours(self) -> set[tuple[int, int, int]]:
        """All colours that are seen, as red, green and blue, of a program that has found COLORTERM=truecolor."""
        drawn = self._tmux("capture-pane", "-p", "-e")
        found = re.findall(r"[34]8[;:]2[;:](\d+)[;:](\d+)[;:](\d+)", drawn)
        return {(int(red), int(green), int(blue)) for red, green, blue in found}

    def resize(self, width: int, height: int) -> None:
        """Give the window another size; the program is told by SIGWINCH."""
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def wait_for(self, what: str | re.Pattern[str], seconds: float = 30) -> str:
        """Wait until a text or a pattern is on the screen; the screen then."""
        pattern = what if isinstance(what, re.Pattern) else re.compile(re.escape(what))
        return self._wait(f"{pattern.pattern!r} to come", lambda screen: bool(pattern.search(screen)), seconds)

    def wait_without(self, what: str, seconds: float = 30) -> str:
        """Wait until a text is not on the screen; the screen then."""
        return self._wait(f"{what!r} to go", lambda screen: what not in screen, seconds)

    def exit_code(self, seconds: float = 30) -> int:
        """Wait for the end of the program; its exit code, negative for a signal."""
        end = time.monotonic() + seconds
        while not (known := self.fact("pane_dead_status") or self.fact("pane_dead_signal")):
            assert time.monotonic() < end, f"it still runs after {seconds} s:\n{self.screen()}"
            time.sleep(_GLANCE_SECONDS)
            os.kill(self._server_pid, signal.SIGCHLD)  # tmux 3.3 may miss the one that tells of it
        return int(known) if self.fact("pane_dead_status") else -int(known)

    def fact(self, name: str) -> str:
        """What tmux knows of the window: `alternate_on`, `cursor_flag`, `mouse_any_flag`, `pane_width`..."""
        return self._tmux("display-message", "-p", f"#{{{name}}}").rstrip("\n")

    def _wait(self, what: str, condition: Callable[[str], bool], seconds: float) -> str:
        end = time.monotonic() + seconds
        while not condition(screen := self.screen()):
            assert time.monotonic() < end, f"waited {seconds} s for {what}:\n{screen}"
            if self.fact("pane_dead") == "1" and not condition(screen := self.screen()):
                raise AssertionError(f"the program has ended; waited for {what}:\n{screen}")
            time.sleep(_GLANCE_SECONDS)
        return screen

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-L", self._server, "-f", "/dev/null", *arguments]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_CALL_SECONDS, check=False, env=os.environ | _UTF8
        )
        assert result.returncode == 0, f"{arguments[0]}: {result.stderr}"
        return result.stdout

    def _kill(self) -> None:
        kill = ["tmux", "-L", self._server, "kill-server"]
        subprocess.run(kill, capture_output=True, timeout=_CALL_SECONDS, check=False)
        folder = Path(os.environ.get("TMUX_TMPDIR", "/tmp")) / f"tmux-{os.getuid()}"
        (folder / self._server).unlink(missing_ok=True)  # it leaves its socket


_UTF8 = {"LC_ALL": "C.UTF-8"}  # else it writes `_` for what is not ASCII
