"""The plan of an MLX build: a folder whose every byte is known before a weight is read.

    config.json, tokenizer.json ...    small files, repaired (`quant.mlx_repair`)
    model.safetensors                  8 bytes of length, a header, then all tensors in mlx-lm's names

What each tensor becomes is mlx-lm's own answer (`AskMlx`). Tensors of wide items come first, as the safetensors
package writes them, so that each lies where its items can be read in place.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from phi4local.errors import BackendError
from quant.mlx import BUILDS
from quant.mlx_repair import HALVES, finished_files, in_16_bits, mended_folder
from quant.mlx_rows import MlxFormat, Packing, make_parts
from quant.names import source_shapes
from quant.plan import Plan
from quant.rows import Bytes, Piece, Stored
from quant.safetensors import ITEM_BYTES, Record
from quant.source import Source

# {"config", "tensors": {name: [dtype, shape]}, "recipe"} -> {"tensors": {name: [dtype, shape]}, "quantization"}
AskMlx = Callable[[Mapping[str, Any]], dict[str, Any]]
_ALIGNMENT = 8
_WHOLE = 16  # bits of a weight that is not packed
_ITEM_BYTES = ITEM_BYTES | {"U32": 4, "U8": 1}
Shapes = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class MlxTensor:
    """A source tensor and what becomes of it: itself in another dtype, or packed weights, their scales and biases."""

    name: str
    record: Record
    form: MlxFormat
    stored: tuple[Stored, ...]
    ready: ClassVar[Piece | None] = None

    @property
    def parameters(self) -> int:
        return math.prod(self.record.shape)

    @property
    def kind(self) -> str:
        packing = self.form.packing
        if packing is None:
            return self.form.cast
        return f"{packing.bits}-bit" if packing.mode == "affine" else packing.mode.upper()

    def pieces(self, rows: Bytes, first_row: int) -> Iterator[Piece]:
        all_rows = self.record.size_bytes // (self.form.weights * ITEM_BYTES[self.form.dtype])
        for stored, part in zip(self.stored, make_parts(self.form, rows, self.name), strict=True):
            yield stored.offset + first_row * (stored.size_bytes // all_rows), part


@dataclass(frozen=True, slots=True)
class MlxPlan(Plan):
    """A plan whose build is a folder."""

    format: ClassVar[str] = "mlx"
    quantizer: ClassVar[str] = "mlx"


def make_mlx_plan(source: Source, build: str, ask: AskMlx) -> MlxPlan:
    """Lay an MLX build out (FormatError, BackendError). `ask` puts the question to mlx-lm."""
    records = source.checkpoint.records
    wanted = {name: records[name] for name in source_shapes(source.config)}
    dtypes = {name: record.dtype for name, record in wanted.items()}
    folder, dtype = in_16_bits(mended_folder(source), dtypes, is_whole=BUILDS[build].bits == _WHOLE)
    folder.config.pop("quantization", None)  # the weights are whole, whatever it said
    config = folder.config | ({"torch_dtype": dtype} if dtype else {})  # mlx-lm knows the older key alone
    tensors = {name: [record.dtype, list(record.shape)] for name, record in wanted.items()}
    answer = ask({"config": config, "tensors": tensors, "recipe": dataclasses.asdict(BUILDS[build])})
    shapes, quantization = _read_answer(answer)
    half = HALVES[dtype] if dtype else None
    forms = {name: _form(name, record, shapes, quantization, half) for name, record in wanted.items()}
    parts = {name: _part_names(name, form) for name, form in forms.items()}
    if sorted(shapes) != sorted(part for names in parts.values() for part in names):
        raise _strange("other tensors than the weights have")
    header, offsets = _lay_out(shapes)
    planned = tuple(
        MlxTensor(name, wanted[name], forms[name], tuple(_stored(part, shapes, offsets) for part in parts[name]))
        for name in wanted
    )
    size_bytes = len(header) + sum(_size(shapes, name) for name in shapes)
    files = finished_files(folder, quantization)
    return MlxPlan(source, build, header, planned, size_bytes, folder.repairs, files)


def _read_answer(answer: Mapping[str, Any]) -> tuple[Shapes, dict[str, Any]]:
    tensors, quantization = answer.get("tensors"), answer.get("quantization") or {}
    if not isinstance(tensors, dict) or not isinstance(quantization, dict):
        raise _strange("nothing that is known here")
    shapes = {name: (str(dtype), tuple(shape)) for name, (dtype, shape) in tensors.items()}
    if unknown := {dtype for dtype, _ in shapes.values()} - _ITEM_BYTES.keys():
        raise _strange(f"dtype {unknown.pop()}")
    return shapes, quantization


def _strange(what: str) -> BackendError:
    return BackendError(f"MLX named {what} for these weights", hint="Reinstall it: pip install 'phi4local[mlx]'")


def _form(name: str, record: Record, shapes: Shapes, quantization: dict[str, Any], half: str | None) -> MlxFormat:
    """How a tensor is stored; the shapes that MLX named must be those that follow from that.

    `half` is the type that a matrix is cast to before it is packed; of a block scale it cannot be told.
    """
    base = name.removesuffix(".weight")
    scales = shapes.get(f"{base}.scales")
    if scales is None:
        dtype, shape = shapes.get(name, ("", ()))
        if dtype not in ITEM_BYTES or math.prod(shape) != math.prod(record.shape):
            raise _strange(f"another form of `{name}`")
        return MlxFormat(record.dtype, dtype, record.shape[-1], None)
    how = quantization.get(base, quantization)
    packing = Packing(how["bits"], how["group_size"], how.get("mode", "affine"))
    cast = scales[0] if packing.mode == "affine" else half or record.dtype
    form = MlxFormat(record.dtype, cast, record.shape[-1], packing)
    named = [shapes.get(part, ("", ()))[1] for part in _part_names(name, form)]
    if named != list(packing.part_shapes(record.shape)):
        raise _strange(f"another form of `{name}`")
    return form


def _part_names(name: str, form: MlxFormat) -> tuple[str, ...]:
    base = name.removesuffix(".weight")
    return tuple(f"{base}.{part}" for part in form.packing.parts) if form.packing else (name,)


def _size(shapes: Shapes, name: str) -> int:
    dtype, shape = shapes[name]
    return _ITEM_BYTES[dtype] * math.prod(shape)


def _stored(name: str, shapes: Shapes, offsets: dict[str, int]) -> Stored:
    return Stored(name, shapes[name][0], offsets[name], _size(shapes, name))


def _lay_out(shapes: Shapes) -> tuple[bytes, dict[str, int]]:
    """The file's header, and where each tensor lies."""
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    position = 0
    for name in sorted(shapes, key=lambda name: (-_ITEM_BYTES[shapes[name][0]], name)):
        dtype, shape = shapes[name]
        end = position + _size(shapes, name)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + entry["data_offsets"][0] for name, entry in entries.items() if name in shapes}
