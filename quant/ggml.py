"""ggml's tensor types as a table, and the one place where libggml's quantizers are called.

A row of weights is cut into blocks; each block of `block_weights` numbers takes `block_bytes`. Everything else here is
arithmetic on that table. Sources: `ggml.h` (type ids), `ggml-common.h` (block layouts), `llama.h` (file types).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from phi4local.errors import BackendError, FormatError


@dataclass(frozen=True, slots=True)
class TensorType:
    """One of ggml's storage types: its name as llama.cpp prints it, its id in a GGUF, and its block."""

    name: str
    id: int
    block_weights: int
    block_bytes: int

    def row_bytes(self, weights: int) -> int:
        """Bytes of one row of `weights` numbers (FormatError where they do not fill whole blocks)."""
        blocks, rest = divmod(weights, self.block_weights)
        if rest:
            raise FormatError(f"A row of {weights} weights does not divide into {self.name} blocks")
        return blocks * self.block_bytes


_ROWS = (
    # name, id, weights in a block, bytes of a block
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98),
    ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18),
    ("IQ3_S", 21, 256, 110),
    ("IQ2_S", 22, 256, 82),
    ("IQ4_XS", 23, 256, 136),
    ("I8", 24, 1, 1),
    ("I16", 25, 1, 2),
    ("I32", 26, 1, 4),
    ("I64", 27, 1, 8),
    ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56),
    ("BF16", 30, 1, 2),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
    ("MXFP4", 39, 32, 17),
    ("NVFP4", 40, 64, 36),
)
TYPES = {row[0]: TensorType(*row) for row in _ROWS}
TYPES_BY_ID = {tensor_type.id: tensor_type for tensor_type in TYPES.values()}

# The builds that can be made: name -> llama_ftype (llama.h), which is also `general.file_type` in the result.
BUILDS = {
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
}

_LIBRARY_NAMES = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}


def library_folder() -> Path:
    """Where the installed engine keeps its shared libraries (found without importing the binding)."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise BackendError("llama-cpp-python is not installed", hint="pip install llama-cpp-python==0.3.36")
    return Path(spec.submodule_search_locations[0]) / "lib"


@functools.cache
def _library() -> ctypes.CDLL:
    path = library_folder() / _LIBRARY_NAMES.get(sys.platform, "libggml-base.so")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(f"The engine's library `{path.name}` cannot be loaded: {error}") from None
    i64, size, pointer = ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p
    library.ggml_quantize_chunk.restype = size
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, i64, i64, i64, pointer]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, size]
    for widen in (library.ggml_bf16_to_fp32_row, library.ggml_fp16_to_fp32_row):
        widen.restype = None
        widen.argtypes = [pointer, pointer, i64]
    return library


def widen(dtype: str, source: int, target: int, weights: int) -> None:
    """Turn `weights` 16-bit numbers (BF16 or F16) at address `source` into float32 at address `target`."""
    library = _library()
    rows = {"BF16": library.ggml_bf16_to_fp32_row, "F16": library.ggml_fp16_to_fp32_row}
    rows[dtype](source, target, weights)


def quantize_rows(tensor_type: TensorType, source: int, target: int, rows: int, row_weights: int) -> int:
    """Quantize float32 rows at `source` into `target`; returns the bytes written. The GIL is released meanwhile."""
    return int(_library().ggml_quantize_chunk(tensor_type.id, source, target, 0, rows, row_weights, None))


def rows_are_valid(tensor_type: TensorType, data: int, size_bytes: int) -> bool:
    """Whether no scale and no number in the stored rows is NaN or infinite."""
    return bool(_library().ggml_validate_row_data(tensor_type.id, data, size_bytes))
