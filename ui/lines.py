"""A plain chat, line by line: works on any terminal and through any pipe. Knows engines only by their seam."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator

from phi4local.conversation import Message
from phi4local.engine import Chunk, Finish, GenerationOptions, Session
from phi4local.errors import Phi4LocalError
from phi4local.printing import printable, printable_lines
from phi4local.units import duration
from ui.interrupts import cancelling, on_interrupt

_HELP = (
    "Type a question and press Enter. /new starts over, /model NAME goes on with another model, "
    "/exit or Ctrl-D leaves, Ctrl-C stops an answer.\n"
)
Switch = Callable[[str], tuple[Session, GenerationOptions]]  # a model's name -> how to go on (Phi4LocalError)
_DIM, _RESET = "\x1b[2m", "\x1b[0m"


class Lines:
    """One chat on standard input and output; `dim` marks thinking where the terminal has colour.

    `switch` opens another model; without it there is no /model.
    """

    def __init__(
        self,
        session: Session,
        options: GenerationOptions,
        system: str | None,
        *,
        dim: bool,
        switch: Switch | None = None,
    ) -> None:
        self.session = session
        self.options = options
        self.system = system
        self.dim = dim
        self.switch = switch
        self.messages = self._beginning()
        self._at_prompt = False
        self._pressed = False  # Ctrl-C came after the question and before its answer was under way

    def _beginning(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    def run(self) -> None:
        """Ask and answer until the input ends."""
        sys.stderr.write(_HELP)
        with on_interrupt(self._interrupted):
            while (line := self._read()) is not None:
                question = line.strip()
                if question == "/exit":
                    return
                if question == "/new":
                    self.messages = self._beginning()
                elif question.startswith("/model ") and self.switch:
                    self._go_on_with(question.removeprefix("/model ").strip(), self.switch)
                elif question.startswith("/"):
                    sys.stderr.write(_HELP)
                elif question:
                    self._ask(question)

    def _interrupted(self) -> None:
        """Ctrl-C outside an answer: at the prompt it ends the line, behind it it is kept for the answer."""
        self._pressed = not self._at_prompt
        if self._at_prompt:
            self._at_prompt = False
            raise KeyboardInterrupt

    def _read(self) -> str | None:
        """The next line; None at the end of the input, nothing after Ctrl-C."""
        try:
            try:
                self._pressed, self._at_prompt = False, True
                return input(">>> ")
            finally:
                self._at_prompt = False
        except EOFError:
            sys.stderr.write("\n")
            return None
        except KeyboardInterrupt:
            sys.stderr.write("\n/exit or Ctrl-D leaves\n")
            return ""

    def _go_on_with(self, name: str, switch: Switch) -> None:
        """Another model for the same conversation; where it cannot be opened, the present one stays."""
        try:
            self.session, self.options = switch(name)
        except Phi4LocalError as error:
            _complain(error, incomplete=False)

    def _ask(self, question: str) -> None:
        """One turn; a question that got no word of an answer is taken back, so that it can be asked again."""
        self.messages.append(Message("user", question))
        chunks: list[Chunk] = []
        error: Phi4LocalError | None = None
        try:
            stream = self.session.stream(self.messages, self.options)
            with cancelling(self.session):
                if self._pressed:
                    self.session.cancel()
                self._answer(stream, chunks)
        except Phi4LocalError as caught:
            error = caught
        text = "".join(chunk.text for chunk in chunks if chunk.kind == "answer")
        if text or not error:
            self.messages.append(Message("assistant", text))
        else:
            self.messages.pop()
        if error:
            _complain(error, incomplete=bool(chunks))

    def _answer(self, stream: Generator[Chunk | Finish], chunks: list[Chunk]) -> None:
        """Print an answer as it comes, and keep what was printed."""
        with contextlib.closing(stream):
            for item in stream:
                if isinstance(item, Finish):
                    self._foot(item)
                else:
                    chunks.append(item)
                    self._show(item)

    def _show(self, chunk: Chunk) -> None:
        text = printable_lines(chunk.text)
        if chunk.kind == "thinking" and self.dim:
            text = f"{_DIM}{text}{_RESET}"
        sys.stdout.write(text)
        sys.stdout.flush()

    def _foot(self, finish: Finish) -> None:
        stats = finish.stats
        _end_line()
        if finish.reason == "cancelled":
            sys.stderr.write("stopped\n")
            return
        cut = ", cut off: the context or the limit is reached" if finish.reason == "length" else ""
        sys.stderr.write(
            f"[{stats.generation_tokens} tokens, {stats.generation_tps:.1f} per second, "
            f"first after {duration(stats.ttft_seconds)}{cut}]\n"
        )


def _complain(error: Phi4LocalError, *, incomplete: bool) -> None:
    if incomplete:
        _end_line()
    sys.stderr.write(f"error: {printable(error.message)}\n")
    if incomplete:
        sys.stderr.write("the answer is incomplete\n")
    if error.hint:
        sys.stderr.write(f"hint: {printable(error.hint)}\n")


def _end_line() -> None:
    sys.stdout.write("\n")
    sys.stdout.flush()
