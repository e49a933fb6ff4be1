"""What is set right in the small files of an MLX folder, and what is left alone; nothing here needs MLX."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from quant.mlx_repair import Folder, finished_files, in_16_bits, mended_folder
from quant.repair import PHI4_TEMPLATE
from quant.source import read_source
from tests import shapes
from tests.checkpoints import write_sparse_checkpoint
from tests.flash_checkpoints import FLASH_TINY, write_flash_checkpoint

QUANTIZATION = {"group_size": 64, "bits": 4, "mode": "affine"}
RELEASE = shapes.PHI4_RELEASE_TINY
END, TEXT, PAD = (RELEASE.token_id(text) for text in ("<|im_end|>", "<|endoftext|>", "<|dummy_85|>"))


def write(folder: Path, shape: shapes.Shape, **changes: dict[str, Any]) -> Path:
    """A folder with other values in some of its files (`config`: {...}); a value of None takes the key away."""
    write_sparse_checkpoint(folder, shape, shards=1)
    for stem, values in changes.items():
        path = folder / f"{stem}.json"
        mixed = json.loads(path.read_bytes()) | values
        path.write_text(json.dumps({key: value for key, value in mixed.items() if value is not None}))
    return folder


def mended(folder: Path) -> Folder:
    return mended_folder(read_source(folder, for_mlx=True))


def changes(folder: Folder) -> dict[str, tuple[Any, Any]]:
    assert all(repair.why for repair in folder.repairs)
    return {repair.key: (repair.before, repair.after) for repair in folder.repairs}


def test_the_first_release(tmp_path: Path) -> None:
    folder = mended(write(tmp_path / "w", RELEASE))
    stops = f"[{END}, {TEXT}]"
    assert changes(folder) == {
        "config.json eos_token_id": (TEXT, END),
        "config.json pad_token_id": (TEXT, PAD),
        "generation_config.json pad_token_id": (TEXT, PAD),
        "generation_config.json eos_token_id": (f"[{TEXT}, {END}]", stops),
        "tokenizer_config.json eos_token": ("<|endoftext|>", "<|im_end|>"),
        "tokenizer_config.json pad_token": ("<|endoftext|>", "<|dummy_85|>"),
        "special_tokens_map.json eos_token": ("<|endoftext|>", "<|im_end|>"),
        "special_tokens_map.json pad_token": ("<|endoftext|>", "<|dummy_85|>"),
        "tokenizer_config.json chat_template": (RELEASE.template, PHI4_TEMPLATE),
    }
    files = {name: json.loads(data) for name, data in finished_files(folder, QUANTIZATION).items()}
    assert files["config.json"]["quantization"] == files["config.json"]["quantization_config"] == QUANTIZATION
    assert files["generation_config.json"]["eos_token_id"] == [END, TEXT]
    assert files["special_tokens_map.json"]["eos_token"] == "<|im_end|>"
    assert finished_files(folder, {})["tokenizer.json"] == (tmp_path / "w/tokenizer.json").read_bytes()
    assert "quantization" not in json.loads(finished_files(folder, {})["config.json"])


@pytest.mark.parametrize(("shape", "end"), [(shapes.PHI4_TINY, "<|im_end|>"), (shapes.MINI_TINY, "<|end|>")])
def test_a_sound_copy_needs_the_stops_at_most(shape: shapes.Shape, end: str, tmp_path: Path) -> None:
    folder = mended(write(tmp_path / "w", shape))
    assert changes(folder).keys() <= {"generation_config.json eos_token_id"}
    stops = [shape.token_id(end), shape.token_id("<|endoftext|>")]
    assert folder.values["generation_config.json"]["eos_token_id"] == stops


def test_without_a_generation_config(tmp_path: Path) -> None:
    """Plain mlx-lm would run past <|end|>: no other file says that a turn ends there."""
    source = write(tmp_path / "w", shapes.MINI_TINY)
    (source / "generation_config.json").unlink()
    (source / "special_tokens_map.json").unlink()
    folder = mended(source)
    stops = [shapes.MINI_TINY.token_id(text) for text in ("<|end|>", "<|endoftext|>")]
    assert folder.values["generation_config.json"] == {"eos_token_id": stops}
    assert changes(folder) == {"generation_config.json eos_token_id": (None, str(stops))}
    assert "special_tokens_map.json" not in finished_files(folder, {})


@pytest.mark.parametrize("shape", [shapes.MINI_TINY_V5, shapes.PHI4_TINY_V5], ids=["mini", "phi-4"])
def test_the_newer_spelling(shape: shapes.Shape, tmp_path: Path) -> None:
    older = dataclasses.replace(shape, rope_spelling="rope_scaling")
    wanted = mended(write(tmp_path / "v4", older)).config
    gone = {"partial_rotary_factor": None, "original_max_position_embeddings": None}
    for name, changed in (("v5", {}), ("bare", gone)):
        config = mended(write(tmp_path / name, shape, config=changed)).config
        assert config["rope_theta"] == wanted["rope_theta"]
        assert config.get("partial_rotary_factor", 1.0) == wanted.get("partial_rotary_factor", 1.0)
        assert config.get("rope_scaling") == wanted.get("rope_scaling")
        if shape.long_factor:
            assert config["original_max_position_embeddings"] == wanted["original_max_position_embeddings"]


def test_a_scaling_without_the_key_that_mlx_lm_wants(tmp_path: Path) -> None:
    source = write(tmp_path / "w", shapes.MINI_TINY)
    scaling = json.loads((source / "config.json").read_bytes())["rope_scaling"]
    renamed = {("rope_type" if key == "type" else key): value for key, value in scaling.items()}
    folder = mended(write(tmp_path / "renamed", shapes.MINI_TINY, config={"rope_scaling": renamed}))
    assert folder.config["rope_scaling"]["type"] == "longrope"
    assert folder.config["rope_scaling"]["long_factor"] == scaling["long_factor"]


def test_nothing_names_code_or_a_place(tmp_path: Path) -> None:
    code = {"auto_map": {"AutoTokenizer": "Xenova/gpt-4o"}, "_name_or_path": "/home/somebody/phi"}
    folder = mended(write(tmp_path / "w", shapes.MINI_TINY, config=code, tokenizer_config=code))
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in folder.values[name]
        assert changes(folder)[f"{name} auto_map"][1] == "none"
    assert "_name_or_path" not in folder.config


def test_an_empty_map_names_no_code(tmp_path: Path) -> None:
    empty = {"auto_map": {}}
    folder = mended(write(tmp_path / "w", shapes.MINI_TINY, config=empty, tokenizer_config=empty))
    assert not any("auto_map" in repair.key for repair in folder.repairs)
    assert not any("auto_map" in folder.values[name] for name in ("config.json", "tokenizer_config.json"))


def test_16_bits(tmp_path: Path) -> None:
    """What a source says of its type, its tensors' types, and what becomes of both."""
    cases: list[tuple[dict[str, Any], str, tuple[Any, ...] | None]] = [
        ({"torch_dtype": "float32"}, "F32", ("torch_dtype", "float32", "bfloat16")),
        ({"dtype": "float32"}, "BF16", ("dtype", "float32", "bfloat16")),
        ({}, "F32", ("torch_dtype", None, "bfloat16")),
        ({"dtype": "float16"}, "F16", None),
        ({"torch_dtype": "bfloat16"}, "F32", None),
        ({}, "F16", None),
    ]
    for number, (stated, dtype, wanted) in enumerate(cases):
        source = write(tmp_path / str(number), shapes.MINI_TINY, config={"torch_dtype": None} | stated)
        folder, _ = in_16_bits(mended(source), {"a": dtype, "layers.0.D": "F32"}, is_whole=False)
        told = [
            (repair.key.split()[1], repair.before, repair.after) for repair in folder.repairs if "dtype" in repair.key
        ]
        assert told == ([wanted] if wanted else [])
        assert {key: folder.config.get(key) for key in stated} == (
            stated if wanted is None else dict.fromkeys(stated, "bfloat16")
        )


def test_a_class_that_older_versions_do_not_know(tmp_path: Path) -> None:
    folder = mended(write(tmp_path / "w", shapes.MINI_TINY, tokenizer_config={"tokenizer_class": "TokenizersBackend"}))
    assert changes(folder)["tokenizer_config.json tokenizer_class"] == ("TokenizersBackend", "GPT2Tokenizer")
    assert folder.values["tokenizer_config.json"]["tokenizer_class"] == "GPT2Tokenizer"


def test_the_template_stays_where_it_was(tmp_path: Path) -> None:
    in_file = dataclasses.replace(RELEASE, template_in_file=True)
    folder = mended(write(tmp_path / "file", in_file))
    assert folder.copies["chat_template.jinja"].decode() == PHI4_TEMPLATE
    assert "chat_template" not in folder.values["tokenizer_config.json"]
    assert changes(folder)["chat_template.jinja"] == (RELEASE.template, PHI4_TEMPLATE)
    named = [{"name": "default", "template": RELEASE.template}, {"name": "tools", "template": "{{ 1 }}"}]
    folder = mended(write(tmp_path / "named", RELEASE, tokenizer_config={"chat_template": named}))
    templates = folder.values["tokenizer_config.json"]["chat_template"]
    assert templates == [{"name": "default", "template": PHI4_TEMPLATE}, named[1]]


def test_a_template_that_mlx_lm_would_not_find(tmp_path: Path) -> None:
    source = write(tmp_path / "w", shapes.MINI_TINY, tokenizer_config={"chat_template": None})
    (source / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    assert mended(source).values["tokenizer_config.json"]["chat_template"] == "{{ 1 }}"


def test_flash(tmp_path: Path) -> None:
    """Under its own class transformers 5 would not take the pre-tokenizer from tokenizer.json."""
    folder = mended_folder(read_source(write_flash_checkpoint(tmp_path / "w", FLASH_TINY), for_mlx=True))
    assert changes(folder).keys() == {"tokenizer_config.json tokenizer_class", "config.json auto_map"}
    assert folder.values["tokenizer_config.json"]["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    source = write(tmp_path / "w", RELEASE)
    assert finished_files(mended(source), QUANTIZATION) == finished_files(mended(source), QUANTIZATION)
