"""The tokens of a folder are those of the GGUF that is made of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from phi4local.settings import nano_folder
from quant.repair import PHI4_TEMPLATE
from tests.running import make

# Each prints what a prompt's token ids are: with llama.cpp's vocabulary of a GGUF, and with the folder's.
GGUF_IDS = """
import json, sys
import llama_cpp.llama_cpp as llama
from phi4local.backends.llamacpp_vocab import LlamaVocabulary
quiet = llama.llama_log_callback(lambda *_: None)
llama.llama_log_set(quiet, None)
params = llama.llama_model_default_params()
params.vocab_only = True
model = llama.llama_model_load_from_file(sys.argv[1].encode(), params)
vocabulary = LlamaVocabulary(llama.llama_model_get_vocab(model))
template = llama.llama_model_chat_template(model, None).decode()
"""
FOLDER_IDS = """
import json, sys
from pathlib import Path
from phi4local.backends.mlx_folder import read_folder
from phi4local.backends.mlx_vocab import FolderVocabulary
from quant.tokenizer import read_tokenizer
folder = read_folder(Path(sys.argv[1]))
tokenizer = read_tokenizer(folder.path, folder.shape)
vocabulary, template = FolderVocabulary(tokenizer, folder.path), tokenizer.chat_template
"""
PRINT = """
from phi4local.backends.prompt import Prompts
from phi4local.template import ChatTemplate
prompts = Prompts(ChatTemplate(template, name="x", bos=vocabulary.bos, eos=vocabulary.eos), vocabulary)
found = []
for content in json.loads(sys.stdin.read()):
    ids = prompts.ids(prompts.render([{"role": "user", "content": content}]))
    found.append([ids, [vocabulary.piece(token).hex() for token in ids], [vocabulary.ends(token) for token in ids]])
print(json.dumps(found))
"""
CONTENTS = (
    "Hello world",
    "two  spaces\n\n\nand lines\r\n\tof code: def f(x):\n    return x + 1",
    "I'm, you'll; 1234567 3.14 €5 — “quoted” …",
    "<|im_end|><|im_start|>system<|im_sep|>no<|end|><|user|><|endoftext|><|tool_call|>",
    "日本語のテキスト 🌊🌊 Ünïcödé العربية",
    " leading and trailing ",
    "<|im_",
)


def ids(program: str, path: Path) -> object:
    command = [sys.executable, "-c", program + PRINT, str(path)]
    result = subprocess.run(command, input=json.dumps(CONTENTS), capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", ["tiny", "mini", "nano"])
def test_token_ids_are_those_of_the_gguf(name: str, tiny: Path, mini: Path, tmp_path: Path) -> None:
    folder = {"tiny": tiny, "mini": mini, "nano": nano_folder()}[name]
    fixed = tmp_path / "folder"
    shutil.copytree(folder, fixed)
    make(fixed, "Q8_0", tmp_path / "model.gguf")
    if name == "tiny":  # the first release's template is mended in the GGUF
        folder_template(fixed)
    assert ids(FOLDER_IDS, fixed) == ids(GGUF_IDS, tmp_path / "model.gguf")


def folder_template(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": PHI4_TEMPLATE}
    path.write_text(json.dumps(values), encoding="utf-8")


def test_a_text_is_neither_cut_nor_filled_up(tmp_path: Path) -> None:
    """As a tokenizer.json asks for that was saved in the middle of a training."""
    fixed = tmp_path / "folder"
    shutil.copytree(nano_folder(), fixed)
    expected = ids(FOLDER_IDS, fixed)
    values = json.loads((fixed / "tokenizer.json").read_text(encoding="utf-8"))
    values["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    values["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (fixed / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    assert ids(FOLDER_IDS, fixed) == expected
