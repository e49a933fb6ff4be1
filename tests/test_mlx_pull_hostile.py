"""`phi4local pull NAME:mlx-... --from ready` where what was published is old, odd or broken."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub
from tests.mlx_pulling import SHARDS, check_whole, folder_of, get
from tests.pulling import MLX, OLD_END, catalog, client, publish_mlx
from tests.running import json_of

pytest.importorskip("mlx.core")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub's folder with an MLX build. Not to be changed."""
    folder = tmp_path_factory.mktemp("mlx-hub")
    publish_mlx(folder)
    return folder


def publish(published: Path, tmp_path: Path, change: Callable[[Path], None]) -> Hub:
    """A hub with another folder under the same name."""
    shutil.copytree(published / MLX, tmp_path / "hub" / MLX)
    change(tmp_path / "hub" / MLX)
    return Hub(tmp_path / "hub")


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def first_release(folder: Path) -> None:
    """As mlx-community's phi-4 builds were seen: the old end, and no generation_config.json."""
    edit(folder / "config.json", eos_token_id=OLD_END)
    (folder / "generation_config.json").unlink()


def test_a_folder_without_a_generation_config_gets_one(published: Path, home: Path, tmp_path: Path) -> None:
    with publish(published, tmp_path, first_release) as hub:
        user = client(hub, home, catalog(repository=MLX))
        found = json_of(get(user))
        check_whole(user, hub, found)
        keys = {repair["key"]: repair for repair in found["repairs"]}
        assert keys["config.json eos_token_id"]["from"] == OLD_END
        assert keys["generation_config.json eos_token_id"]["from"] is None
        assert "generation_config.json" not in {file["name"] for file in found["source"]["files"]}


def one_shard(folder: Path) -> None:
    """All tensors in one file, beside another that nothing speaks of."""
    import mlx.core as core

    tensors = {name: array for shard in SHARDS for name, array in core.load(str(folder / shard)).items()}
    core.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    (folder / "model.safetensors.index.json").unlink()
    (folder / SHARDS[0]).unlink()


def test_without_an_index_there_is_one_file_of_weights(published: Path, home: Path, tmp_path: Path) -> None:
    with publish(published, tmp_path, one_shard) as hub:
        user = client(hub, home, catalog(repository=MLX))
        names = {file["name"] for file in json_of(get(user))["files"]}
        assert [name for name in names if name.endswith(".safetensors")] == ["model.safetensors"]
        assert hub.sent_bytes() == (hub.root / MLX / "model.safetensors").stat().st_size


def other_name(folder: Path) -> None:
    """A tensor's name in the header, of the same length."""
    shard = folder / SHARDS[0]
    shard.write_bytes(shard.read_bytes().replace(b"model.layers.0.", b"model.layers.9.", 1))


def longer_header(folder: Path) -> None:
    shard = folder / SHARDS[0]
    data = shard.read_bytes()
    shard.write_bytes(struct.pack("<Q", len(data)) + data[8:])


WRONG = [
    ("another size", lambda folder: edit(folder / "config.json", hidden_size=512), 5, "config.json"),
    ("more layers", lambda folder: edit(folder / "config.json", num_hidden_layers=5), 5, "is missing"),
    (
        "other bits",
        lambda folder: edit(folder / "config.json", quantization={"bits": 8, "group_size": 64}),
        5,
        "config.json calls for",
    ),
    (
        "no bits",
        lambda folder: edit(folder / "config.json", quantization={"bits": "4"}, quantization_config=None),
        5,
        "is packed",
    ),
    ("another name", other_name, 5, "model.layers."),
    ("a header without end", longer_header, 5, "truncated"),
    ("no tokenizer", lambda folder: (folder / "tokenizer.json").unlink(), 3, "tokenizer.json"),
    ("no weights", lambda folder: [(folder / name).unlink() for name in SHARDS], 3, "no safetensors weights"),
    ("a shard is missing", lambda folder: (folder / SHARDS[1]).unlink(), 5, f"names `{SHARDS[1]}`"),
    (
        "an index that leads elsewhere",
        lambda folder: edit(folder / "model.safetensors.index.json", weight_map={"x": "../../y.safetensors"}),
        5,
        "not plain",
    ),
    ("no JSON", lambda folder: (folder / "config.json").write_text("{"), 5, "not valid JSON"),
]


@pytest.mark.parametrize(("change", "code", "word"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_is_no_sound_build_never_gets_a_name(
    change: Callable[[Path], None], code: int, word: str, published: Path, home: Path, tmp_path: Path
) -> None:
    with publish(published, tmp_path, change) as hub:
        user = client(hub, home, catalog(repository=MLX))
        refused = get(user)
        assert refused.returncode == code, refused.stderr
        assert word in refused.stderr
        assert "hint:" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert json_of(user.run("list", "--json")) == []
        assert not folder_of(user).exists()
        assert hub.sent_bytes() == 0 or word not in ("not plain", f"names `{SHARDS[1]}`", "no safetensors weights")
