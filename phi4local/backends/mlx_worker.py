"""MLX's process: `phi4local.backends.worker` with a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from phi4local.backends.load_settings import Budget, LoadSettings
from phi4local.backends.mlx_folder import read_folder
from phi4local.backends.mlx_model import MlxModel, Timeline, context_sizes
from phi4local.backends.mlx_placing import loaded, place_folder, wire
from phi4local.backends.mlx_vocab import FolderVocabulary
from phi4local.backends.prompt import Prompts
from phi4local.backends.worker import Desk, Loaded, Request, Speaker, run
from phi4local.engine import FinishReason, GenerationOptions
from phi4local.errors import FormatError
from phi4local.template import ChatTemplate


class MlxDesk(Desk):
    """Serves with MLX."""

    def load(self, request: Request) -> Loaded:
        settings = LoadSettings(**request["settings"])
        folder = read_folder(Path(settings.path))
        sizes = context_sizes(settings, folder)
        placed = place_folder(settings, Budget(**request["budget"]), folder, sizes[-1])
        self.events.send({"placed": placed.use.total_bytes})
        name, identity = folder.path.name, folder.identity()
        vocabulary = FolderVocabulary(folder.tokenizer, folder.path)
        template = folder.tokenizer.chat_template
        if not template:
            raise FormatError(f"`{name}` carries no chat template", hint="Get a build that has one")
        prompts = Prompts(ChatTemplate(template, name=name, bos=vocabulary.bos, eos=vocabulary.eos), vocabulary)
        model = MlxModel(settings, folder)
        self._timeline = Timeline(model, self.cancelled)
        wire(placed, model, self._timeline)
        facts = {
            "description": folder.description,
            "context_sizes": sizes,
            "load": asdict(loaded(placed, model, self._timeline)),
        }
        return Loaded(name, facts, vocabulary, self._timeline, prompts, model.state_key(identity))

    def say_tokens(self, options: GenerationOptions, speaker: Speaker, said: list[int]) -> FinishReason:
        if options.max_tokens == 0:
            return "length"
        with closing(self._timeline.say(options)) as tokens:
            return self._say(tokens, speaker, said, options.max_tokens)

    def _say(self, tokens: Iterator[int], speaker: Speaker, said: list[int], most: int | None) -> FinishReason:
        for token in tokens:
            piece = self.piece(token)
            if piece.ends:
                return "stop"
            said.append(token)
            speaker.say(piece)
            if self.cancelled():
                return "cancelled"
            if len(said) == most:
                return "length"
        return "length"

    def generate(self, count: int) -> None:
        with closing(self._timeline.say(GenerationOptions())) as tokens:
            for _ in islice(tokens, count):
                pass


def main() -> None:
    """Run the process."""
    run(MlxDesk)


if __name__ == "__main__":
    main()
