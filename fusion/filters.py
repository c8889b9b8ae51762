"""Least-squares fusion in closed form: an input-side filter per concept. Ours; pure maths on factors and moments.

Let C_k = mean(x x^T) over what a layer reads when concept k is drawn, C_0 over what it reads in neutral runs.
We ask concept i's filtered change dW_i M_i to act on its own inputs as dW_i does and to leave alone what
other concepts and neutral prompts feed the layer:

    min_M  own |dW_i M X_i - dW_i X_i|^2 + others sum_j!=i |dW_i M X_j|^2 + neutral |dW_i M X_0|^2 + e |dW_i M|^2

The gradient is dW_i^T dW_i (M T_i - own C_i) with T_i = own C_i + others sum_j!=i C_j + neutral C_0 + e I,
so that M_i = own C_i T_i^-1 is a minimum whatever dW_i is: a Wiener filter, which passes directions that only
concept i excites and shares out those that all excite. With dW_i = P Q^T the filtered change is
P (M_i^T Q)^T = P (T_i^-1 own C_i Q)^T: one solve with a few columns, the rank stays, the member stays adjustable.

**Gradient fusion is the same thing.** Mix-of-Show's min_W sum_i |W X_i - (W_0 + dW_i) X_i|^2
+ neutral |(W - W_0) X_0|^2 + e |W - W_0|^2 has (W - W_0) T = sum_i dW_i C_i, whose solution is the sum of the
filtered members with own = others = 1. So it too is exact, low-rank and adjustable; what its L-BFGS returns
is this, not yet converged (`lbfgs`, the reference).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusion.recorded import Recorded
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused

Factors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Weights:
    """How much each demand counts; moments are means, so the numbers of prompts and pixels do not matter."""

    own: float = 1.0
    others: float = 1.0
    neutral: float = 1.0
    ridge: float = 1e-4  # e, in units of the mean square of the concepts' own inputs

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not 0 <= value < float("inf"):
                raise InputError(f"{name} must be a number from 0 on, not {value}.")
        if not self.own or not self.ridge:
            raise InputError("own and ridge must be above 0: without them there is nothing to solve.")


def demand(name: str, own: Mapping[str, Tensor], neutral: Tensor, weights: Weights) -> Tensor:
    """T of a concept: (in, in) fp64.

    The ridge is measured by the concepts' own inputs: neutral ones hold CLIP's start token, whose few huge numbers
    would make a ridge that hides everything else.
    """
    total = weights.neutral * neutral.double()
    for other, moment in own.items():
        total = total + (weights.own if other == name else weights.others) * moment.double()
    scale = sum(float(moment.diagonal().mean()) for moment in own.values()) / len(own)
    return total + weights.ridge * (scale or 1.0) * torch.eye(len(total), dtype=total.dtype)


def root_of(total: Tensor) -> Tensor:
    """Cholesky factor of T, lower (in, in). Where rounding of the moments (fp32) leaves T not positive definite, the
    least power of ten of its mean diagonal that makes it so is added: 1e-9, 1e-8, …"""
    root, failed = torch.linalg.cholesky_ex(total)
    lift = 1e-9 * float(total.diagonal().mean())
    while failed and lift < float("inf"):  # ends on NaN, too
        root, failed = torch.linalg.cholesky_ex(total + lift * torch.eye(len(total), dtype=total.dtype))
        lift *= 10
    return root


def filter_side(Q: Tensor, own: Tensor, root: Tensor, weight: float) -> Tensor:
    """T^-1 (weight * C) Q, fp32 (in, w): what a member's input side becomes. `root`: Cholesky factor of T."""
    return torch.cholesky_solve(weight * (own.double() @ Q.double()), root).float()


def filter_all(parts: Sequence[Fused], recorded: Recorded, weights: Weights) -> list[Fused]:
    """Every part (a fused file of one) filtered against all the others; ranks, words and strengths stay.

    Layer by layer, so that no more than one T is in memory; where own = others, one T serves all concepts.
    Raises InputError for a concept whose inputs are not recorded.
    """
    _check(recorded, parts)
    found: dict[str, dict[str, Factors]] = {part.names[0]: {} for part in parts}
    for layer in sorted({layer for part in parts for layer in part.layers()}):
        here = {part.names[0]: part.factors[part.names[0]][layer] for part in parts if layer in part.layers()}
        moments = {name: recorded.own[name][layer] for name in found}
        for name, factors in filter_layer(here, moments, recorded.neutral[layer], weights).items():
            found[name][layer] = factors
    return [replace(part, factors={part.names[0]: found[part.names[0]]}) for part in parts]


def filter_layer(
    factors: Mapping[str, Factors], own: Mapping[str, Tensor], neutral: Tensor, weights: Weights
) -> dict[str, Factors]:
    """One layer: concept -> filtered (P, Q), from the concepts' factors and moments (in, in)."""
    filtered: dict[str, Factors] = {}
    root = None
    for name, (P, Q) in factors.items():
        if root is None or weights.own != weights.others:
            root = root_of(demand(name, own, neutral, weights))
        filtered[name] = P, filter_side(Q, own[name], root, weights.own)
    return filtered


def _check(recorded: Recorded, parts: Sequence[Fused]) -> None:
    for part in parts:
        (name,) = part.names
        if name not in recorded.own or not set(part.layers()) <= recorded.own[name].keys():
            raise InputError(f"The inputs of {name} are not recorded: record them on its base first.")


# the problem itself, to check solutions against


def misfit(change: Tensor, wanted: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> float:
    """sum_i mean |change x - wanted_i x|^2 over each concept's inputs; changes (out, in), moments (in, in)."""
    total = 0.0
    for name, target in wanted.items():
        off = change.double() - target.double()
        total += float(((off @ own[name].double()) * off).sum())
    return total


def lbfgs(
    wanted: Mapping[str, Tensor], own: Mapping[str, Tensor], iterations: int = 50, history: int = 100
) -> Tensor:
    """Mix-of-Show's way: the same problem without neutral inputs by L-BFGS from no change, fp32 (out, in)."""
    first = next(iter(wanted.values()))
    change = torch.zeros_like(first, dtype=torch.float32).requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [change], max_iter=iterations, history_size=history, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        offs = ((change - target.float(), own[name].float()) for name, target in wanted.items())
        value = torch.stack([((off @ moment) * off).sum() for off, moment in offs]).sum()
        value.backward()
        return value

    optimiser.step(loss)
    return change.detach()
