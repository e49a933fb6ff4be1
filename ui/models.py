"""The screen of models: what is here, what would fit, and getting, making and removing builds.

    app.push_screen(ModelsScreen("phi-4:Q4_K_M"), chosen)      chosen(label or whole path of a file), or chosen(None)

Everything that takes time is a `Job`; the screen is drawn at once and told the rest as it becomes known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Button, Footer, Label, Tab, Tabs

from phi4local.actions.choice import Choice
from phi4local.actions.fit import DEFAULT_MODEL, SMALLEST, Fit
from phi4local.actions.pull import pull
from phi4local.catalog import Model
from phi4local.errors import Phi4LocalError
from phi4local.printing import printable_lines
from phi4local.settings import nano_folder
from phi4local.store import Build, builds
from quant.plan import Plan
from ui import acquiring
from ui.acquiring import KEEPS, Looked
from ui.build_list import BuildList
from ui.builds import NANO, Entry, best_label, entries_of, free_line, heading, offered
from ui.dialogs import Ask, Confirm
from ui.jobs import Job, Tell, follow
from ui.offers import FolderForm, Offer
from ui.work_panel import WorkPanel

T = TypeVar("T")
_HERE = "tab-here"


class ModelsScreen(Screen[str | None]):
    """Dismissed with the label of the build or the whole path of the file to chat with, or None."""

    CSS_PATH = "models.tcss"
    AUTO_FOCUS = "BuildList"
    VERTICAL_BREAKPOINTS = [(0, "-low"), (20, "-short"), (30, "-tall")]  # noqa: RUF012  declared so by Screen
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "chat", "Chat", id="models.chat", tooltip="Chat with this build"),
        Binding("enter", "get", "Get", id="models.get", tooltip="Get this build: what it takes is shown first"),
        Binding("left", "model(-1)", "Model", key_display="←→", id="models.previous", tooltip="Another model"),
        Binding("right", "model(1)", "Next model", id="models.next", tooltip="The next model", show=False),
        Binding("t", "tiny", "Tiny", id="models.tiny", tooltip="Make the tiny built-in model, without a network"),
        Binding("q", "folder", "Folder", id="models.folder", tooltip="Make a build from weights on this disk"),
        Binding("o", "open_file", "File", id="models.file", tooltip="Open a GGUF file by its path"),
        Binding("d,delete", "remove", "Remove", id="models.remove", tooltip="Delete this build from the disk"),
        Binding("ctrl+c", "stop", "Stop", id="models.stop", tooltip="Stop what is at work", show=False),
        Binding("escape", "ask_stop", "Stop", id="models.ask-stop", tooltip="Stop what is at work; what is done stays"),
        Binding("escape", "back", "Back", id="models.back", tooltip="Leave this screen"),
    ]

    def __init__(
        self,
        current: str | None = None,
        *,
        given_back: Mapping[str, int] | None = None,
        first_run: bool = False,
        files: Sequence[Path] = (),
    ) -> None:
        """`current` is loaded now, and holds `given_back` of each device's memory; `files` are whole paths of GGUFs."""
        super().__init__()
        self._current, self._given_back, self._first_run = current, given_back or {}, first_run
        self._files = list(files)
        self._typed = ""  # the path that was asked for last
        self._models: list[Model] = []
        self._here: list[Build] = []
        self._answers: dict[str, Fit | Phi4LocalError] = {}
        self._questions: list[str] = []
        self._asking: Job[Any] | None = None
        self._said_on = ""  # the tab that was open then
        self._wanted = ""  # where the cursor shall stand
        self._is_led = first_run  # until the user goes where they want

    def compose(self) -> ComposeResult:
        with Horizontal(id="models-head"):
            yield Label("Welcome to phi4local" if self._first_run else "Models", id="models-title")
            yield Label("", id="models-free")
        yield Label("", id="models-welcome")
        yield Tabs(id="models-tabs")
        yield Label("", id="models-about")
        yield BuildList()
        with Horizontal(id="models-foot"):
            yield Label("", id="models-detail")
            yield Button("Get", id="models-act", variant="primary", compact=True)
        yield Label("", id="models-notice")
        yield WorkPanel()
        yield Footer(show_command_palette=False)

    async def on_mount(self) -> None:
        for widget in ("#models-tabs", "#models-act"):  # the keys stay with the list
            self.query_one(widget).can_focus = False
        self.set_class(self._first_run, "-first-run")
        tabs = self.query_one(Tabs)
        await tabs.add_tab(Tab("Here", id=_HERE))
        try:
            self._models = offered()
        except Phi4LocalError as error:  # the user's own catalogue
            self._fail(error)
        self._here = builds()
        names = [model.name for model in self._models]
        for index, name in enumerate(names):
            await tabs.add_tab(Tab(Content(name.removeprefix("phi-4-")), id=f"tab-{index}"))
        if (self._first_run or not (self._here or self._files or self._current)) and DEFAULT_MODEL in names:
            tabs.active = f"tab-{names.index(DEFAULT_MODEL)}"
        self._ask(*([DEFAULT_MODEL, SMALLEST] if self._first_run else []))
        self._ask(*dict.fromkeys(build.manifest.name for build in self._here))
        self._refresh()

    # -- what is shown

    @property
    def _model(self) -> Model | None:
        """The one whose tab is open; None: what is here."""
        active = self.query_one(Tabs).active
        return None if active in ("", _HERE) else self._models[int(active.removeprefix("tab-"))]

    @on(Tabs.TabActivated)
    def _opened(self) -> None:
        self.query_one(BuildList).is_moved = False
        notice = self.query_one("#models-notice")
        if notice.has_class("-error") and self._said_on != self.query_one(Tabs).active:  # it was about another model
            self._say("")
        if self._model:
            self._ask(self._model.name, first=True)
        self._refresh()

    def _home(self, entries: Sequence[Entry]) -> str | None:
        """Where the cursor belongs while the user has not moved it: what was wanted, what is in use, what is best."""
        model, labels = self._model, {entry.label for entry in entries}
        best = best_label(model.name, self._answers.get(model.name)) if model else None
        return next((label for label in (self._wanted, self._current, best) if label in labels), None)

    def _refresh(self) -> None:
        """Show the open tab as it is known by now."""
        self._here = here = builds()
        model = self._model
        entries = entries_of(model, here, self._answers, self._current, self._files)
        builds_shown = self.query_one(BuildList)
        home = None if builds_shown.is_moved else self._home(entries)
        self.query_one("#models-about", Label).update(Content(printable_lines(heading(model, here, entries))))
        builds_shown.show(entries, home)
        known = next((answer for answer in self._answers.values() if isinstance(answer, Fit)), None)
        self.query_one("#models-free", Label).update(Content(free_line(known) if known else ""))
        if self._first_run:
            lines = acquiring.welcome(acquiring.starter(self._answers), self._answers)
            self.query_one("#models-welcome", Label).update(Content("\n".join(lines)))

    @on(BuildList.Pointed)
    def _pointed(self, event: BuildList.Pointed) -> None:
        entry = event.entry
        self.query_one("#models-detail", Label).update(Content(printable_lines(entry.detail)))
        act = self.query_one("#models-act", Button)
        act.label = "Chat" if entry.is_here else "Make" if entry.label == NANO else "Get"
        act.display = bool(entry.label)
        self.refresh_bindings()

    def _say(self, text: str, *, is_error: bool = False) -> None:
        notice = self.query_one("#models-notice", Label)
        notice.update(Content(printable_lines(text)))
        notice.set_class(bool(text), "-told")
        notice.set_class(is_error, "-error")
        self._said_on = self.query_one(Tabs).active

    def _fail(self, error: Phi4LocalError) -> None:
        self._say(f"{error.message}\n{error.hint}" if error.hint else error.message, is_error=True)

    # -- what the engine is asked

    def _ask(self, *names: str, first: bool = False) -> None:
        new = [name for name in names if name not in self._answers and name not in self._questions]
        self._questions = [*new, *self._questions] if first else [*self._questions, *new]
        self._ask_next()

    def _ask_next(self) -> None:
        """One question at a time: each keeps the engine and a core or two busy."""
        if self._asking or not self._questions:
            return
        name = self._questions.pop(0)
        self._asking = Job(
            self,
            lambda _tell: acquiring.ask(name, self._given_back),
            lambda answer: self._answered(name, answer),
        ).start()

    @on(Job.Ended)
    def _settle(self, event: Job.Ended) -> None:
        if self.is_attached:  # it may come while the screen is taken down
            event.job.settle()

    def _answered(self, name: str, answer: Fit | Phi4LocalError) -> None:
        self._asking = None
        self._answers[name] = answer
        if self._is_led and (starter := acquiring.starter(self._answers)):
            self._lead_to(starter)
        self._refresh()
        if isinstance(answer, Phi4LocalError) and self._model and self._model.name == name:
            self._fail(answer)
        self._ask_next()

    def _lead_to(self, name: str) -> None:
        """The cursor to the recommended build of a model."""
        names = [model.name for model in self._models]
        self._go_to(best_label(name, self._answers[name]) or NANO)
        if name in names:
            self.query_one(Tabs).active = f"tab-{names.index(name)}"

    # -- what the user wants

    @property
    def _entry(self) -> Entry | None:
        return self.query_one(BuildList).entry

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        if not self.is_mounted:
            return True
        entry, busy = self._entry, self._work.is_busy
        facts = {
            "chat": entry is not None and entry.is_here,
            "get": entry is not None and bool(entry.label) and not entry.is_here,
            "remove": entry is not None and entry.is_here and not entry.is_file,
            "stop": busy,
            "ask_stop": busy,
            "back": not busy,
            "tiny": not any(build.label == NANO for build in self._here),
        }
        return facts.get(action, True)

    def _go_to(self, label: str) -> None:
        """Let the cursor stand there as soon as it can."""
        self._wanted, self._is_led = label, False
        self.query_one(BuildList).is_moved = False

    def action_model(self, step: int) -> None:
        self._is_led = False
        tabs = self.query_one(Tabs)
        if step > 0:
            tabs.action_next_tab()
        else:
            tabs.action_previous_tab()

    @on(BuildList.Taken)
    @on(Button.Pressed, "#models-act")
    def _taken(self) -> None:
        if self.check_action("chat", ()):
            self.action_chat()
        elif self.check_action("get", ()):
            self.action_get()

    def action_chat(self) -> None:
        if self._entry and not self._is_busy():
            self.dismiss(self._entry.label)

    def action_get(self) -> None:
        entry = self._entry
        if entry is None or self._is_busy():
            return
        if entry.label == NANO:
            self.action_tiny()
        else:
            self._look_for(entry.label, None)

    def _look_for(self, label: str, source: str | None) -> None:
        self._begin(f"Looking for {label}", lambda tell: acquiring.look(label, source, tell), self._offer)

    def _offer(self, looked: Looked) -> None:
        def answered(answer: str | None) -> None:
            if answer == "yes":
                self._pull(looked.choice)
            elif answer == "other" and looked.other:
                self._look_for(looked.other.label, acquiring.source_of(looked.other))

        offer = acquiring.offer_of(looked, self._answers.get(looked.choice.model.name))
        self.app.push_screen(Offer(offer), answered)

    def _pull(self, choice: Choice) -> None:
        work = lambda tell: follow(pull(choice, None), tell)  # noqa: E731
        self._begin(choice.label, work, lambda pulled: self._arrived(pulled.build), keeps=KEEPS)

    def action_tiny(self) -> None:
        def work(tell: Tell) -> Build:
            return acquiring.make(acquiring.plan(nano_folder(), NANO.partition(":")[2], tell), tell)

        if not self._is_busy():
            self._begin(NANO, work, self._arrived, keeps=KEEPS)

    def action_folder(self) -> None:
        if not self._is_busy():
            self.app.push_screen(FolderForm(), self._look_into)

    def action_open_file(self) -> None:
        if not self._is_busy():
            question = Ask("Open a GGUF file", text=self._typed, placeholder="~/models/phi-4-Q4_K_M.gguf")
            self.app.push_screen(question, self._look_at_file)

    def _look_at_file(self, typed: str | None) -> None:
        if typed and typed.strip():
            self._typed = typed
            self._begin(f"Looking at {typed}", lambda tell: acquiring.model_file(typed, tell), self._open_file)

    def _open_file(self, path: Path) -> None:
        if self.is_active:
            self.dismiss(str(path))
        else:  # the help is over this screen: the file is there when it closes
            self._files.append(path)
            self._go_to(str(path))
            self.query_one(Tabs).active = _HERE
            self._refresh()

    def _look_into(self, wanted: tuple[Path, str] | None) -> None:
        if wanted:
            folder, build = wanted
            self._begin(
                f"Looking at {folder.name}", lambda tell: acquiring.plan(folder, build, tell), self._offer_build
            )

    def _offer_build(self, plan: Plan) -> None:
        offer = Offer(acquiring.offer_of_plan(plan))
        self.app.push_screen(offer, lambda yes: self._make(plan) if yes else None)

    def _make(self, plan: Plan) -> None:
        self._begin(plan.build, lambda tell: acquiring.make(plan, tell), self._arrived, keeps=KEEPS)

    def action_remove(self) -> None:
        entry = self._entry
        if entry is None or self._is_busy():
            return
        if entry.is_used:
            self._say(f"{entry.label} is in use; open another one first", is_error=True)
            return
        label = entry.label
        question = Confirm(f"Remove {label}?", note="Its file is deleted from this disk.", yes="Remove")
        self.app.push_screen(question, lambda yes: self._remove(label) if yes else None)

    def _remove(self, label: str) -> None:
        self._begin(f"Removing {label}", lambda _tell: acquiring.delete(label), self._removed)

    def _removed(self, said: str) -> None:
        self._refresh()
        if self._model:  # what the engine has said of it may have been about the file that is gone
            self._answers.pop(self._model.name, None)
            self._ask(self._model.name)
        self._say(said)

    def _arrived(self, build: Build) -> None:
        """A build is here now: the cursor goes to it."""
        name = build.manifest.name
        self._go_to(build.label)
        if not self._model or self._model.name != name:
            self.query_one(Tabs).active = _HERE
        self._answers.pop(name, None)
        self._ask(name, first=True)
        self._refresh()
        self._say(f"{build.label} is here. Enter opens a chat with it.")

    # -- work

    @property
    def _work(self) -> WorkPanel:
        return self.query_one(WorkPanel)

    def _is_busy(self) -> bool:
        if self._work.is_busy:
            self._say("Something is at work; Escape stops it", is_error=True)
        return self._work.is_busy

    def _begin(self, title: str, work: Callable[[Tell], T], done: Callable[[T], None], keeps: str = "") -> None:
        self._say("")
        self._is_led = False
        self._work.begin(title, work, done, keeps)

    @on(WorkPanel.Changed)
    def _changed(self, event: WorkPanel.Changed) -> None:
        if event.stopped or event.error:
            self._refresh()  # something may have begun
        if event.error:
            self._fail(event.error)
        elif event.stopped:
            self._say(event.stopped)
        self.refresh_bindings()

    def action_back(self) -> None:
        self.dismiss(None)

    def action_ask_stop(self) -> None:
        self._work.ask_stop()

    def action_stop(self) -> None:
        self._work.stop()
