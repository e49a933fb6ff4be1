"""The numpy reference against properties that can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import MINI_SHAPE, MINI_TINY, PHI4_TINY, Shape, config_json, to_bfloat16, write_checkpoint
from tests.reference import Array, Reference, kl_divergence, read_rope, rotate, same_top, softmax, widen

PHI4 = replace(PHI4_TINY, layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2)
MINI = replace(
    MINI_TINY,
    layers=2,
    hidden=64,
    intermediate=96,
    heads=4,
    kv_heads=2,
    original_max_position=24,
    max_position=96,
    long_factor=(1.0, 2.5, 4.0, 9.0, 12.0, 20.0),
    short_factor=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5),
)
TOKENS = [int(token) for token in np.random.default_rng(1).integers(0, 800, 32)]

Make = Callable[[Shape], Reference]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a checkpoint of a shape and opens it."""
    return lambda shape: Reference(write_checkpoint(tmp_path / f"{shape.name}-{shape.rope_spelling}", shape))


def test_a_token_does_not_see_the_ones_after_it(make: Make) -> None:
    model = make(PHI4)
    np.testing.assert_allclose(model.logits(TOKENS)[:10], model.logits(TOKENS[:10]), atol=1e-5)


def test_a_token_sees_every_token_before_it(make: Make) -> None:
    model = make(PHI4)
    changed = model.logits([TOKENS[0] + 1, *TOKENS[1:]])
    assert np.abs(changed - model.logits(TOKENS)).max(axis=1).min() > 1e-3


def test_one_token_meets_only_its_own_value(make: Make) -> None:
    model = make(replace(PHI4, layers=1))
    w = {name.removeprefix("model.").removeprefix("layers.0."): widen(x) for name, x in model.tensors.items()}

    def norm(x: Array, weight: str) -> Array:
        return np.asarray(x / np.sqrt((x * x).mean() + 1e-5) * w[weight + ".weight"], np.float32)

    x = w["embed_tokens.weight"][7]
    values = (w["self_attn.qkv_proj.weight"] @ norm(x, "input_layernorm"))[-32:].reshape(2, 16)
    x = x + w["self_attn.o_proj.weight"] @ values.repeat(2, axis=0).ravel()
    gate, up = (w["mlp.gate_up_proj.weight"] @ norm(x, "post_attention_layernorm")).reshape(2, 96)
    x = x + w["mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
    np.testing.assert_allclose(model.logits([7])[0], w["lm_head.weight"] @ norm(x, "norm"), atol=1e-5)


def test_grouped_queries_equal_repeated_keys_and_values(make: Make) -> None:
    model = make(PHI4)
    expected = model.logits(TOKENS)
    model.config["num_key_value_heads"] = 4
    for name in [name for name in model.tensors if "qkv" in name]:
        q, k, v = np.split(model.tensors[name].reshape(8, 16, 64), [4, 6])
        model.tensors[name] = np.concatenate([q, k.repeat(2, axis=0), v.repeat(2, axis=0)]).reshape(12 * 16, 64)
    np.testing.assert_allclose(model.logits(TOKENS), expected, atol=1e-5)


def test_scores_depend_on_distance_alone() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 32), dtype=np.float32)
    cos, sin = read_rope(config_json(PHI4_TINY)).tables(64)
    queries, keys = (rotate(np.repeat(x, 64, axis=0), cos, sin)[:, 0] for x in (q, k))
    scores = queries @ keys.T
    for distance in (0, 1, 17, 40):
        np.testing.assert_allclose(np.diagonal(scores, -distance), scores[distance, 0], atol=1e-4)
    assert abs(scores[0, 0] - scores[17, 0]) > 1e-2


def test_position_zero_does_not_rotate_and_lengths_are_kept() -> None:
    x = np.random.default_rng(0).standard_normal((8, 3, 32), dtype=np.float32)
    turned = rotate(x, *read_rope(config_json(PHI4_TINY)).tables(8))
    np.testing.assert_array_equal(turned[0], x[0])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_a_quarter_of_a_mini_head_does_not_rotate() -> None:
    rope = read_rope(config_json(MINI_TINY))
    x = np.random.default_rng(0).standard_normal((8, 3, 32), dtype=np.float32)
    turned = rotate(x, *rope.tables(8))
    assert rope.dims == 24
    np.testing.assert_array_equal(turned[..., 24:], x[..., 24:])
    assert np.abs(turned[1:, :, :24] - x[1:, :, :24]).min() > 0


def test_the_real_mini_scales_its_rope() -> None:
    assert read_rope(config_json(MINI_SHAPE)).scale == pytest.approx(1.190238, abs=1e-6)


def test_rope_factors_divide_the_frequencies() -> None:
    rope = read_rope(config_json(MINI))
    scale = math.sqrt(1 + math.log(4) / math.log(24))
    cos_short, _ = rope.tables(24)
    cos_long, _ = rope.tables(25)
    frequency = 10000 ** (-2 / 12)
    assert cos_short[3, 0, 1] == pytest.approx(scale * math.cos(3 * frequency / 1.1), abs=1e-6)
    assert cos_long[3, 0, 1] == pytest.approx(scale * math.cos(3 * frequency / 2.5), abs=1e-6)


def test_a_long_sequence_changes_even_its_beginning(make: Make) -> None:
    model = make(MINI)
    short, edge, long = (model.logits(TOKENS[:n])[:20] for n in (20, 24, 25))
    np.testing.assert_allclose(short, edge, atol=1e-5)
    assert np.abs(long - short).max() > 1e-2


@pytest.mark.parametrize("shape", [PHI4, MINI], ids=["phi-4", "mini"])
def test_both_spellings_of_the_rope_are_one_model(make: Make, shape: Shape) -> None:
    new = make(replace(shape, rope_spelling="rope_parameters"))
    np.testing.assert_array_equal(make(shape).logits(TOKENS), new.logits(TOKENS))


def test_a_tied_head_is_the_embedding(make: Make) -> None:
    tied, untied = make(MINI), make(replace(MINI, name="untied", tied=False))
    assert "lm_head.weight" not in tied.tensors
    untied.tensors = {**tied.tensors, "lm_head.weight": tied.tensors["model.embed_tokens.weight"]}
    np.testing.assert_array_equal(tied.logits(TOKENS), untied.logits(TOKENS))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_number_formats_are_read(make: Make, dtype: str) -> None:
    expected = make(PHI4).logits(TOKENS)
    got = make(replace(PHI4, name=dtype, dtype=dtype)).logits(TOKENS)
    assert 0 < kl_divergence(expected, got).max() < 0.01


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    values = np.array([1.0, -2.5, 1 + 1 / 256, 1 + 3 / 256, 1 + 1.01 / 256, 0.0], np.float32)
    expected = np.array([1.0, -2.5, 1.0, 1 + 4 / 256, 1 + 2 / 256, 0.0], np.float32)
    np.testing.assert_array_equal(widen(to_bfloat16(values)), expected)


def test_softmax_takes_huge_and_forbidden_scores() -> None:
    np.testing.assert_array_equal(softmax(np.array([1e30, -np.inf], np.float32)), [1, 0])


def test_divergence_worked_by_hand() -> None:
    p, q = np.log([[0.5, 0.5], [0.25, 0.75]]), np.log([[0.25, 0.75], [0.25, 0.75]]) + 3.0
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    np.testing.assert_allclose(kl_divergence(p, q), [expected, 0.0], atol=1e-12)


def test_same_top_counts_positions() -> None:
    assert same_top([[1, 2], [3, 0], [0, 1], [5, 4]], [[0, 9], [0, 1], [1, 2], [1, 0]]) == 0.75
