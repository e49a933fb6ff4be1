"""What MLX is not even shown: folders that are damaged or too large, and what a model has not."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from phi4local.actions.chat import locate
from phi4local.backends import open_engine
from phi4local.backends.load_settings import Budget
from phi4local.conversation import Message
from phi4local.engine import GenerationOptions
from phi4local.errors import DoesNotFit, FormatError, NotFound, UsageError
from phi4local.settings import nano_folder
from tests.checkpoints import write_checkpoint
from tests.running import json_of, phi4local
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


# --- what is only odd ------------------------------------------------------------------------------------------------


def test_numbers_of_four_bytes_are_counted(tmp_path: Path, state: Path) -> None:
    folder = write_checkpoint(tmp_path / "wide", replace(MINI_TINY, dtype="float32"), shards=1)
    engine = open_engine(folder, state_folder=state, context_tokens=1024)
    load = engine.info.load
    engine.close()
    assert load.took["CPU"].kv_bytes == load.predicted["CPU"].kv_bytes == 2 * 4 * 4 * 32 * 1024 * 4


def test_weights_that_are_no_numbers_are_told(tmp_path: Path, state: Path) -> None:
    folder = write_checkpoint(tmp_path / "damaged", MINI_TINY, shards=1)
    path = next(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\xff" * 4096  # NaN in bfloat16
    path.write_bytes(data)
    engine = open_engine(folder, state_folder=state)
    try:
        with pytest.raises(FormatError, match="computes no numbers"):
            listen(engine.open_session(), [Message("user", "Hi")])
    finally:
        engine.close()


def test_a_pipe_is_not_waited_for(tmp_path: Path, state: Path) -> None:
    shutil.copytree(nano_folder(), tmp_path / "nano")
    (tmp_path / "nano" / "generation_config.json").unlink()
    os.mkfifo(tmp_path / "nano" / "generation_config.json")
    begun = time.monotonic()
    refused(tmp_path / "nano", state, FormatError)
    assert time.monotonic() - begun < 15


def test_more_candidates_than_there_are_tokens(state: Path) -> None:
    engine = open_engine(nano_folder(), state_folder=state)
    try:
        for top_k in (1024, 5000):
            options = GenerationOptions(temperature=1.0, top_k=top_k, max_tokens=4)
            assert listen(engine.open_session(), [Message("user", "1 + 1")], options).stats.generation_tokens
    finally:
        engine.close()


@pytest.fixture
def build(home: Path) -> Path:
    """The built-in model for MLX, in the store."""
    json_of(phi4local("quantize", nano_folder(), "--to", "mlx-8bit", "--json"))
    return home / "models" / "phi4-nano" / "phi4-nano-mlx-8bit"


def test_what_a_file_manager_leaves_is_no_damage(build: Path) -> None:
    (build / ".DS_Store").write_bytes(b"x")
    assert phi4local("chat", "phi4-nano", "-p", "12 + 34").stdout.strip() == "12 + 34 = 46."
    (build / "model.safetensors").write_bytes(b"x")
    told = phi4local("chat", "phi4-nano", "-p", "12 + 34")
    assert told.returncode == 5
    assert "hint: phi4local verify phi4-nano:mlx-8bit" in told.stderr


def test_a_folder_by_its_path(build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(build, tmp_path / "b\nb")
    monkeypatch.chdir(tmp_path / "b\nb")
    for path in (".", "./", str(build), f"{build}/"):
        located = locate(path)
        assert located.path.samefile(path)
        assert located.label in ("b\\x0ab", build.name)
    monkeypatch.chdir(build.parent)
    with pytest.raises(NotFound) as error:
        locate(build.name)
    assert error.value.hint == f"phi4local chat ./{build.name}"
    (build / "config.json").write_bytes(b"{")
    with pytest.raises(FormatError, match="not valid JSON"):
        locate(str(build))
    (build / "config.json").unlink()
    with pytest.raises(NotFound, match=r"config\.json"):
        locate(str(build))
