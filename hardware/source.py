"""Where the texts about a machine come from: its files and its commands. Nothing here raises.

Files are looked up under `root`, so that a test can hand in another machine's tree. Commands share one deadline:
however many of them hang, one probe waits once.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hardware import tool
from phi4local.printing import printable

T = TypeVar("T")

TOOLS_SECONDS = 1.9  # for all tools of one probe together, those that must be killed included
_GRACE_SECONDS = 0.2  # so much earlier must whoever is asked come back, or its asker no longer waits for it
_MAX_FILE_BYTES = 8 << 20  # /proc/cpuinfo of the largest machines has about 2 MiB
_MAX_NOTE = 500


@dataclass(frozen=True, slots=True)
class Source:
    """Reads what can be read; the rest is an empty text, with a note where the reader should know."""

    root: Path = Path("/")
    deadline: float = field(default_factory=lambda: time.monotonic() + TOOLS_SECONDS)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a fact for the report, once and safe to print."""
        text = printable(text, limit=_MAX_NOTE)
        if text not in self.notes:
            self.notes.append(text)

    def read(self, path: str) -> str:
        """The text of a file; empty where it is absent or refuses to be read."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(_MAX_FILE_BYTES).decode("utf-8", errors="replace")
        except (OSError, ValueError):
            return ""

    def names(self, folder: str) -> list[str]:
        """What a folder holds, card2 before card10; empty where it is absent."""
        try:
            found = [entry.name for entry in (self.root / folder).iterdir()]
        except OSError:
            return []
        return sorted(found, key=lambda name: (len(name), name))

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        try:
            return (self.root / path).exists()
        except OSError:
            return False

    def run(self, *command: str, trusted: Collection[int] = (0,)) -> str:
        """What a command prints; empty where it is not installed, and with a note where it is and does not answer."""
        program = shutil.which(command[0])
        if program is None:
            return ""
        answer = tool.ask([program, *command[1:]], self.deadline, trusted)
        if answer.problem:
            self.note(f"`{command[0]}` {answer.problem}")
        return answer.text

    def together(self, questions: dict[str, Callable[[Source], tuple[T, ...]]]) -> tuple[T, ...]:
        """All answers, in order, asked at the same time; one that does not come until the deadline is noted by name.

        A driver's library may hang where no signal reaches it, so each asks in a daemon thread, with notes of its own.
        """
        answers: dict[str, tuple[T, ...]] = {}
        sources = {name: Source(self.root, self.deadline - _GRACE_SECONDS) for name in questions}

        def ask(name: str) -> None:
            answers[name] = questions[name](sources[name])

        threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in questions]
        for thread in threads:
            with suppress(RuntimeError):  # no more threads to be had: noted as one that does not answer
                thread.start()
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, self.deadline - time.monotonic()))
        for name, source in sources.items():
            if name not in answers:
                source.note(f"{name} {tool.LATE}")
            for text in source.notes:
                self.note(text)
        return tuple(found for name in questions for found in answers.get(name, ()))
