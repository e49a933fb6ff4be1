"""The context as a budget: how much of it a chat has used (`Budget`), and what to do when it is full (`ContextScreen`).

    self.app.push_screen(ContextScreen(used, context, drop, longer, shortened), self.chosen)    None: nothing to do

Facts that take a while (`drop`, `longer`) may be None at first and filled in with `set_drop` and `set_longer`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePath
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.style import Style
from textual.widget import Widget
from textual.widgets import Footer, Label, OptionList
from textual.widgets.option_list import Option

from phi4local.actions.talk import LEAST_ROOM
from phi4local.printing import printable
from phi4local.units import memory

if TYPE_CHECKING:
    from phi4local.actions.longer import Longer

_WARNING, _FULL = 0.75, 0.90  # shares of the context
_FILLED, _EMPTY = "▰", "▱"
_LOOKS = ("-calm", "-warning", "-full")
_MOST_REASON = 1_000  # characters, of which as many are shown as there is room for
_LOW = 20  # rows; on fewer the choices come first
_LINES = ((4, 4), (1, 4), (0, 4), (0, 1), (0, 0))  # of the detail of a choice that is open, or not
_AROUND, _AROUND_LOW = 9, 3  # rows of the screen that are not the list's: without the note, and with it


class Budget(Widget):
    """One line: tokens used and left, as a text that is as long as there is room for, and as a bar."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"budget--filled", "budget--empty"}

    @dataclass
    class Pressed(Message):
        """Somebody wants to see what can be done."""

    used_tokens: reactive[int | None] = reactive(None, layout=True)
    context_tokens: reactive[int | None] = reactive(None, layout=True)

    def show(self, used_tokens: int | None, context_tokens: int | None) -> None:
        """What a conversation takes of its context; None: not known yet."""
        self.used_tokens, self.context_tokens = used_tokens, context_tokens
        look = _LOOKS[level(used_tokens, context_tokens)]
        for one in _LOOKS:
            self.set_class(one == look, one)

    def get_content_width(self, container: Size, viewport: Size) -> int:  # noqa: ARG002
        return _width(next(spellings(self.used_tokens, self.context_tokens)))

    def render(self) -> Content:
        """The longest way to say it that fits."""
        width = self.size.width
        said = list(spellings(self.used_tokens, self.context_tokens))
        line = next((one for one in said if _width(one) <= width), said[-1])
        return Content.assemble(
            line.before,
            (_FILLED * line.filled, self.get_visual_style("budget--filled")),
            (_EMPTY * (line.cells - line.filled), self.get_visual_style("budget--empty")),
            line.after,
        )

    @on(events.Click)
    def _press(self) -> None:
        self.post_message(self.Pressed())


@dataclass(frozen=True, slots=True)
class Spelling:
    """A bar of so many cells, and the text around it."""

    before: str
    cells: int = 0
    filled: int = 0
    after: str = ""


def _width(line: Spelling) -> int:
    return len(line.before) + line.cells + len(line.after)


def level(used_tokens: int | None, context_tokens: int | None) -> int:
    """0: calm, or not known; 1: to be watched; 2: full."""
    share = (used_tokens or 0) / (context_tokens or 1)
    return 2 if share >= _FULL else 1 if share >= _WARNING else 0


def spellings(used_tokens: int | None, context_tokens: int | None) -> Iterator[Spelling]:
    """Ways to say it, the longest first."""
    if used_tokens is None or not context_tokens:
        yield Spelling(f"…/{context_tokens:,}" if context_tokens else "")
        yield Spelling(f"…/{thousands(context_tokens)}" if context_tokens else "")
        return
    left = context_tokens - used_tokens
    rest = f"{left:,} left" if left >= 0 else f"{-left:,} too many"
    of, short = f"{used_tokens:,} of {context_tokens:,}", f"{thousands(used_tokens)}/{thousands(context_tokens)}"
    share = used_tokens / context_tokens
    yield Spelling(f"{of} tokens  ", 10, _cells(share, 10), f"  {rest}")
    yield Spelling(f"{of}  ", 10, _cells(share, 10), f"  {rest}")
    yield Spelling(f"{of} ", 4, _cells(share, 4), f" {rest}")
    yield Spelling(f"{of} ", 4, _cells(share, 4))
    yield Spelling(f"{short} ", 4, _cells(share, 4))
    yield Spelling(short)
    yield Spelling(f"{share:.0%}")


def _cells(share: float, cells: int) -> int:
    """How many cells are filled: one as soon as anything is used, all of them only when nothing is left."""
    if share >= 1 or share <= 0:
        return cells if share >= 1 else 0
    return min(cells - 1, max(1, round(share * cells)))


def thousands(tokens: int) -> str:
    """`thousands(1_234) == "1.2k"`, `thousands(999) == "999"`."""
    for scale, unit in ((10**6, "M"), (10**3, "k")):
        if tokens >= scale:
            return f"{tokens / scale:.1f}{unit}" if tokens < 100 * scale else f"{tokens // scale}{unit}"
    return str(tokens)


class Choice(StrEnum):
    """What to do with a context that is full."""

    DROP = "drop"  # the oldest turns are no longer told to the model
    SUMMARISE = "summarise"  # a summary is told in their place
    LONGER = "longer"
    NEW = "new"
    EVERYTHING = "everything"  # the model is told the whole chat again


@dataclass(frozen=True, slots=True)
class Drop:
    """How many of the oldest turns would go, and how many tokens are free then; no turns: nothing can go."""

    turns: int
    free_tokens: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A choice in words, and whether it can be chosen (yet)."""

    title: str
    detail: str
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """What the choices depend on; None: still being computed."""

    drop: Drop | None
    longer: Longer | str | None  # or why there is none


class ContextScreen(ModalScreen[Choice | None]):
    """What can be done; None: back to the text, nothing was sent."""

    CSS_PATH: ClassVar[list[str | PurePath]] = ["context.tcss", "status.tcss"]  # the latter has the budget's looks
    AUTO_FOCUS = "OptionList"
    VERTICAL_BREAKPOINTS = [(0, "-low"), (_LOW, "-high")]  # noqa: RUF012  declared so by Screen
    COMPONENT_CLASSES: ClassVar[set[str]] = {"context--title"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Choose", id="context.take", tooltip="Do what is marked", priority=True),
        *(
            Binding(
                str(number), f"choose({number})", f"Choice {number}", id=f"context.{number}", show=False, tooltip=tip
            )
            for number, tip in enumerate(
                ("Drop turns", "Summarise them", "A longer context", "A new chat", "Tell everything again"), 1
            )
        ),
        Binding("escape", "cancel", "Back to the text", id="context.cancel", tooltip="Nothing is sent"),
    ]

    def __init__(
        self,
        used_tokens: int | None,
        context_tokens: int,
        drop: Drop | None,
        longer: Longer | str | None,
        shortened: bool,
    ) -> None:
        """`used_tokens` None: not counted; `shortened`: something is no longer told to the model."""
        super().__init__()
        self._used_tokens, self._context_tokens = used_tokens, context_tokens
        self._facts = Facts(drop, longer)
        self._choices = [choice for choice in Choice if shortened or choice is not Choice.EVERYTHING]

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Budget()
            yield Label(classes="note", markup=False)
            options = OptionList(*(Option(str(choice), id=choice) for choice in self._choices), markup=False)
            options.highlighted = None
            yield options
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one(".dialog").border_title = "The context"
        self.query_one(Budget).show(self._used_tokens, self._context_tokens)
        self.app.theme_changed_signal.subscribe(self, lambda _theme: self._renew())
        self._renew()

    def on_resize(self) -> None:
        self.call_after_refresh(self._renew)  # the list has its new width then

    def set_drop(self, drop: Drop) -> None:
        """What dropping turns would free is known now."""
        self._facts = replace(self._facts, drop=drop)
        self._renew()

    def set_longer(self, longer: Longer | str) -> None:
        """Which longer context fits is known now, or why there is none."""
        self._facts = replace(self._facts, longer=longer)
        self._renew()

    # ---- what is said ----

    def _renew(self) -> None:
        """Say everything again, in lines that are as wide as the list.

        Nothing is marked before the first choice is known: Enter must not do something else than it will soon.
        """
        for options in self.query(OptionList):  # there is none before the screen is shown
            is_low = self.app.size.height < _LOW
            note = situation(self._used_tokens, self._context_tokens)[is_low]
            self.query_one(".note", Label).update(note)
            width = options.scrollable_content_region.width or self.app.size.width
            around = _AROUND_LOW if is_low else _AROUND + len(textwrap.wrap(note, width))
            rows = self.app.size.height - around
            for choice, prompt in zip(self._choices, self._prompts(width, rows), strict=True):
                offer = self._offer(choice)
                options.replace_option_prompt(choice, prompt)
                if options.get_option(choice).disabled == offer.is_open:  # each call moves the mark
                    (options.enable_option if offer.is_open else options.disable_option)(choice)
            if options.highlighted is None and self._facts.drop is not None:
                options.highlighted = next(i for i, option in enumerate(options.options) if not option.disabled)

    def _prompts(self, width: int, rows: int) -> list[Content]:
        """The choices with as many lines of each as there is room for; why one is closed is said before what one does.

        Where even the titles are too many rows, the list scrolls.
        """
        prompts: list[Content] = []
        for opened, closed in _LINES:
            offers = enumerate(map(self._offer, self._choices), 1)
            prompts = [self._prompt(no, offer, width, opened if offer.is_open else closed) for no, offer in offers]
            lines = (line for prompt in prompts for line in prompt.plain.splitlines())
            if sum(-(-cell_len(line) // width) for line in lines) <= rows:
                break
        return prompts

    def _prompt(self, number: int, offer: Offer, width: int, lines: int) -> Content:
        look = self.get_visual_style("context--title", partial=True)
        title = (offer.title, Style(foreground=look.foreground, bold=look.bold)) if offer.is_open else offer.title
        indent = "   "
        detail = textwrap.wrap(
            offer.detail,
            max(20, width - 4),
            initial_indent=indent,
            subsequent_indent=indent,
            max_lines=max(1, lines),
            placeholder=" …",
        )
        return Content.assemble(f"{number}  ", title, *(f"\n{line}" for line in detail[:lines]))

    def _offer(self, choice: Choice) -> Offer:
        return _OFFERS[choice](self._facts)

    # ---- what is chosen ----

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(Choice(str(event.option_id)))

    def action_take(self) -> None:
        self.query_one(OptionList).action_select()

    def action_choose(self, number: int) -> None:
        if number <= len(self._choices) and self._offer(choice := self._choices[number - 1]).is_open:
            self.dismiss(choice)

    def action_cancel(self) -> None:
        self.dismiss(None)


def situation(used_tokens: int | None, context_tokens: int) -> tuple[str, str]:
    """How full it is, in a sentence or two, and shorter."""
    left = None if used_tokens is None else context_tokens - used_tokens
    if left is None or left >= LEAST_ROOM:
        there = "" if left is None else "There is room. "
        long = f"{there}What the model is told can be made shorter all the same, or the room larger."
        return long, there.strip()
    if left > 0:
        few = f"{left:,} token{'s' if left != 1 else ''} left"
        return f"{few}: that is too little for an answer. Nothing was sent.", "Too little for an answer; nothing sent"
    long = "The question and what came before it leave no room for an answer. Nothing was sent."
    return long, "No room for an answer; nothing sent"


def _drop(facts: Facts) -> Offer:
    title, drop = "Let the model forget the oldest turns", facts.drop
    if drop is None:
        return Offer(title, "… which ones, and what that frees, is being counted", is_open=False)
    if not drop.turns:
        return Offer(title, "There is no older turn that could go", is_open=False)
    turns = "The first one" if drop.turns == 1 else f"The first {drop.turns:,}"
    return Offer(title, f"{turns}; then {drop.free_tokens:,} tokens are free. You still see them")


def _summarise(facts: Facts) -> Offer:
    title = "Put a summary in their place"
    if facts.drop is None or not facts.drop.turns:
        return Offer(title, "…" if facts.drop is None else "There is nothing to sum up", is_open=False)
    return Offer(title, "This model writes it, which takes about as long as an answer")


def _longer(facts: Facts) -> Offer:
    title, longer = "A longer context", facts.longer
    if longer is None:
        return Offer(title, "… whether one fits into memory is being asked", is_open=False)
    if isinstance(longer, str):
        return Offer(title, printable(longer, limit=_MOST_REASON), is_open=False)
    slower = "; fewer layers on the card, so slower" if longer.slower else ""
    detail = f"The model is loaded again and takes {memory(longer.total_bytes)} in all{slower}"
    return Offer(f"{title}: {longer.context_tokens:,} tokens", detail)


_OFFERS: dict[Choice, Callable[[Facts], Offer]] = {
    Choice.DROP: _drop,
    Choice.SUMMARISE: _summarise,
    Choice.LONGER: _longer,
    Choice.NEW: lambda _: Offer("A new chat", "With an empty context; this chat stays as it is"),
    Choice.EVERYTHING: lambda _: Offer("Tell the model everything again", "Also the turns that were dropped before"),
}
