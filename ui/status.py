"""What the model and the machine are doing: a line at the bottom (`StatusLine`) and a panel beside the chat
(`StatusPanel`). Told of the model and of the answers by their owner; only the machine's memory is looked at here,
once a second while the panel is shown.
"""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rich.cells import cell_len, set_cell_size
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Label

from phi4local.chats import clean
from phi4local.engine import Load
from phi4local.fit import total
from phi4local.printing import printable
from phi4local.units import file_size, memory
from ui.context import Budget
from ui.latency import PERCENTILES, Latency, latency_of, percentile

if TYPE_CHECKING:
    from phi4local.actions.chat import Opened

_BESIDE = 100  # cells; on fewer the panel covers the chat instead of standing beside it
_SECONDS = 60  # of the machine's memory are remembered
_LABEL = 10  # cells before a fact
_MOST_NOTE = 500  # characters
_LEVELS = "▁▂▃▄▅▆▇█"
Fact = tuple[str, str]  # what it is called, and what it is
State = Literal["none", "loading", "ready", "reading", "answering", "stopped"]


# ---- the panel ----


class Facts(Widget):
    """Lines of a name and a fact each; long facts go on below themselves."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"facts--name"}

    facts: reactive[tuple[Fact, ...]] = reactive((), layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002
        return len(list(self._lines(width)))

    def render(self) -> Content:
        look = self.get_visual_style("facts--name")
        lines = self._lines(self.content_size.width)
        return Content("\n").join(Content.assemble((f"{name:<{_LABEL}}", look), fact) for name, fact in lines)

    def _lines(self, width: int) -> Iterator[Fact]:
        for name, fact in self.facts:
            first, *rest = textwrap.wrap(fact, max(10, width - _LABEL)) or [""]
            yield name, first
            yield from (("", line) for line in rest)


class Gauge(Widget):
    """The machine's memory now, as numbers, as a bar and over the last minute; looks only while it is shown."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"gauge--filled", "gauge--empty", "gauge--past"}

    used_bytes: reactive[int | None] = reactive(None)
    total_bytes: reactive[int | None] = reactive(None)

    def __init__(self) -> None:
        super().__init__()
        self._past: deque[float] = deque(maxlen=_SECONDS)
        self._timer: Timer | None = None

    def on_mount(self) -> None:
        self._timer = self.set_interval(1, self._look, pause=True)

    @on(events.Show)
    def _shown(self) -> None:
        self._look()
        if self._timer:
            self._timer.resume()

    @on(events.Hide)
    def _hidden(self) -> None:
        if self._timer:
            self._timer.pause()

    def _look(self) -> None:
        """Half a millisecond on Linux, so no thread is needed."""
        from hardware.probe import probe_memory  # late: the panel is not shown at first

        found = probe_memory()
        total_bytes = found.limit_bytes or found.total_bytes
        if total_bytes and found.available_bytes is not None:
            self.total_bytes, self.used_bytes = total_bytes, max(0, total_bytes - found.available_bytes)
            self._past.append(min(1.0, self.used_bytes / total_bytes))
            self.refresh()

    def render(self) -> Content:
        if self.used_bytes is None or not self.total_bytes:
            return Content("This system does not tell")
        width, share = self.content_size.width, min(1.0, self.used_bytes / self.total_bytes)
        filled = round(share * width)
        past = "".join(_LEVELS[min(len(_LEVELS) - 1, int(one * len(_LEVELS)))] for one in list(self._past)[-width:])
        return Content.assemble(
            f"{memory(self.used_bytes)} of {memory(self.total_bytes)} used\n",
            ("▰" * filled, self.get_visual_style("gauge--filled")),
            ("▱" * (width - filled), self.get_visual_style("gauge--empty")),
            (f"\n{past.rjust(width)}", self.get_visual_style("gauge--past")),
        )


class Times(Widget):
    """The last answer and the percentiles of the chat; each line holds for that share of the answers or more."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"times--name"}

    latency: reactive[Latency] = reactive(Latency(), layout=True)

    def render(self) -> Content:
        look = self.get_visual_style("times--name")
        if not self.latency.answers:
            return Content("No answer yet")
        ttft, tps = self.latency.ttft_seconds, self.latency.generation_tps
        rows: list[tuple[str, float | None, float | None]] = [("last", ttft[-1], tps[-1] if tps else None)]
        rows += [(f"p{one}", percentile(ttft, one), percentile(tps, one, best_first=False)) for one in PERCENTILES]
        head = Content.assemble((f"{'':<{_LABEL}}{'first token':>11}{'tok/s':>9}", look))
        lines = [
            Content.assemble((f"{name:<{_LABEL}}", look), f"{_seconds(a):>11}{_rate(b):>9}") for name, a, b in rows
        ]
        return Content("\n").join([head, *lines])


class StatusPanel(VerticalScroll):
    """Everything about the model that is open, the machine's memory, and this chat's answers."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close the panel", id="status.close", tooltip="Back to the chat"),
    ]

    @dataclass
    class Closed(Message):
        """The user has had enough of it."""

    def compose(self) -> ComposeResult:
        yield Label("Model", classes="title")
        yield Facts(id="model")
        yield Label("Memory", classes="title")
        yield Facts(id="memory")
        yield Label("This machine", classes="title")
        yield Gauge()
        yield Label("This chat", classes="title")
        yield Times()
        yield Facts(id="answers")
        yield Label("Notes", classes="title", id="notes-title")
        yield Label(id="notes", markup=False)

    def on_mount(self) -> None:
        self.show_model(None)
        self.show_answers(())

    def show_model(self, opened: Opened | None) -> None:
        """What is loaded, and what that was said to take and took."""
        self.query_one("#model", Facts).facts = tuple(model_facts(opened)) if opened else (("", "No model is open"),)
        self.query_one("#memory", Facts).facts = tuple(memory_facts(opened.engine.info.load)) if opened else ()
        notes = [_shown(note, _MOST_NOTE) for note in opened.engine.info.notes] if opened else []
        self.query_one("#notes", Label).update("\n".join(notes))
        self.set_class(bool(notes), "-noted")

    def show_answers(self, stats: Sequence[Mapping[str, Any] | None]) -> None:
        """The statistics of the chat's answers, the last one at the end; damaged ones are left out."""
        latency = latency_of(stats)
        self.query_one(Times).latency = latency
        self.query_one("#answers", Facts).facts = tuple(answer_facts(latency))

    def action_leave(self) -> None:
        self.post_message(self.Closed())


def model_facts(opened: Opened) -> Iterator[Fact]:
    """What it is and where it is."""
    info, load = opened.engine.info, opened.engine.info.load
    yield "model", _shown(opened.label)
    yield "file", file_text(opened.located.path)
    yield "engine", _shown(f"{info.backend}, {info.description}" if info.description else info.backend)
    yield "layers", layers_text(load)
    yield "context", f"{info.context_tokens:,} tokens, {load.kv_type}"
    if info.safe_mode:
        yield "", "▲ safe settings"


def file_text(path: Path) -> str:
    """How large a build is, which may have been removed since it was loaded."""
    try:
        return file_size(path.stat().st_size)
    except OSError:
        return "removed"


def layers_text(load: Load) -> str:
    """Where the layers are, the output counted as one."""
    if load.where == "split":
        return f"{load.gpu_layers} of {load.layers + 1} on the card"
    return f"all {load.layers + 1} {'on the card' if load.where == 'gpu' else 'in main memory'}"


def memory_facts(load: Load) -> Iterator[Fact]:
    """What was taken, in all and by device, and how good the prediction was."""
    took, predicted = total(load.took).total_bytes, total(load.predicted).total_bytes
    yield "taken", memory(took)
    if predicted:
        yield "predicted", f"{memory(predicted)} ({took / predicted - 1:+.1%})"
    if len(load.took) > 1:
        yield from ((_shown(device, _LABEL - 1), memory(use.total_bytes)) for device, use in load.took.items())
    if load.resident_bytes is not None:
        yield "process", f"grew by {memory(load.resident_bytes)}"
    if load.cards_bytes is not None:
        yield "cards", f"{memory(load.cards_bytes)} less free"


def answer_facts(latency: Latency) -> Iterator[Fact]:
    """How many answers, and what the last one cost."""
    if not latency.answers:
        return
    yield "answers", f"{latency.answers:,}"
    if latency.generation_tokens:
        yield "written", f"{latency.generation_tokens:,} tokens"
    read = max(0, latency.prompt_tokens - latency.cached_tokens)
    speed = f" at {latency.prompt_tps:,.0f}/s" if latency.prompt_tps else ""
    yield "read", f"{read:,} tokens{speed}"
    if latency.cached_tokens:
        yield "known", f"{latency.cached_tokens:,} tokens before"


# ---- the line ----

_STATES: dict[State, str] = {
    "none": "○ no model",
    "loading": "◌ loading",
    "ready": "● ready",
    "reading": "▸ reading",
    "answering": "▸ answering",
    "stopped": "✗ the engine stopped",
}


class Said(Widget):
    """What fits of the parts of a line, the most important first; the first one gives way before the second."""

    parts: reactive[tuple[str, ...]] = reactive(())

    def render(self) -> Content:
        return Content(fitting(self.parts, self.content_size.width))


class StatusLine(Horizontal):
    """Model · state · speed · first token · memory, and the budget of the context at the right."""

    @dataclass
    class Pressed(Message):
        """Somebody wants to know more."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._label = ""
        self._state = _STATES["none"]
        self._speed: tuple[str, ...] = ()
        self._memory: tuple[str, ...] = ()

    def compose(self) -> ComposeResult:
        yield Said()
        yield Budget()

    def on_mount(self) -> None:
        self._say()

    @property
    def budget(self) -> Budget:
        return self.query_one(Budget)

    def show_model(self, opened: Opened | None) -> None:
        """What is open, and its memory; a label alone is shown with `show_state`."""
        self._label = _shown(opened.label, 60) if opened else ""
        load = opened.engine.info.load if opened else None
        self._memory = (memory_text(load),) if load else ()
        self._say()

    def show_state(self, state: State, tokens: int = 0) -> None:
        """What happens; `tokens` are those that are being read."""
        count = f" {tokens:,} token{'' if tokens == 1 else 's'}" if tokens else ""
        self._state = _STATES[state] + count
        for one in _STATES:
            self.set_class(one == state, f"-{one}")
        self._say()

    def show_speed(self, generation_tps: float | None, ttft_seconds: float | None) -> None:
        """Of the answer that comes or came last; None: not known yet."""
        tps = (f"{_rate(generation_tps)} tok/s",) if generation_tps else ()
        self._speed = (*tps, *((f"first token {_seconds(ttft_seconds)}",) if ttft_seconds else ()))
        self._say()

    def _say(self) -> None:
        parts = (*((self._label,) if self._label else ()), self._state, *self._speed, *self._memory)
        for said in self.query(Said):
            said.parts = parts

    def on_resize(self, event: events.Resize) -> None:
        width = event.size.width
        self.set_class(width < 60, "-slim")
        self.set_class(width < _BESIDE, "-narrow")
        self.set_class(width >= 140, "-wide")
        # Breakpoints of the screen would be late: they are not looked at while another screen is over it.
        for panel in self.screen.query(StatusPanel):
            panel.set_class(width < _BESIDE, "-over")

    @on(events.Click)
    def _press(self, event: events.Click) -> None:
        if not isinstance(event.widget, Budget):
            self.post_message(self.Pressed())


def memory_text(load: Load) -> str:
    """What was taken against what was predicted."""
    took, predicted = total(load.took).total_bytes, total(load.predicted).total_bytes
    return f"{memory(took)}, {memory(predicted)} predicted" if predicted else memory(took)


def fitting(parts: Sequence[str], width: int) -> str:
    """As many parts from the left as fit; where not even two do, the first one is cut so that the second is whole."""
    for count in range(len(parts), min(1, len(parts) - 1), -1):
        line = " · ".join(parts[:count])
        if cell_len(line) <= width:
            return line
    if len(parts) < 2:
        return set_cell_size(parts[0], width) if parts else ""
    room = width - cell_len(f"… · {parts[1]}")
    return f"{set_cell_size(parts[0], room)}… · {parts[1]}" if room > 0 else set_cell_size(parts[1], width)


def _shown(text: str, limit: int = 200) -> str:
    """Foreign text as one line that is safe to show."""
    return printable(clean(text[:limit]), limit=limit)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _rate(tps: float | None) -> str:
    return "–" if tps is None else f"{tps:.1f}" if tps < 1000 else f"{tps:,.0f}"
