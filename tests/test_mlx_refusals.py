"""What MLX is not even shown: folders that are damaged or too large, and what a model has not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from phi4local.backends import open_engine
from phi4local.backends.load_settings import Budget
from phi4local.conversation import Message
from phi4local.errors import DoesNotFit, FormatError, NotFound, UsageError
from phi4local.settings import nano_folder
from tests.checkpoints import write_checkpoint
from tests.shapes import MINI_TINY
from tests.test_engine import listen


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


def refused(folder: Path, state: Path, error: type[Exception]) -> None:
    with pytest.raises(error):
        open_engine(folder, state_folder=state)


def test_what_does_not_fit_is_refused_with_what_would(mini: Path, state: Path) -> None:
    budget = Budget(1 << 30, (1 << 27) + (32 << 20))  # an eighth stays free
    with pytest.raises(DoesNotFit, match="can be used") as refusal:
        open_engine(mini, state_folder=state, context_tokens=16384, budget=lambda: budget)
    option, context = refusal.value.options
    assert option == "--context"
    engine = open_engine(mini, state_folder=state, context_tokens=int(context), budget=lambda: budget)
    took = engine.info.load.took["CPU"]
    predicted = engine.info.load.predicted["CPU"]
    engine.close()
    assert took.kv_bytes == predicted.kv_bytes
    assert abs(took.weights_bytes - predicted.weights_bytes) < 4096


def test_a_context_or_cache_that_the_model_has_not(state: Path) -> None:
    with pytest.raises(UsageError, match="trained for"):
        open_engine(nano_folder(), state_folder=state, context_tokens=1 << 20)
    with pytest.raises(UsageError, match="no cache of type q5_1"):
        open_engine(nano_folder(), state_folder=state, kv_type="q5_1")


def test_damaged_folders(tmp_path: Path, state: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", MINI_TINY, shards=1)
    good = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    shard = next(name for name in good if name.endswith(".safetensors"))
    config = json.loads(good["config.json"])
    damages = {
        "config.json": [b"{}", b"[", json.dumps(config | {"hidden_size": 512}).encode()],
        shard: [good[shard][:-100], b"", b"\xff" * 64],
        "tokenizer.json": [b"{}", b""],
    }
    for name, versions in damages.items():
        for data in versions:
            (folder / name).write_bytes(data)
            refused(folder, state, FormatError)
        (folder / name).write_bytes(good[name])
    (folder / shard).unlink()
    refused(folder, state, NotFound)


def test_a_template_that_does_not_end(tmp_path: Path, state: Path) -> None:
    shutil.copytree(nano_folder(), tmp_path / "nano")
    path = tmp_path / "nano" / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["chat_template"] = "{% for a in range(999999) %}{% for b in range(999999) %}{% endfor %}{% endfor %}"
    path.write_text(json.dumps(values), encoding="utf-8")
    engine = open_engine(tmp_path / "nano", state_folder=state)
    with pytest.raises(FormatError):
        listen(engine.open_session(), [Message("user", "Hi")])
    engine.close()
