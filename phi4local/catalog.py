"""The Phi-4 models that become a GGUF, as data: names, official repositories, shapes, and builds that others made."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from quant.config import Config, LongRope

# Phi-4-mini's long rope factors, of its config.json; the short ones are all 1.
_LONG = (
    *(1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898),
    *(2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424),
    *(6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252),
    *(16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23),
    *(32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77),
)
_PHI_4 = Config(
    hidden=5120,
    intermediate=17920,
    layers=40,
    heads=40,
    kv_heads=10,
    vocabulary=100352,
    context=16384,
    original_context=16384,
    rotary_dimensions=128,
    rope_theta=250_000,
    long_rope=None,
    rms_epsilon=1e-5,
    sliding_window=0,
    tied=False,
    special_ids={},
)
_REASONING = replace(_PHI_4, context=32768, original_context=32768, rope_theta=500_000)
_MINI = Config(
    hidden=3072,
    intermediate=8192,
    layers=32,
    heads=24,
    kv_heads=8,
    vocabulary=200064,
    context=131072,
    original_context=4096,
    rotary_dimensions=96,
    rope_theta=10_000,
    long_rope=LongRope(_LONG, (1.0,) * len(_LONG)),
    rms_epsilon=1e-5,
    sliding_window=262144,
    tied=True,
    special_ids={},
)
# What a build's header takes, nearly all of it vocabulary: a published file's size less its tensors.
_HEADER_BYTES, _MINI_HEADER_BYTES = 3_555_520, 8_251_392


@dataclass(frozen=True, slots=True)
class Model:
    """`spellings` are folder and repository names, in lower case; the shape tells families apart."""

    name: str
    repository: str
    spellings: tuple[str, ...]
    config: Config
    header_bytes: int
    sampled: bool = False  # the model's card asks for temperature 0.8, top-k 50, top-p 0.95


MODELS = (
    Model("phi-4", "microsoft/phi-4", ("phi-4",), _PHI_4, _HEADER_BYTES),
    Model(
        "phi-4-reasoning", "microsoft/Phi-4-reasoning", ("phi-4-reasoning",), _REASONING, _HEADER_BYTES, sampled=True
    ),
    Model(
        "phi-4-reasoning-plus",
        "microsoft/Phi-4-reasoning-plus",
        ("phi-4-reasoning-plus",),
        _REASONING,
        _HEADER_BYTES,
        sampled=True,
    ),
    Model(
        "phi-4-mini",
        "microsoft/Phi-4-mini-instruct",
        ("phi-4-mini-instruct", "phi-4-mini"),
        _MINI,
        _MINI_HEADER_BYTES,
    ),
    Model(
        "phi-4-mini-reasoning",
        "microsoft/Phi-4-mini-reasoning",
        ("phi-4-mini-reasoning",),
        _MINI,
        _MINI_HEADER_BYTES,
        sampled=True,
    ),
)


@dataclass(frozen=True, slots=True)
class ReadyMade:
    """A build that somebody has published."""

    repository: str
    file: str
    bytes: int


_OFFICIAL_FILES = {  # build -> (as the file spells it, bytes)
    "Q2_K": ("Q2_K", 5_547_348_160),
    "Q3_K_S": ("Q3_K_S", 6_504_747_200),
    "Q3_K_M": ("Q3_K", 7_363_268_800),
    "Q3_K_L": ("Q3_K_L", 7_930_155_200),
    "IQ4_XS": ("IQ4_XS", 8_013_058_240),
    "Q4_0": ("Q4_0", 8_383_418_560),
    "IQ4_NL": ("IQ4_NL", 8_440_762_560),
    "Q4_K_S": ("Q4_K_S", 8_440_762_560),
    "Q4_K_M": ("Q4_K", 9_053_114_560),
    "Q4_1": ("Q4_1", 9_267_499_200),
    "Q5_0": ("Q5_0", 10_151_579_840),
    "Q5_K_S": ("Q5_K_S", 10_151_579_840),
    "Q5_K_M": ("Q5_K", 10_604_187_840),
    "Q6_K": ("Q6_K", 12_030_251_200),
    "Q8_0": ("Q8_0", 15_580_500_160),
    "BF16": ("bf16", 29_323_399_360),
}
# The repository's IQ4_XS, IQ4_NL and Q4_0 have mixes of their own and are left out.
_MINI_FILES = {
    "Q2_K": 1_682_636_160,
    "Q3_K_S": 1_897_332_096,
    "Q3_K_M": 2_117_533_056,
    "Q3_K_L": 2_249_653_632,
    "Q4_K_S": 2_337_734_016,
    "Q4_K_M": 2_491_874_688,
    "Q4_1": 2_526_477_696,
    "Q5_K_S": 2_727_804_288,
    "Q5_K_M": 2_848_128_384,
    "Q6_K": 3_155_623_296,
    "Q8_0": 4_084_611_456,
}
# model -> build -> the published file
READY_MADE = {
    "phi-4": {
        build: ReadyMade("microsoft/phi-4-gguf", f"phi-4-{spelling}.gguf", size_bytes)
        for build, (spelling, size_bytes) in _OFFICIAL_FILES.items()
    },
    "phi-4-mini": {
        build: ReadyMade(
            "bartowski/microsoft_Phi-4-mini-instruct-GGUF", f"microsoft_Phi-4-mini-instruct-{build}.gguf", size_bytes
        )
        for build, size_bytes in _MINI_FILES.items()
    },
}

_CACHE_FOLDER = re.compile(r"models--([\w.\-]+)--([\w.\-]+)/snapshots/([0-9a-f]{40})")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a folder of weights comes from, as far as its place on the disk tells."""

    repository: str | None
    revision: str | None


def find_model(name: str) -> Model | None:
    """The model of that name or spelling, if the catalogue has it."""
    title = name.lower()
    return next((model for model in MODELS if title == model.name or title in model.spellings), None)


def origin(folder: Path) -> Origin:
    """Repository and revision of a folder in the Hub's cache; unknown elsewhere."""
    match = _CACHE_FOLDER.search(folder.resolve().as_posix())
    return Origin(f"{match[1]}/{match[2]}", match[3]) if match else Origin(None, None)


def model_name(folder: Path, config: Config) -> str:
    """What a model made from `folder` is called.

    A name of the catalogue is given only where the shape is the model's and the repository or, without one, the
    folder is spelt like it; a fine-tune keeps its own name, so that it never takes the original's place.
    """
    repository = origin(folder).repository
    title = slug(repository.split("/")[-1] if repository else folder.resolve().name)
    for model in MODELS:
        known = repository.lower() == model.repository.lower() if repository else title in model.spellings
        if known and _shape(model.config) == _shape(config):
            return model.name
    return title


def _shape(config: Config) -> tuple[int, int, float]:
    return config.hidden, config.layers, config.rope_theta


def slug(text: str) -> str:
    """A name that is safe as a folder and easy to type."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())[:80].strip("-.") or "model"
