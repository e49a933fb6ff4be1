"""Muon and AdamW with their learning-rate schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tools.nano.model import FEED_FORWARD, HEAD_DIM, HEADS, KV_HEADS, Weights

if TYPE_CHECKING:
    import torch


def schedule(step: int, steps: int) -> float:
    """The share of the peak learning rate: linear warm-up over 100 steps, then a cosine to zero."""
    if step < 100:
        return (step + 1) / 100
    return 0.5 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100)))


class Optimizer:
    """Muon for the layers' matrices, AdamW for embeddings, head and norms.

    Muon (momentum, then the nearest orthogonal matrix as the step) reaches an accuracy on unseen sums in about half
    of the steps that AdamW alone takes, which on a laptop's processor is most of the training time.
    """

    MUON_PEAK, ADAM_PEAK, MOMENTUM, DECAY = 0.02, 3e-3, 0.95, 0.05

    def __init__(self, weights: Weights) -> None:
        import torch

        self.matrices = {n: w for n, w in weights.items() if ".layers." in n and w.dim() == 2}
        self.momenta = {name: torch.zeros_like(weight) for name, weight in self.matrices.items()}
        self.others = [weight for name, weight in weights.items() if name not in self.matrices]
        self.adam = torch.optim.AdamW(self.others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, share: float) -> None:
        """One update at `share` of the peak learning rates; clears the gradients."""
        import torch

        for group in self.adam.param_groups:
            group["lr"] = self.ADAM_PEAK * share
        self.adam.step()
        self.adam.zero_grad()
        rate = self.MUON_PEAK * share
        with torch.no_grad():
            for name, weight in self.matrices.items():
                momentum = self.momenta[name].mul_(self.MOMENTUM).add_(weight.grad)
                direction = weight.grad + self.MOMENTUM * momentum
                # Stacked projections are matrices of their own.
                update = torch.cat([orthogonalized(part) for part in direction.split(_stacked_rows(name, weight))])
                weight.mul_(1 - rate * self.DECAY).sub_(rate * update)
                weight.grad = None


def _stacked_rows(name: str, weight: torch.Tensor) -> list[int]:
    """The row counts of the projections that a fused matrix stacks."""
    if "qkv_proj" in name:
        return [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM]
    if "gate_up_proj" in name:
        return [FEED_FORWARD, FEED_FORWARD]
    return [weight.shape[0]]


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix (same shape) with singular values of one, scaled up for tall ones; five Newton-Schulz
    steps with the coefficients that pull small singular values up fastest."""
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    return (x.T if tall else x).float() * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
