"""MLX's process: `phi4local.backends.worker` with a folder."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path

from phi4local.backends.load_settings import Budget, LoadSettings
from phi4local.backends.mlx_folder import read_folder
from phi4local.backends.mlx_model import MlxModel, Timeline, context_sizes
from phi4local.backends.mlx_placing import loaded, place_folder, wire
from phi4local.backends.mlx_vocab import FolderVocabulary
from phi4local.backends.prompt import Prompts
from phi4local.backends.worker import Desk, Loaded, Request, run
from phi4local.engine import GenerationOptions
from phi4local.errors import FormatError
from phi4local.template import ChatTemplate
from quant.tokenizer import read_tokenizer


class MlxDesk(Desk):
    """Serves with MLX."""

    def load(self, request: Request) -> Loaded:
        settings = LoadSettings(**request["settings"])
        folder = read_folder(Path(settings.path))
        sizes = context_sizes(settings, folder)
        placed = place_folder(settings, Budget(**request["budget"]), folder, sizes[-1])
        self.events.send({"placed": placed.use.total_bytes})
        name, identity = folder.path.name, folder.identity()
        tokenizer = read_tokenizer(folder.path, folder.shape)
        vocabulary, template = FolderVocabulary(tokenizer, folder.path), tokenizer.chat_template
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

    def tokens(self, options: GenerationOptions) -> Generator[int]:
        return self._timeline.say(options)


def main() -> None:
    """Run the process."""
    run(MlxDesk)


if __name__ == "__main__":
    main()
