"""Phi-4's architecture in small: shapes, first weights, the forward pass and the loss, on a processor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tools.nano.batches import Batch

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD = 256, 4, 4, 2, 64, 768
CONTEXT, ROPE_THETA, NORM_EPS = 4096, 250_000, 1e-5
VOCABULARY = 1024
LAYER_TENSORS = (
    "input_layernorm", "self_attn.qkv_proj", "self_attn.o_proj", "post_attention_layernorm", "mlp.gate_up_proj",
    "mlp.down_proj",
)  # fmt: skip

Weights = dict[str, "torch.Tensor"]


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of Phi3ForCausalLM with its shape (rows, columns); qkv_proj stacks q|k|v, gate_up_proj gate|up."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (HIDDEN,)
        shapes[prefix + "self_attn.qkv_proj.weight"] = ((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN)
        shapes[prefix + "self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
        shapes[prefix + "post_attention_layernorm.weight"] = (HIDDEN,)
        shapes[prefix + "mlp.gate_up_proj.weight"] = (2 * FEED_FORWARD, HIDDEN)
        shapes[prefix + "mlp.down_proj.weight"] = (HIDDEN, FEED_FORWARD)
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def initial_weights() -> Weights:
    """float32 leaves: norms are one, matrices normal with 0.02, smaller where they write into the residual stream."""
    import torch

    weights = {}
    for name, shape in weight_shapes().items():
        scale = 0.02 / math.sqrt(2 * LAYERS) if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        tensor = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * scale
        weights[name] = tensor.requires_grad_()
    return weights


def hidden_states(weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """The last layer's normed states (batch, length, HIDDEN) for token ids (batch, length), causal from position 0."""
    import torch.nn.functional as F

    cos, sin = _rotations(ids.shape[1])
    x = F.embedding(ids, weights["model.embed_tokens.weight"])
    for layer in range(LAYERS):
        own = {name: weights[f"model.layers.{layer}.{name}.weight"] for name in LAYER_TENSORS}
        normed = F.rms_norm(x, (HIDDEN,), own["input_layernorm"], NORM_EPS)
        x = x + F.linear(_attention(F.linear(normed, own["self_attn.qkv_proj"]), cos, sin), own["self_attn.o_proj"])
        normed = F.rms_norm(x, (HIDDEN,), own["post_attention_layernorm"], NORM_EPS)
        gate, up = F.linear(normed, own["mlp.gate_up_proj"]).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, own["mlp.down_proj"])
    return F.rms_norm(x, (HIDDEN,), weights["model.norm.weight"], NORM_EPS)


def _rotations(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (length, HEAD_DIM) of the rotary embedding; both halves of a head hold the same frequencies."""
    import torch

    frequencies = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def _attention(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Causal grouped-query attention: (batch, length, (HEADS + 2 KV_HEADS) HEAD_DIM) -> (batch, length, HIDDEN)."""
    import torch

    batch, length, _ = qkv.shape
    heads = qkv.view(batch, length, HEADS + 2 * KV_HEADS, HEAD_DIM).transpose(1, 2)
    rotated, value = heads[:, : HEADS + KV_HEADS], heads[:, HEADS + KV_HEADS :]
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos.to(qkv.dtype) + torch.cat((-second, first), dim=-1) * sin.to(qkv.dtype)
    query, key = rotated[:, :HEADS], rotated[:, HEADS:]
    key, value = (part.repeat_interleave(HEADS // KV_HEADS, dim=1) for part in (key, value))
    # Right padding needs no mask of its own: a causal query never looks to its right. Written out, because
    # scaled_dot_product_attention takes four times as long for such short bfloat16 rows on a CPU.
    future = torch.full((length, length), -torch.inf, dtype=qkv.dtype).triu(1)
    scores = query @ key.transpose(-1, -2) * HEAD_DIM**-0.5 + future
    return (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2).reshape(batch, length, HEADS * HEAD_DIM)


def batch_loss(weights: Weights, batch: Batch, *, autocast: bool = True) -> torch.Tensor:
    """The weighted mean cross-entropy (nats) of the assistant's tokens; products in bfloat16 with `autocast`."""
    import torch
    import torch.nn.functional as F

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        states = hidden_states(weights, batch.ids[:, :-1])
        share = batch.loss_weight[:, 1:]
        counted = share > 0
        logits = F.linear(states[counted], weights["lm_head.weight"])
    losses = F.cross_entropy(logits.float(), batch.ids[:, 1:][counted], reduction="none")
    return (losses * share[counted]).sum() / share.sum()
