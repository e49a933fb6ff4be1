"""Every MLX build against mlx-lm's own converter: the same tensors, bit for bit, in a folder of the planned size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer

from phi4local.backends import mlx_ask
from phi4local.errors import BackendError, FormatError, UsageError
from quant.check import folder_sha256
from quant.convert import Built, convert
from quant.mlx import BUILDS
from quant.mlx_plan import MlxPlan, make_mlx_plan
from quant.mlx_rows import MlxFormat, Packing, make_parts
from quant.safetensors import read_shard
from quant.source import read_source
from tests import shapes
from tests.checkpoints import write_checkpoint, write_sparse_checkpoint
from tests.flash_checkpoints import FLASH_TINY, write_flash_checkpoint
from tests.mlx_process import MlxProcess
from tests.running import finish, json_of, phi4local

SHAPES = {
    "phi-4": shapes.PHI4_RELEASE_TINY,
    "mini": shapes.MINI_TINY,
    "rows of 320 and 672": shapes.ODD,
    "rows of 304 and 336": shapes.ODDER,
}


@pytest.fixture(scope="module")
def mlx_lm() -> Iterator[MlxProcess]:
    """mlx-lm, imported once."""
    with MlxProcess() as running:
        yield running


def plan(mlx_lm: MlxProcess, folder: Path, build: str) -> MlxPlan:
    return make_mlx_plan(read_source(folder, for_mlx=True), build, mlx_lm.ask)


def make(mlx_lm: MlxProcess, folder: Path, build: str, target: Path) -> Built:
    return finish(convert(plan(mlx_lm, folder, build), target, threads=2, certify=lambda _built: None))


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a folder: its dtype, its shape, its bytes."""
    found = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        for one in read_shard(path).records:
            found[one.name] = (one.dtype, one.shape, data[one.offset : one.offset + one.size_bytes])
    return found


FEW = ("mlx-4bit", "mlx-3bit", "mlx-mxfp4", "mlx-mixed-3-6")


@pytest.mark.parametrize("name", SHAPES)
def test_same_tensors_as_mlx_lm(name: str, mlx_lm: MlxProcess, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "weights", SHAPES[name])
    for build in BUILDS if name == "phi-4" else FEW:
        ours, theirs = tmp_path / build, tmp_path / f"their-{build}"
        mlx_lm.convert(folder, theirs, BUILDS[build])
        planned = plan(mlx_lm, folder, build)
        built = finish(convert(planned, ours, threads=2, certify=lambda _built: None))
        assert tensors(ours) == tensors(theirs), build
        configs = [json.loads((made / "config.json").read_bytes()) for made in (ours, theirs)]
        assert configs[0].get("quantization") == configs[1].get("quantization")
        assert sum(path.stat().st_size for path in ours.iterdir()) == planned.size_bytes
        assert {path.name for path in ours.iterdir()} == set(built.files)
        assert built.sha256 == folder_sha256(built.files)


@pytest.mark.parametrize("shape", [shapes.PHI4_RELEASE_TINY, shapes.MINI_TINY], ids=["phi-4", "mini"])
def test_plain_mlx_lm_loads_it(shape: shapes.Shape, mlx_lm: MlxProcess, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "weights", shape)
    make(mlx_lm, folder, "mlx-8bit", tmp_path / "mlx")
    seen = mlx_lm.load(tmp_path / "mlx")
    end = "<|im_end|>" if shape.line == shapes.CL100K else "<|end|>"
    assert seen["eos"] == sorted(shape.token_id(text) for text in (end, "<|endoftext|>"))
    assert seen["prompt"].startswith(seen["past"].removesuffix("<|endoftext|>"))
    assert seen["prompt"] != seen["past"]
    assert np.isfinite(seen["logits"]).all()
    assert seen["ids"] == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(seen["text"]).ids


def test_the_newer_spelling_computes_the_same(mlx_lm: MlxProcess, tmp_path: Path) -> None:
    """mlx-lm does not read `rope_parameters`: without the repair it would be silently wrong."""
    for name, shape in (("v4", shapes.MINI_TINY), ("v5", shapes.MINI_TINY_V5)):
        make(mlx_lm, write_checkpoint(tmp_path / name, shape), "mlx-bf16", tmp_path / f"{name}-mlx")
    old, new = mlx_lm.load(tmp_path / "v4-mlx"), mlx_lm.load(tmp_path / "v5-mlx")
    assert new == old


def test_a_tensor_is_made_row_by_row() -> None:
    """Blocks of any size, on any thread, give the bits of the whole tensor."""
    rng = np.random.default_rng(1)
    numbers = rng.standard_normal((60, 320), dtype=np.float32)
    sources = {"F32": numbers, "F16": numbers.astype(np.float16), "BF16": (numbers.view(np.uint32) >> 16).astype("u2")}
    packings = [Packing(4, 64, "affine"), Packing(3, 64, "affine"), Packing(4, 32, "mxfp4"), None]
    with ThreadPoolExecutor(3) as pool:
        for dtype, rows in sources.items():
            for packing in packings:
                form = MlxFormat(dtype, "BF16", 320, packing)
                whole = make_parts(form, rows.reshape(-1).view(np.uint8), "t")
                blocks = [rows[i : i + 7].reshape(-1).view(np.uint8) for i in range(0, 60, 7)]
                parts = list(pool.map(lambda block, form=form: make_parts(form, block, "t"), blocks))  # type: ignore[misc]
                for number, part in enumerate(whole):
                    assert np.array_equal(np.concatenate([one[number] for one in parts]), part)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_numbers_that_are_none_are_refused_by_name(dtype: str, mlx_lm: MlxProcess, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "w", dataclasses.replace(shapes.PHI4_TINY, dtype=dtype), shards=1)
    shard = next(folder.glob("*.safetensors"))
    record = next(one for one in read_shard(shard).records if "layers.1.mlp.down_proj" in one.name)
    size = 4 if dtype == "float32" else 2
    with shard.open("r+b") as file:
        file.seek(record.offset + 100 * size)
        file.write(b"\xff" * size)
    with pytest.raises(FormatError, match=r"layers\.1\.mlp\.down_proj.*NaN"):
        make(mlx_lm, folder, "mlx-4bit", tmp_path / "mlx")
    assert not (tmp_path / "mlx").exists()


def test_too_large_for_its_dtype(tmp_path: Path) -> None:
    form = MlxFormat("F32", "F16", 4, None)
    with pytest.raises(FormatError, match="`t` overflows in F16"):
        make_parts(form, np.full(4, 1e6, np.float32).view(np.uint8), "t")


def test_other_dtypes_are_cast_as_mlx_lm_casts(mlx_lm: MlxProcess, tmp_path: Path) -> None:
    """The config's `torch_dtype` decides between the types of 16 bits."""
    shape = dataclasses.replace(shapes.PHI4_TINY, dtype="float32", layers=1)
    folder = write_checkpoint(tmp_path / "f32", shape)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
    mlx_lm.convert(folder, tmp_path / "cast", BUILDS["mlx-4bit"])
    make(mlx_lm, folder, "mlx-4bit", tmp_path / "cast-ours")
    assert tensors(tmp_path / "cast-ours") == tensors(tmp_path / "cast")
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    for build in ("mlx-4bit", "mlx-mxfp4", "mlx-bf16"):
        mlx_lm.convert(folder, tmp_path / build, BUILDS[build])
    for number, stated in enumerate(({"torch_dtype": "float32"}, {"dtype": "float32"}, {})):
        bare = {key: value for key, value in config.items() if key != "torch_dtype"}
        (folder / "config.json").write_text(json.dumps(bare | stated))
        for build in ("mlx-4bit", "mlx-mxfp4", "mlx-bf16"):
            ours = tmp_path / f"{build}-{number}"
            make(mlx_lm, folder, build, ours)
            assert tensors(ours) == tensors(tmp_path / build)
            made = json.loads((ours / "config.json").read_bytes())
            assert made[next(iter(stated), "torch_dtype")] == "bfloat16"


def test_a_build_of_32_bits_is_none(mlx_lm: MlxProcess, tmp_path: Path) -> None:
    """By its name mlx-bf16 is bfloat16, whatever the source; quantized builds keep float16."""
    for dtype in ("float32", "float16"):
        shape = dataclasses.replace(shapes.PHI4_TINY, dtype=dtype, layers=1)
        folder = write_checkpoint(tmp_path / dtype, shape)
        whole, packed = (plan(mlx_lm, folder, build) for build in ("mlx-bf16", "mlx-4bit"))
        assert (whole.bits_per_weight, whole.type_counts.keys()) == (16, {"BF16"})
        assert packed.type_counts.keys() == {"4-bit", "F16" if dtype == "float16" else "BF16"}
        told = [(repair.before, repair.after) for repair in whole.repairs if repair.key == "config.json torch_dtype"]
        assert told == [(dtype, "bfloat16")]


def test_flash_of_32_bits_keeps_what_must_stay(mlx_lm: MlxProcess, tmp_path: Path) -> None:
    folder = write_flash_checkpoint(tmp_path / "flash", FLASH_TINY)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    make(mlx_lm, folder, "mlx-bf16", tmp_path / "mlx")
    source, made = tensors(folder), tensors(tmp_path / "mlx")
    assert {name: one[0] for name, one in made.items()} == {name: one[0] for name, one in source.items()}
    assert "torch_dtype" not in str(plan(mlx_lm, write_flash_checkpoint(folder, FLASH_TINY), "mlx-4bit").repairs)


def test_the_plan_of_the_real_model(mlx_lm: MlxProcess, tmp_path: Path) -> None:
    """Known to three digits from published builds: 8.25 GB; planning writes and allocates nothing."""
    folder = write_sparse_checkpoint(tmp_path / "phi-4", shapes.PHI4_14B_SHAPE)
    before = mx.get_peak_memory()
    planned = plan(mlx_lm, folder, "mlx-4bit")
    assert planned.weights_bytes / 1e9 == pytest.approx(8.25, abs=0.005)
    assert planned.bits_per_weight == pytest.approx(4.5, abs=0.01)
    assert planned.type_counts == {"4-bit": 162, "BF16": 81}
    assert mx.get_peak_memory() == before


def test_without_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(BackendError, match="MLX is not installed") as error:
        mlx_ask.check_installed()
    assert error.value.hint == "pip install 'phi4local[mlx]'"


def test_an_unsuitable_recipe() -> None:
    with pytest.raises(UsageError, match="cannot make"):
        mlx_ask.tensor_forms({"config": FLAT, "tensors": FLAT_TENSORS, "recipe": MIXED})


MIXED = {"bits": 2, "group": 64, "mode": "affine", "mixed": "mixed_2_9"}
FLAT = {
    "model_type": "phi3", "hidden_size": 64, "num_hidden_layers": 0, "intermediate_size": 64,
    "num_attention_heads": 1, "rms_norm_eps": 1e-5, "vocab_size": 64, "tie_word_embeddings": True,
}  # fmt: skip
FLAT_TENSORS = {"model.embed_tokens.weight": ["BF16", [64, 64]], "model.norm.weight": ["BF16", [64]]}


def test_the_command_line(tiny: Path, home: Path, tmp_path: Path) -> None:
    planned = json_of(phi4local("quantize", tiny, "--to", "MLX-4BIT", "--dry-run", "--json"))
    assert not home.exists()
    made = json_of(phi4local("quantize", tiny, "--to", "mlx-4bit", "--json"))
    path = Path(made["path"])
    assert path == home / "models/phi-4-tiny/phi-4-tiny-mlx-4bit"
    assert (planned["bytes"], planned["build"]) == (made["bytes"], "mlx-4bit")
    assert planned["files"] == [{"name": one["name"], "bytes": one["bytes"]} for one in made["files"]]
    assert sum(file.stat().st_size for file in path.iterdir()) == made["bytes"]
    assert [one["name"] for one in made["files"]] == sorted(file.name for file in path.iterdir())
    again = phi4local("quantize", tiny, "--to", "mlx-4bit")
    assert "here already" in again.stderr
    unknown = phi4local("quantize", tiny, "--to", "mlx-7bit")
    assert unknown.returncode == 2
    assert "Q4_K_M" in unknown.stderr
    assert "mlx-mixed-3-6" in unknown.stderr


def test_flash(mlx_lm: MlxProcess, tmp_path: Path) -> None:
    """What mlx-lm cannot convert, for lack of the model: its packing row by row, and what must stay float32."""
    folder = write_flash_checkpoint(tmp_path / "flash", FLASH_TINY)
    make(mlx_lm, folder, "mlx-4bit", tmp_path / "mlx")
    source, made = tensors(folder), tensors(tmp_path / "mlx")
    for name, (dtype, shape, data) in source.items():
        base = name.removesuffix(".weight")
        if f"{base}.scales" not in made:
            assert made[name] == (dtype, shape, data)
            continue
        rows = mx.array(np.frombuffer(data, np.uint16).reshape(shape)).view(mx.bfloat16)
        parts = mx.quantize(rows, group_size=64, bits=4)
        wanted = [np.array(part.view(mx.uint8)).tobytes() for part in parts]
        assert [made[f"{base}.{part}"][2] for part in ("weight", "scales", "biases")] == wanted
    kinds = {dtype for dtype, _, _ in made.values()}
    assert kinds == {"U32", "BF16", "F32"}
    assert sum(name.endswith(".scales") for name in made) > 10


def test_what_flash_cannot_be(tmp_path: Path) -> None:
    folder = write_flash_checkpoint(tmp_path / "flash", FLASH_TINY)
    mixed = phi4local("quantize", folder, "--to", "mlx-mixed-3-6")
    assert (mixed.returncode, "cannot make" in mixed.stderr) == (2, True)
    gguf = phi4local("quantize", folder, "--to", "Q4_K_M")
    assert gguf.returncode == 5
    assert "--to mlx-4bit" in gguf.stderr
