"""Makes `tests/data/metadata`: what llama.cpp's converter and quantizer write for the checkpoints of `tests.golden`.

    python -m tools.golden_metadata --cl100k FILE --o200k FILE --converter convert_hf_to_gguf.py --python PYTHON

The ranks files are `cl100k_base.tiktoken` and `o200k_base.tiktoken`; PYTHON has PyTorch, transformers 4.57 and
sentencepiece. Every folder is converted to bf16 and f16; the two differ in `general.file_type` and in the types of the
matrices alone, which is checked here, so that one file per folder suffices.

What the converter does, read in its source and seen in its output:

Tensors. First the rope factors (long, then short; mini only), then shard by shard in the order of the shards' names,
and within a shard by tensor name as text, whatever the header's order: `model.layers.10.` before `model.layers.2.`,
and `lm_head.weight` before every `model.`. Vectors and norms are F32. The quantizer writes another order: tensors
outside the layers first, by name, then layer by layer as numbers, by name within a layer.

Keys. `general.architecture` first, then `phi3.rope.scaling.attn_factor` (mini only: written with the rope factors),
then `general.type`, `general.sampling.*`, the other `general.*`, `phi3.*` with `general.file_type` before the sliding
window, `general.quantization_version`, `tokenizer.*`. The quantizer keeps all keys and removes none; it sets
`general.quantization_version` and `general.file_type` again, which moves them to the end, in that order.

Token types. An id that tokenizer.json names neither in its vocabulary nor among its added tokens is `[PADn]`, UNUSED.
An added token is CONTROL when it is special or looks like `<|...|>`, otherwise USER_DEFINED; so the mini line's tool
tags, which are not special, are CONTROL too. All others are NORMAL. The embedding's rows (`vocab_size`) give the
count.

Special ids. `<kind>_token` of tokenizer_config.json, looked up among the added tokens of tokenizer.json, wins over
`<kind>_token_id` of config.json; generation_config.json and special_tokens_map.json are not read for them. Kinds in
this order: bos, eos, unk, sep, pad, cls, mask; a kind found in config.json alone comes after the others. The flags
`add_bos_token` and `add_eos_token` are false if tokenizer.json has a ByteLevel post-processor, else as in
tokenizer_config.json, else absent. The template is tokenizer_config.json's, else chat_template.jinja's.

`general.*`. Each from the first that has it: the card's front matter, `_name_or_path` of config.json, the folder's
name. "phi-4" is read as basename phi, version 4; "Phi-4-mini-instruct" as basename Phi-4, size label mini, finetune
instruct; "Phi-4-reasoning" says nothing but a name. Without a size in the name the label counts all elements, the rope
factors included. Tags are the card's with the pipeline tag at the end. Sampling comes from generation_config.json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp

from tests.golden import CASES, FOLDER, Case, describe
from tests.shapes import O200K
from tests.vocabularies import Vocabulary, cl100k_tokenizer, o200k_tokenizer

F16_FILE_TYPE = 1


def convert(arguments: argparse.Namespace, folder: Path, outtype: str) -> Path:
    """Runs the converter on a folder of weights."""
    out = folder.parent / f"{outtype}.gguf"
    environment = os.environ | {"PYTHONPATH": str(arguments.converter.parent / "gguf-py")}
    command = [arguments.python, arguments.converter, folder, "--outtype", outtype, "--outfile", out]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return out


def quantize(source: Path, file_type: int) -> Path:
    """Runs the engine's quantizer on a file."""
    out = source.with_name("quantized.gguf")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type
    parameters.nthread = 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(parameters)) != 0:
        raise RuntimeError(f"the quantizer refused {source}")
    return out


def check_f16(bf16: dict[str, Any], f16: dict[str, Any]) -> None:
    """The two conversions are the same but for the file type and the matrices' type."""
    expected = bf16["metadata"] | {"general.file_type": {"type": "UINT32", "value": F16_FILE_TYPE}}
    tensors = {name: text.removeprefix("B") for name, text in bf16["tensors"].items()}
    if list(f16["metadata"].items()) != list(expected.items()) or f16["tensors"] != tensors:
        raise RuntimeError("bf16 and f16 differ in more than their types")


def golden(arguments: argparse.Namespace, case: Case, vocabulary: Vocabulary) -> dict[str, Any]:
    """One case: the conversion in full, and of its quantization what differs."""
    tail = case.shape.line.span
    with tempfile.TemporaryDirectory() as parent:
        folder = case.write(Path(parent), vocabulary)
        bf16_path = convert(arguments, folder, "bf16")
        bf16 = describe(bf16_path, tail)
        check_f16(bf16, describe(convert(arguments, folder, "f16"), tail))
        quantized = describe(quantize(bf16_path, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M), tail)
    changed = {name: entry for name, entry in quantized["metadata"].items() if entry != bf16["metadata"].get(name)}
    order = list(quantized["metadata"])
    return bf16 | {"quantized": {"keys": order, "changed": changed, "tensors": quantized["tensors"]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cl100k", "o200k", "converter"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--python", required=True, help="an interpreter that can run the converter")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    vocabularies = {False: cl100k_tokenizer(arguments.cl100k), True: o200k_tokenizer(arguments.o200k)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        value = golden(arguments, case, vocabularies[case.shape.line == O200K])
        made_with = {"made_with": f"llama-cpp-python {llama_cpp.__version__}"}
        text = json.dumps(made_with | value, indent=1, ensure_ascii=False)
        (arguments.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(name, len(value["metadata"]), "keys", len(value["tensors"]), "tensors")


if __name__ == "__main__":
    main()
