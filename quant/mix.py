"""Which type each tensor has in the files that are already published.

llama.cpp's quantizer is asked for today's mixes. The published Phi-4 files are older than one of its rules: then the
fused `attn_qkv` had the mix's own type, with the exceptions below, and was not yet ruled like `attn_v`. With that
rule the sizes of 15 files of microsoft/phi-4-gguf and 12 of the mini's come out exact to the byte.
"""

from __future__ import annotations

from quant.ggml import TYPES
from quant.skeleton import Types

# build -> the type of `attn_qkv`, where the build's own name is not that type's name
_FUSED_ATTENTION = {
    "Q2_K": "Q2_K",
    "Q3_K_S": "Q3_K",
    "Q3_K_M": "Q4_K",
    "Q3_K_L": "Q4_K",
    "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q5_K",
    "Q5_K_S": "Q5_K",
    "Q5_K_M": "Q6_K",
}


def published_types(build: str, types: Types) -> Types:
    """Today's types of a build as they are in the published file of that name."""
    fused = TYPES[_FUSED_ATTENTION.get(build, build)]
    return {name: fused if name.endswith(".attn_qkv.weight") else kind for name, kind in types.items()}
