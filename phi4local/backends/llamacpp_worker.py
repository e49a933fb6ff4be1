"""llama.cpp's process: `phi4local.backends.worker` with a GGUF file."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path

import llama_cpp.llama_cpp as llama

from phi4local.backends.llamacpp_model import LlamaModel, NativeLog, Timeline, make_sampler, state_key
from phi4local.backends.load_settings import Budget, LoadSettings
from phi4local.backends.placing import loaded, place_file
from phi4local.backends.prompt import Prompts
from phi4local.backends.state_file import file_identity
from phi4local.backends.worker import Desk, Events, Inbox, Loaded, Request, run
from phi4local.engine import GenerationOptions
from phi4local.errors import FormatError
from phi4local.template import ChatTemplate


class LlamaDesk(Desk):
    """Serves with llama.cpp."""

    def __init__(self, inbox: Inbox, events: Events) -> None:
        super().__init__(inbox, events)
        self._log = NativeLog(2)

    @property
    def errors(self) -> Sequence[str]:
        return self._log.errors

    def listen(self) -> None:
        self._log.listen()

    def load(self, request: Request) -> Loaded:
        placed = place_file(LoadSettings(**request["settings"]), Budget(**request["budget"]), self._log.errors)
        self.events.send({"placed": placed.placement.total.total_bytes})
        self._log.listen()  # what was only asked is no complaint
        path = Path(placed.settings.path)
        identity = file_identity(path)  # as it is now: it may be replaced while it is in use
        model = LlamaModel(placed.settings, self._log)
        self._timeline = Timeline(model, self.cancelled)
        facts = {
            "description": model.description,
            "context_sizes": model.context_sizes,
            "load": asdict(loaded(placed, self._timeline.context, model.context_sizes[0])),
        }
        prompts = Prompts(_chat_template(model, path.name), model.vocabulary)
        return Loaded(path.name, facts, model.vocabulary, self._timeline, prompts, state_key(model, identity))

    def tokens(self, options: GenerationOptions) -> Generator[int]:
        timeline, sampler = self._timeline, make_sampler(options)
        try:
            while True:
                token = llama.llama_sampler_sample(sampler, timeline.context, -1)
                yield token
                if not timeline.append(token):
                    return
        finally:
            llama.llama_sampler_free(sampler)


def _chat_template(model: LlamaModel, name: str) -> ChatTemplate:
    if not model.template:
        raise FormatError(f"`{name}` carries no chat template", hint="Get a build that has one")
    return ChatTemplate(model.template, name=name, bos=model.vocabulary.bos, eos=model.vocabulary.eos)


def main() -> None:
    """Run the process."""
    run(LlamaDesk)


if __name__ == "__main__":
    main()
