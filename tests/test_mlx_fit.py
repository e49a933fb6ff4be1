"""What MLX builds take and where they go: the sizes against mlx-lm itself, the places on machines that are not here."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phi4local.actions import fit, fit_mlx
from phi4local.actions.fit import Fit
from phi4local.actions.fit_mlx import (
    ELSEWHERE,
    INSTALL,
    Asked,
    Ground,
    folder_row,
    ground_of,
    mlx_offer,
    mlx_room_bytes,
    mlx_rows,
    shape_of_folder,
)
from phi4local.actions.quantize import plan_build
from phi4local.backends.survey import Survey, Surveyed
from phi4local.cli.fit import show
from phi4local.fit import HOST, Placement, Room, Use
from phi4local.measured import Measured
from phi4local.recommend import BuildFit
from phi4local.speed import CARD_SHARE, Benchmark, Speed, Work
from phi4local.store import Manifest, write_manifest
from quant import mlx
from quant.config import Config, read_config
from quant.mlx import BUILDS, Recipe
from quant.mlx_size import compute_bytes, is_possible, kv_bytes, read_share, weights_bytes
from quant.names import source_shapes
from tests.checkpoints import write_configs
from tests.flash_checkpoints import FLASH_TINY, write_flash_checkpoint
from tests.machines import CONTEXT, config_of, model_of, read_machine, recommended
from tests.running import json_of, phi4local
from tests.shapes import PHI4_TINY
from ui.builds import model_entries

GIB = 1 << 30
PHI, MINI = config_of("phi-4"), config_of("phi-4-mini")
SHAPES = {
    "phi-4": PHI,
    "phi-4-mini": MINI,
    "rows that no groups fill": replace(
        PHI, hidden=192, intermediate=208, layers=9, heads=6, kv_heads=1, vocabulary=300
    ),
    "none in groups of 64": replace(MINI, hidden=160, intermediate=224, layers=10, heads=5, kv_heads=1, vocabulary=99),
}


def model_of_mlx(config: Config) -> Any:
    """mlx-lm's own model, of which no weight is computed."""
    core = pytest.importorskip("mlx.core")
    from mlx_lm.models import phi3

    arguments = {
        "model_type": "phi3",
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "intermediate_size": config.intermediate,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.rms_epsilon,
        "vocab_size": config.vocabulary,
        "tie_word_embeddings": config.tied,
    }
    model = phi3.Model(phi3.ModelArgs(**arguments))
    model.set_dtype(core.bfloat16)
    return model


def quantized(config: Config, recipe: Recipe) -> dict[str, int]:
    """Bytes of each tensor after mlx-lm's own quantization."""
    model = model_of_mlx(config)
    from mlx.utils import tree_flatten
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.utils import quantize_model

    if recipe.bits < 16:
        chosen = mixed_quant_predicate_builder(recipe.mixed, model, recipe.group) if recipe.mixed else None
        quantize_model(model, {}, recipe.group, recipe.bits, mode=recipe.mode, quant_predicate=chosen)
    return {name: value.nbytes for name, value in tree_flatten(model.parameters())}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sizes_are_mlx_lms_to_the_byte(shape: str, build: str) -> None:
    config = SHAPES[shape]
    sizes = quantized(config, BUILDS[build])
    assert weights_bytes(config, BUILDS[build]) == sum(sizes.values())
    table = sum(size for name, size in sizes.items() if name.startswith("model.embed_tokens."))
    read = sum(sizes.values()) - (0 if config.tied else table)
    assert read_share(config, BUILDS[build]) == pytest.approx(read / sum(sizes.values()))


def test_a_published_file_is_its_tensors_and_a_header() -> None:
    (ready,) = [one for one in model_of("phi-4-mini").ready["mlx-4bit"] if one.bytes]
    header_bytes = (ready.bytes or 0) - weights_bytes(MINI, BUILDS["mlx-4bit"])
    assert 0 < header_bytes < 200_000


def test_flash_has_shapes_and_no_mixed_recipes() -> None:
    flash = model_of("phi-4-mini-flash-reasoning").flash
    assert flash
    published = 7_706_608_640  # `total_size` of the repository's index
    assert weights_bytes(flash, BUILDS["mlx-bf16"]) == published
    assert [name for name, recipe in BUILDS.items() if not is_possible(flash, recipe)] == [
        name for name in BUILDS if "mixed" in name
    ]
    assert kv_bytes(flash, 8192) < kv_bytes(MINI, 8192) / 10


@pytest.mark.parametrize("build", ["mlx-4bit", "mlx-mxfp4", "mlx-bf16"])
def test_a_flash_build_is_planned_with_these_sizes(build: str, tmp_path: Path) -> None:
    write_flash_checkpoint(tmp_path / "flash", FLASH_TINY)
    plan = plan_build(tmp_path / "flash", build)
    planned = sum(stored.size_bytes for tensor in plan.tensors for stored in tensor.stored)
    assert weights_bytes(shape_of_folder(tmp_path / "flash"), BUILDS[build]) == planned


# -- on a Mac that is not here


def mlx_of(answer: Fit) -> dict[str, BuildFit]:
    return {row.build: row for row in answer.builds if row.format == "mlx"}


@pytest.fixture(scope="module")
def small_mac() -> Fit:
    """Metal may use 10.67 - 0.67 = 10.0 GiB, but of the main memory only 9.75 - 1 = 8.75 are usable."""
    return recommended(read_machine("mac-16gb"), "phi-4")


def test_every_build_has_a_row(small_mac: Fit) -> None:
    rows = mlx_of(small_mac)
    assert rows.keys() == BUILDS.keys()
    for build, row in rows.items():
        use = row.memory["MTL0"]
        assert [*row.memory] == ["MTL0"]
        assert use.weights_bytes == row.file_bytes == weights_bytes(PHI, BUILDS[build])
        assert use.kv_bytes == 2 * 40 * 10 * 128 * CONTEXT * 2
        assert (row.where == "none") == (use.total_bytes > 8.75 * GIB) == bool(row.short_bytes), build
        assert row.is_astray is False


def test_what_passes_the_limit_does_not_fit_and_says_the_number(small_mac: Fit) -> None:
    """4 bits: 7.68 + 1.56 of cache + 0.12 = 9.36 of 8.75; 3 bits: 5.97 + 1.56 + 0.12."""
    rows = mlx_of(small_mac)
    assert (rows["mlx-4bit"].where, rows["mlx-3bit"].where) == ("none", "gpu")
    assert rows["mlx-4bit"].note.startswith("does not fit: it needs 9.36")
    assert rows["mlx-4bit"].note.endswith("of the 8.75 GiB that Metal may use here now")
    most = rows["mlx-3bit"].most_context
    room = 8.75 * GIB - rows["mlx-3bit"].total.weights_bytes - rows["mlx-3bit"].total.compute_bytes
    assert most % 256 == 0
    assert most * 204_800 <= room < (most + 256) * 204_800


def test_speed_comes_from_the_memorys_bandwidth() -> None:
    answer = recommended(read_machine("mac-64gb"), "phi-4")
    row = mlx_of(answer)["mlx-8bit"]
    embedding = 100352 * 5120 * (8 + 0.5) / 8
    assert row.expected.generation_tps == pytest.approx(400e9 * CARD_SHARE / (row.file_bytes - embedding))
    assert "phi4local bench phi-4:mlx-8bit" in answer.recommendation.beside


def test_a_benchmark_of_each_format_decides() -> None:
    measured = [
        Benchmark("phi-4", "Q8_0", "gpu", Speed(), Speed(17.0)),
        Benchmark("phi-4", "mlx-8bit", "MLX on Metal", Speed(), Speed(19.0)),
        Benchmark("phi-4", "mlx-8bit", "MLX on the processor", Speed(), Speed(90.0)),
    ]
    answer = recommended(read_machine("mac-64gb"), "phi-4", measured=Measured("none", benchmarks=measured))
    assert answer.recommendation.build == "mlx-8bit"
    assert answer.recommendation.why.endswith("measured here: MLX 19 tok/s, GGUF 17 tok/s")
    rows = mlx_of(answer)
    assert (rows["mlx-8bit"].measured, rows["mlx-8bit"].expected) == (Speed(19.0), Speed(19.0))
    assert rows["mlx-4bit"].measured == Speed()


def test_the_limit_that_was_set_counts_where_no_engine_knows_it() -> None:
    report = read_machine("mac-64gb").report
    (card,) = report.gpus
    main = Room(HOST, 64 * GIB, 44 * GIB)
    for shared_bytes, usable in ((12 * GIB, 11.25 * GIB), (56 * GIB, 43 * GIB)):
        ground = ground_of(replace(report, gpus=(replace(card, shared_bytes=shared_bytes),)), [main])
        assert (ground.is_metal, ground.bandwidth) == (True, 400_000_000_000)
        for row in mlx_rows(Asked(PHI, CONTEXT, "f16", ground, "phi-4"), list(BUILDS), {}):
            assert (row.where == "gpu") == (row.total.total_bytes <= usable), row.build


def test_the_table_of_a_mac_fits_a_terminal(small_mac: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    show(small_mac, "phi-4")
    told = capsys.readouterr()
    table = [line for line in told.out.splitlines() if line.startswith((">", " ", "build"))]
    assert max(map(len, table)) <= 80
    assert sum("mlx-" in line for line in table) == len(BUILDS)
    assert re.search(r"mlx-[\w-]+: does not fit: it needs 8\.\d\d GiB of the 8\.75 GiB", told.err), told.err


def test_the_screen_of_models_offers_them_on_a_mac_only(small_mac: Fit) -> None:
    model = model_of("phi-4")
    entries = {entry.cells[0]: entry for entry in model_entries(model, [], {"phi-4": small_mac}, None)}
    assert entries.keys() >= BUILDS.keys()
    fitting = entries["mlx-3bit"]
    assert (fitting.label, fitting.cells[2], fitting.cells[6]) == ("phi-4:mlx-3bit", "3.5", "made here")
    assert "-nowhere" in entries["mlx-8bit"].marks
    elsewhere = recommended(read_machine("laptop-16gb-iris"), "phi-4")
    assert not any("mlx" in entry.cells[0] for entry in model_entries(model, [], {"phi-4": elsewhere}, None))


# -- on this machine


def test_a_cache_may_be_quantized_in_the_ways_that_mlx_knows() -> None:
    ground = Ground((Room(HOST, 64 * GIB, 64 * GIB),))
    for kv_type, bits in (("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)):
        (row,) = mlx_rows(Asked(PHI, 1000, kv_type, ground, "phi-4"), ["mlx-4bit"], {})
        assert row.total.kv_bytes == 2 * 40 * 10 * 128 * 1024 * bits / 8
    (row,) = mlx_rows(Asked(PHI, 1000, "q5_1", ground, "phi-4"), ["mlx-4bit"], {})
    assert (row.where, row.memory, row.note) == ("none", {}, "MLX keeps no cache of type q5_1")
    assert mlx.kv_bytes(PHI, 1) == 204_800


def test_elsewhere_it_is_said_where_they_run(home: Path) -> None:
    answer = json_of(phi4local("fit", "phi-4-mini", "--json"))
    rows = [build for build in answer["builds"] if build["format"] == "mlx"]
    if any(gpu["vendor"] == "apple" for gpu in answer["machine"]["gpus"]):
        pytest.skip("this is where MLX runs")
    assert {row["build"] for row in rows} == BUILDS.keys()
    assert all(row["note"].startswith(ELSEWHERE) or row["where"] == "none" for row in rows)
    assert answer["recommended"] is None or not answer["recommended"].startswith("mlx")
    assert all((INSTALL in row["note"]) != answer["mlx_installed"] for row in rows if row["where"] != "none")
    named = phi4local("fit", "phi-4-mini:mlx-4bit", "--context", "2048")
    assert named.returncode == 0
    assert ELSEWHERE in named.stderr
    assert "mlx-4bit fits wholly in the main memory with a context of 2048 tokens" in named.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model that mlx-lm has quantized and saved."""
    core = pytest.importorskip("mlx.core")
    from mlx.utils import tree_flatten
    from mlx_lm.utils import quantize_model

    write_configs(tmp_path, PHI4_TINY)
    model = model_of_mlx(read_config(tmp_path))
    quantize_model(model, {}, 32, 4)
    core.save_safetensors(
        str(tmp_path / "model.safetensors"), dict(tree_flatten(model.parameters())), metadata={"format": "mlx"}
    )
    return tmp_path


def test_a_folder_is_what_its_files_are(folder: Path, home: Path) -> None:
    answer = json_of(phi4local("fit", folder, "--json"))
    (build,) = answer["builds"]
    assert build["format"] == "mlx"
    assert build["file_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert 0 < build["file_bytes"] - build["weights_bytes"] < 100_000
    assert answer["recommended"] == build["build"]


def test_a_damaged_folder_is_a_row_that_says_so(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    row = folder_row(Asked(PHI, 1, "f16", Ground((Room(HOST, GIB, GIB),)), "x"), "mlx-4bit", folder)
    assert (row.where, row.installed) == ("none", True)
    assert "truncated" in row.note


# -- folders that were made elsewhere, and what is offered


def ground(free_bytes: int, *, metal_bytes: int = 0) -> Ground:
    metal = (Room("MTL0", 64 * GIB, metal_bytes, shares_main=True),) if metal_bytes else ()
    return Ground((Room(HOST, 64 * GIB, free_bytes), *metal))


def write_plain(folder: Path, dtype: str, *, without: str = "") -> Config:
    """A folder that says what it is, with tensors of zeros; its shape."""
    write_configs(folder, PHI4_TINY)
    config = read_config(folder)
    header, end = {}, 0
    for name, shape in source_shapes(config).items():
        if name != without:
            begin, end = end, end + int(np.prod(shape)) * (4 if dtype == "F32" else 2)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    return config


@pytest.mark.parametrize(("dtype", "item_bytes"), [("BF16", 2), ("F16", 2), ("F32", 4)])
def test_a_float32_folder_computes_in_float32(dtype: str, item_bytes: int, tmp_path: Path) -> None:
    config = write_plain(tmp_path, dtype)
    row = folder_row(Asked(config, 512, "f16", ground(64 * GIB), "x"), "mlx-4bit", tmp_path)
    use = row.total
    assert row.where == "cpu"
    assert use.kv_bytes == kv_bytes(config, 512) * item_bytes // 2
    assert use.compute_bytes == compute_bytes(config, 512, fused=False, item_bytes=item_bytes)
    flash = model_of("phi-4-mini-flash-reasoning").flash
    assert flash
    assert kv_bytes(flash, 512, "f16", item_bytes) == kv_bytes(flash, 512) * item_bytes // 2


def test_a_folder_without_its_weights_does_not_fit(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    config = write_plain(tmp_path, "BF16", without=name)
    asked = Asked(config, 512, "f16", ground(64 * GIB), "x")
    row = folder_row(asked, "mlx-4bit", tmp_path)
    assert (row.where, row.memory, row.installed) == ("none", {}, True)
    assert row.note == f"Weights are missing, such as `{name}`"
    (tmp_path / "model.safetensors").unlink()
    row = folder_row(asked, "mlx-4bit", tmp_path)
    assert (row.where, row.note) == ("none", "It holds no weights")


@pytest.mark.parametrize("metal_bytes", [0, 10 * GIB])
@pytest.mark.parametrize("build", ["mlx-4bit", "mlx-3bit"])
def test_the_context_that_is_offered_is_the_largest_that_fits(build: str, metal_bytes: int) -> None:
    """On a processor the buffers of attention grow with the context, too."""
    asked = Asked(PHI, 16384, "f16", ground(int(10.5 * GIB), metal_bytes=metal_bytes), "phi-4")

    def fits(context: int) -> bool:
        (row,) = mlx_rows(replace(asked, context=context), [build], {})
        return row.where != "none"

    assert not fits(16384)
    context = int(mlx_offer(asked, [build], {}).removeprefix("--context "))
    assert (fits(context), fits(context + 2560)) == (True, False)


def test_a_cache_that_mlx_has_is_offered() -> None:
    asked = Asked(MINI, 4096, "q5_0", ground(32 * GIB), "phi-4-mini")
    assert mlx_offer(asked, ["mlx-4bit"], {}) == "--kv q8_0 --context 4096"
    flash = model_of("phi-4-mini-flash-reasoning").flash
    assert flash
    assert mlx_offer(replace(asked, config=flash), ["mlx-4bit"], {}) == "--kv f16 --context 4096"
    assert mlx_offer(replace(asked, ground=ground(2 * GIB)), ["mlx-8bit"], {}) == ""


def test_the_hint_has_a_cache_that_mlx_has(home: Path) -> None:
    arguments = ("phi-4-mini:mlx-2bit", "--context", "1024")
    if json_of(phi4local("fit", *arguments, "--json"))["recommended"] is None:
        pytest.skip("too little memory is free here")
    told = phi4local("fit", *arguments, "--kv", "q5_0")
    assert (told.returncode, told.stderr.count("hint:")) == (0, 1)
    assert "hint: phi4local fit phi-4-mini:mlx-2bit --kv q8_0 --context 1024" in told.stderr


def test_what_mlx_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    report = read_machine("mac-64gb").report
    (card,) = report.gpus
    usable = fit.main_room(report.memory).usable_bytes
    for system, limit, expected in (
        ("linux", GIB, usable),
        ("darwin", 12 * GIB, int(11.25 * GIB)),
        ("darwin", 64 * GIB, usable),
    ):
        told = replace(report, gpus=(replace(card, shared_bytes=limit),))
        monkeypatch.setattr(fit_mlx.sys, "platform", system)
        monkeypatch.setattr(fit_mlx, "probe", lambda _folder, told=told: told)
        monkeypatch.setattr(fit_mlx, "probe_memory", lambda: report.memory)
        assert mlx_room_bytes() == expected


def test_where_only_a_folder_that_is_here_fits_it_is_taken(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "x-mlx-4bit"
    folder.mkdir()
    write_plain(folder, "BF16")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"quantization": {"bits": 4, "group_size": 64}}))
    source = {"repo": "", "revision": "", "files": []}
    write_manifest(folder, Manifest("x", "mlx-4bit", "mlx", 1, "", 4.5, {}, [], source, "", {}, ""))
    place = Placement("none", 0, {HOST: Use(65 * GIB)}, GIB)
    large = Surveyed("Q8_0", 65 * GIB, 512, 4096, place, 0, Work(1, {}, {}))
    found = Survey(read_machine("mac-64gb").engine, ground(64 * GIB).rooms, (large,), (), None)
    monkeypatch.setattr(fit, "survey", lambda *_: found)
    assert fit.fit_files({"Q8_0": tmp_path / "x.gguf", "mlx-4bit": folder}, 512, "f16").build == "mlx-4bit"
