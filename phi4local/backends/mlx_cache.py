"""The caches of a model in MLX: made whole before the first token, cut, emptied, kept in a file.

A cache that grows while it is used is copied each time, and Metal's driver does not bear that well; so the keys and
values of every token that the context can hold have their place from the beginning. Import in a child process only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from phi4local.errors import UsageError
from quant.config import Config
from quant.mlx import KV_BITS, kv_group


class WholeKV(KVCache):  # type: ignore[misc]  # mlx-lm is not typed
    """mlx-lm's cache of one layer with room for all tokens: keys and values [1, heads, tokens, head]."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: Any) -> None:
        super().__init__()
        self.keys, self.values = mx.zeros(shape, dtype), mx.zeros(shape, dtype)

    @property
    def state(self) -> tuple[Any, Any, int]:
        return self.keys[..., : self.offset, :], self.values[..., : self.offset, :], self.offset

    @state.setter
    def state(self, state: tuple[Any, Any, int]) -> None:
        keys, values, self.offset = state
        self.keys[..., : self.offset, :] = keys
        self.values[..., : self.offset, :] = values


class WholeQuantizedKV(QuantizedKVCache):  # type: ignore[misc]  # mlx-lm is not typed
    """The same with quantized keys and values: three arrays each (weights, scales, biases)."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: Any, bits: int) -> None:
        group = kv_group(shape[-1])
        if not group:
            raise UsageError("This model's heads are too small for a quantized cache", hint="Leave `--kv` away")
        super().__init__(group_size=group, bits=bits)
        self.keys, self.values = (list(mx.quantize(mx.zeros(shape, dtype), group, bits)) for _ in range(2))

    @property
    def state(self) -> tuple[Any, Any, int]:
        used = [[array[..., : self.offset, :] for array in arrays] for arrays in (self.keys, self.values)]
        return used[0], used[1], self.offset

    @state.setter
    def state(self, state: tuple[Any, Any, int]) -> None:
        *kept, self.offset = state
        for arrays, saved in zip((self.keys, self.values), kept, strict=True):
            for array, part in zip(arrays, saved, strict=True):
                array[..., : self.offset, :] = part


class Caches:
    """One cache for each layer that has any; `layers` is what mlx-lm's models take.

    Those of keys and values hold `context_tokens`. Flash makes the others by its own `make_cache`: they cannot be cut,
    because they hold a sum over all tokens, and grow no further than its window, 21 MB in all.
    """

    def __init__(self, module: Any, config: Config | None, kv_type: str, context_tokens: int) -> None:
        """(UsageError for a KV type that MLX has not)"""
        if kv_type not in KV_BITS or (config is None and KV_BITS[kv_type]):
            kinds = ", ".join(KV_BITS) if config else "f16"
            raise UsageError(f"MLX keeps no cache of type {kv_type}", hint=f"One of {kinds}")
        self._module, self._config = module, config
        self._bits, self._context_tokens = KV_BITS[kv_type], context_tokens
        self._form = self._own_form() if config is None else None
        self.layers = self._made_whole()

    def _own_form(self) -> tuple[tuple[int, int, int, int], Any]:
        """Shape and dtype of the whole cache of a model that makes its own: what a first token leaves in it."""
        made = self._module.make_cache()
        self._module(mx.array([[0]]), cache=made)
        keys = next(one.keys for one in made if type(one) is KVCache)
        return (1, keys.shape[1], self._context_tokens, keys.shape[3]), keys.dtype

    def _made_whole(self) -> list[Any]:
        """New caches; those with room for all tokens have their memory now, not when it is first written."""
        layers = self._make()
        mx.eval([(one.keys, one.values) for one in layers if isinstance(one, WholeKV | WholeQuantizedKV)])
        return layers

    def _make(self) -> list[Any]:
        config = self._config
        if config is None:
            made: list[Any] = self._module.make_cache()
            return [WholeKV(*self._form) if self._form and type(one) is KVCache else one for one in made]
        shape = (1, config.kv_heads, self._context_tokens, config.head_size)
        dtype = self._module.layers[0].input_layernorm.weight.dtype
        if self._bits:
            return [WholeQuantizedKV(shape, dtype, self._bits) for _ in range(config.layers)]
        return [WholeKV(shape, dtype) for _ in range(config.layers)]

    @property
    def arrays(self) -> list[Any]:
        """What has to be computed for the caches to be up to date."""
        return [array for cache in self.layers for _, array in _flat(cache) if isinstance(array, mx.array)]

    @property
    def total_bytes(self) -> int:
        """What they take now."""
        return sum(cache.nbytes for cache in self.layers if not cache.empty())

    @property
    def used_bytes(self) -> int:
        """What of it holds tokens."""
        return sum(array.nbytes for array in self.arrays)

    def cut(self, count: int) -> bool:
        """Take the last so many tokens away; False where that cannot be done, and nothing was."""
        if not all(cache.is_trimmable() for cache in self.layers):
            return False
        for cache in self.layers:
            cache.trim(count)
        return True

    def clear(self) -> None:
        """Empty them all."""
        if self._config is None:
            self.layers = self._made_whole()
            return
        for cache in self.layers:
            cache.offset = 0

    def save(self, path: Path, tokens: list[int]) -> int:
        """Write them, and the ids of the tokens in them, over the file; how many bytes."""
        values = [(f"{place}.{key}", value) for place, cache in enumerate(self.layers) for key, value in _flat(cache)]
        arrays = {key: value for key, value in values if isinstance(value, mx.array)}
        others = {key: value for key, value in values if key not in arrays}
        arrays["tokens"] = mx.array(tokens, dtype=mx.int32)
        mx.eval(arrays)
        with path.open("wb") as file:  # by its name it would be called .safetensors
            mx.save_safetensors(file, arrays, metadata={"others": json.dumps(others)})
        return path.stat().st_size

    def load(self, path: Path) -> list[int]:
        """Take over what `save` wrote; the ids of the tokens (what MLX raises for another file)."""
        with path.open("rb") as file:
            loaded: Any = mx.load(file, format="safetensors", return_metadata=True)
            arrays, facts = loaded
            mx.eval(arrays)
        tokens: list[int] = arrays.pop("tokens").tolist()
        values: dict[str, Any] = arrays | json.loads(facts["others"])
        for place, cache in enumerate(self.layers):
            mine = [
                (key.split(".", 1)[1], value) for key, value in values.items() if key.split(".", 1)[0] == str(place)
            ]
            cache.state = tree_unflatten(mine)
        mx.eval(self.arrays)
        return tokens


def _flat(cache: Any) -> list[tuple[str, Any]]:
    flat: Any = tree_flatten(cache.state)
    return list(flat)
