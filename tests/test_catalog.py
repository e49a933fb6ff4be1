"""What a folder of weights is called: by its shape, then by its folder's name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from phi4local.catalog import find_model, model_name, models, origin, slug
from phi4local.errors import FormatError
from quant.config import Config, read_config
from tests import shapes
from tests.checkpoints import write_configs

REVISION = "6fbb3d3bbe726c99b4188087b4deeec1bceac5ae"


def config(shape: shapes.Shape, folder: Path) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    write_configs(folder, shape)
    return read_config(folder)


NAMES = [
    (shapes.PHI4_14B_SHAPE, "phi-4", "phi-4"),
    (shapes.PHI4_14B_SHAPE, "my weights", "my-weights"),
    (shapes.PHI4_14B_SHAPE, "Phi-4-medical-uncensored", "phi-4-medical-uncensored"),
    (shapes.REASONING_14B_SHAPE, "Phi-4-reasoning", "phi-4-reasoning"),
    (shapes.REASONING_14B_SHAPE, "Phi-4-reasoning-plus", "phi-4-reasoning-plus"),
    (shapes.MINI_SHAPE, "Phi-4-mini-instruct", "phi-4-mini"),
    (shapes.MINI_SHAPE, "Phi-4-mini", "phi-4-mini"),
    (shapes.MINI_REASONING_SHAPE, "Phi-4-mini-reasoning", "phi-4-mini-reasoning"),
    (shapes.PHI4_TINY, "My Tiny_Phi (v2)", "my-tiny-phi-v2"),
]


@pytest.mark.parametrize(("shape", "folder", "name"), NAMES, ids=lambda value: str(getattr(value, "name", value)))
def test_names(shape: shapes.Shape, folder: str, name: str, tmp_path: Path) -> None:
    assert model_name(tmp_path / folder, config(shape, tmp_path / folder)) == name


def test_a_folder_of_the_hubs_cache_tells_its_origin(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--microsoft--Phi-4-reasoning-plus" / "snapshots" / REVISION
    found = config(shapes.REASONING_14B_SHAPE, folder)
    assert dataclasses.astuple(origin(folder)) == ("microsoft/Phi-4-reasoning-plus", REVISION)
    assert model_name(folder, found) == "phi-4-reasoning-plus"
    assert origin(tmp_path).repository is None
    other = tmp_path / "hub" / "models--acme--SuperMath" / "snapshots" / REVISION
    assert model_name(other, config(shapes.REASONING_14B_SHAPE, other)) == "supermath"


def test_every_model_is_found_by_its_repository(tmp_path: Path) -> None:
    for model in models():
        spelling = model.repository.split("/")[1].lower()
        assert spelling in model.spellings


FLASH = """
[flash.small]
hidden = 2560
intermediate = 10240
layers = 32
heads = 40
kv_heads = 20
vocabulary = 200064
context = 262144
sliding_window = 512
epsilon = 1e-5
d_state = 16
d_conv = 4
expand = 2
dt_rank = 160
tied = true
[models.mine]
repository = "acme/mine"
flash = "small"
"""


def test_a_users_flash_model_has_the_shape_of_ours(home: Path) -> None:
    home.mkdir()
    (home / "catalog.toml").write_text(FLASH)
    mine, ours = find_model("mine"), find_model("phi-4-mini-flash-reasoning")
    assert mine
    assert ours
    assert (mine.config, mine.shape) == (None, ours.flash)
    assert mine.flash is not None


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("layers = 32", "layers = 30", "do not divide"),
        ("heads = 40\n", "heads = 41\n", "do not divide"),
        ("d_conv = 4\n", "", "`d_conv`"),
        ("d_conv = 4\n", "d_conv = 0\n", "`d_conv`"),
        ("dt_rank = 160\n", 'dt_rank = "auto"\n', "`dt_rank`"),
        ("tied = true", "tide = true", "tide"),
        ('flash = "small"', 'flash = "smaller"', "`flash`"),
        ('flash = "small"', 'flash = "small"\nshape = "phi-4"', "`flash`"),
    ],
)
def test_a_wrong_flash_shape_is_refused(old: str, new: str, word: str, home: Path) -> None:
    home.mkdir()
    (home / "catalog.toml").write_text(FLASH.replace(old, new))
    with pytest.raises(FormatError, match=word):
        models()


@pytest.mark.parametrize("text", ["..", "", "a/b", "-rf", "\x1b[2J", "Ünïcode", "." * 50])
def test_slugs_are_safe(text: str) -> None:
    result = slug(text)
    assert result
    assert not set(result) - set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    assert result[0] not in ".-"
