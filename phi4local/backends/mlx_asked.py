"""What mlx-lm makes of a model's tensors. Import in a child process only: mlx-lm changes limits of its process.

The model is built as `mlx_lm.convert` builds it, from lazy zeros in place of weights: nothing is computed or allocated.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.convert import MODEL_CONVERSION_DTYPES, mixed_quant_predicate_builder
from mlx_lm.utils import _get_classes, quantize_model

from quant.flash import FLASH_MODEL_TYPE

_DTYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32, "U32": mx.uint32, "U8": mx.uint8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _classes(config: dict[str, Any]) -> tuple[Any, Any]:
    if config["model_type"] == FLASH_MODEL_TYPE:
        from phi4local.backends import phi4flash

        return phi4flash.Model, phi4flash.ModelArgs
    classes: tuple[Any, Any] = _get_classes(config)
    return classes


def _build(config: dict[str, Any], tensors: dict[str, list[Any]]) -> Any:
    """The model with the checkpoint's dtypes, cast as `mlx_lm.convert` casts."""
    model_class, arguments = _classes(config)
    model = model_class(arguments.from_dict(config))
    weights = {name: mx.zeros(shape, _DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    if hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    model.load_weights(list(weights.items()), strict=True)
    dtype = str(config.get("torch_dtype"))
    if dtype in MODEL_CONVERSION_DTYPES:
        is_cast = getattr(model, "cast_predicate", lambda _: True)

        def cast(path: str, value: Any) -> Any:
            wanted = is_cast(path) and mx.issubdtype(value.dtype, mx.floating)
            return value.astype(getattr(mx, dtype)) if wanted else value

        model.update(tree_map_with_path(cast, model.parameters()))
    return model


def _predicate(model: Any, recipe: dict[str, Any]) -> Any:
    if not recipe["mixed"]:
        return None
    try:
        return mixed_quant_predicate_builder(recipe["mixed"], model, recipe["group"])
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(3) from None


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Every tensor's dtype and shape, and config.json's `quantization`."""
    recipe = question["recipe"]
    model = _build(question["config"], question["tensors"])
    quantization = None
    if recipe["bits"] < 16:
        predicate = _predicate(model, recipe)
        # As the command line asks: with a mixed recipe the bits are left to mlx-lm, which then notes its own default.
        bits = None if predicate else recipe["bits"]
        model, config = quantize_model(model, {}, recipe["group"], bits, mode=recipe["mode"], quant_predicate=predicate)
        quantization = config["quantization"]
    parameters: dict[str, Any] = dict(tree_flatten(model.parameters()))
    tensors = {name: [_NAMES[value.dtype], list(value.shape)] for name, value in parameters.items()}
    return {"tensors": tensors, "quantization": quantization}


def main() -> None:
    """Answer one question on standard output; what mlx-lm prints goes elsewhere."""
    question = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        result = answer(question)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
