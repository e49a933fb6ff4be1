"""llama.cpp's process: `phi4local.backends.worker` with a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import llama_cpp.llama_cpp as llama

from phi4local.backends.llamacpp_model import LlamaModel, NativeLog, Timeline, make_sampler, state_key
from phi4local.backends.load_settings import Budget, LoadSettings
from phi4local.backends.placing import loaded, place_file
from phi4local.backends.prompt import Prompts
from phi4local.backends.state_file import file_identity
from phi4local.backends.worker import Desk, Events, Inbox, Loaded, Request, Speaker, run
from phi4local.engine import FinishReason, GenerationOptions
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

    def say_tokens(self, options: GenerationOptions, speaker: Speaker, said: list[int]) -> FinishReason:
        sampler = make_sampler(options)
        try:
            return self._say(sampler, speaker, said, options.max_tokens)
        finally:
            llama.llama_sampler_free(sampler)

    def _say(self, sampler: object, speaker: Speaker, said: list[int], most: int | None) -> FinishReason:
        """The hot loop. A token is on its way before the next one is computed."""
        timeline = self._timeline
        while len(said) != most:
            token = llama.llama_sampler_sample(sampler, timeline.context, -1)
            piece = self.piece(token)
            if piece.ends:
                return "stop"
            said.append(token)
            speaker.say(piece)
            if self.cancelled():
                return "cancelled"
            if len(said) != most and not timeline.append(token):
                return "length"
        return "length"

    def generate(self, count: int) -> None:
        sampler = make_sampler(GenerationOptions())
        for _ in range(count):
            self._timeline.append(llama.llama_sampler_sample(sampler, self._timeline.context, -1))
        llama.llama_synchronize(self._timeline.context)
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
