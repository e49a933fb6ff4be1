"""Where the texts about a machine come from: its files and its commands. Nothing here raises.

Files are looked up under `root`, so that a test can hand in another machine's tree.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_COMMAND_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Source:
    """Reads what can be read; the rest is an empty text, with a note where the reader should know."""

    root: Path = Path("/")
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a fact for the report, once."""
        if text not in self.notes:
            self.notes.append(text)

    def read(self, path: str) -> str:
        """The text of a file; empty where it is absent or refuses to be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
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

    def run(self, *command: str, timeout_seconds: float = _COMMAND_SECONDS) -> str:
        """What a command prints, whatever its exit status; empty where it is not installed."""
        program = shutil.which(command[0])
        if program is None:
            return ""
        try:
            done = subprocess.run(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self.note(f"`{command[0]}` did not answer within {timeout_seconds:g} s")
            return ""
        except (OSError, subprocess.SubprocessError) as error:
            self.note(f"`{command[0]}` could not be run: {error}")
            return ""
        return done.stdout.decode("utf-8", errors="replace")
