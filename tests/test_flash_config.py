"""Phi-4-mini-flash-reasoning's configuration, and the names, shapes and sizes that follow from it."""

from __future__ import annotations

import math

import pytest
from mlx.utils import tree_flatten

from phi4local.backends.phi4flash import Model, ModelArgs
from phi4local.errors import FormatError
from quant.flash import flash_shapes, kv_bytes, read_flash_config
from tests.flash_checkpoints import FLASH_SHAPE, flash_config_json, stored_type


def test_the_real_models_parameters_are_the_checkpoints() -> None:
    config = flash_config_json(FLASH_SHAPE)
    model = Model(ModelArgs.from_dict(config))
    shapes = flash_shapes(read_flash_config(config))
    assert {name: array.shape for name, array in tree_flatten(model.parameters())} == shapes
    assert sum(map(math.prod, shapes.values())) == 3_852_562_944
    stored = sum(math.prod(dims) * (4 if stored_type(name) == "F32" else 2) for name, dims in shapes.items())
    assert stored == 7_706_608_640  # `total_size` of the published index
    assert len(shapes) == 3 + 32 * 6 + 9 * 9 + 7 * 2 + 16 * 9
    assert (len(model.layers), len(model.make_cache())) == (32, 18)
    assert kv_bytes(model.args.config, 65536) == 65536 * 5120 + 8 * 512 * 5120 + 9 * (3 * 5120 * 2 + 5120 * 16 * 4)


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("model.embed_tokens.weight", (200064, 2560)),
        ("model.final_layernorm.bias", (2560,)),
        ("model.layers.0.attn.conv1d.weight", (5120, 1, 4)),
        ("model.layers.16.attn.A_log", (5120, 16)),
        ("model.layers.16.attn.x_proj.weight", (192, 5120)),
        ("model.layers.16.attn.dt_proj.weight", (5120, 160)),
        ("model.layers.17.attn.Wqkv.weight", (5120, 2560)),
        ("model.layers.17.attn.inner_cross_attn.subln.weight", (128,)),
        ("model.layers.18.attn.in_proj.weight", (5120, 2560)),
        ("model.layers.19.attn.Wqkv.bias", (2560,)),
        ("model.layers.31.attn.inner_cross_attn.lambda_k2", (64,)),
        ("model.layers.31.mlp.fc1.weight", (20480, 2560)),
        ("model.layers.31.post_attention_layernorm.bias", (2560,)),
    ],
)
def test_published_names(name: str, dims: tuple[int, ...]) -> None:
    assert flash_shapes(read_flash_config(flash_config_json(FLASH_SHAPE)))[name] == dims


# --- configurations --------------------------------------------------------------------------------------------------

NEEDED = (
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
    "layer_norm_eps",
)


@pytest.mark.parametrize("key", [*NEEDED, "model_type"])
def test_a_missing_key_is_named(key: str) -> None:
    config = flash_config_json(FLASH_SHAPE)
    del config[key]
    named = "not Phi-4-mini-flash" if key in ("architectures", "model_type") else key
    with pytest.raises(FormatError, match=named):
        read_flash_config(config)
    with pytest.raises(ValueError, match=named):
        ModelArgs.from_dict(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", 2570),
        ("hidden_size", True),
        ("num_hidden_layers", 30),
        ("num_hidden_layers", 1 << 20),
        ("num_attention_heads", 5),
        ("num_key_value_heads", 15),
        ("num_key_value_heads", 12),
        ("sliding_window", [512] * 32),
        ("sliding_window", None),
        ("layer_norm_eps", "small"),
        ("layer_norm_eps", 2.0),
        ("mamba_d_state", 1 << 11),
        ("mamba_d_conv", 1),
        ("mamba_expand", 17),
        ("mamba_expand", 1.5),
        ("mamba_dt_rank", "large"),
        ("mamba_dt_rank", -1),
        ("tie_word_embeddings", "yes"),
        ("hidden_act", "gelu"),
        ("mb_per_layer", 4),
        ("mb_per_layer", 2.0),
        ("mlp_bias", True),
        ("lm_head_bias", True),
        ("mamba_conv_bias", False),
        ("mamba_proj_bias", True),
    ],
)
def test_a_senseless_value_is_named(key: str, value: object) -> None:
    config = flash_config_json(FLASH_SHAPE) | {key: value}
    with pytest.raises(FormatError, match="num_attention_heads" if value in (2570, 5) else key):
        read_flash_config(config)


def test_the_published_configuration() -> None:
    config = read_flash_config(flash_config_json(FLASH_SHAPE) | {"of_tomorrow": 1})
    assert (config.d_state, config.d_conv, config.expand, config.dt_rank, config.inner) == (16, 4, 2, 160, 5120)
    assert (config.head_size, config.memory_layer, config.global_layer) == (64, 16, 17)
    assert config.special_ids == {"bos": 199999, "eos": 199999, "pad": 199999}
    explicit = {"mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": "auto"}
    assert read_flash_config(flash_config_json(FLASH_SHAPE) | explicit) == config
