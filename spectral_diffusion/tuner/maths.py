"""The weight change of the spectral adapter as pure functions of tensors (paper section 1).

Shapes, for a weight W (out x in) and a slice of r columns: U (out x r), S (r), V (in x r) are the slice of
the thin SVD W = U diag(S) V^T; A, B, C are the trained numbers. Everything is fp32. In both forms the
weight change is given as factors P, Q with dW = P Q^T, never as a small difference of large numbers, so
that all numbers at zero give exactly zero and half precision costs relative, not absolute, accuracy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_diffusion.triplets import Triplets

# A column with hardly any singular value would otherwise be given a boundless step.
MOST_GAIN = 1e3


class Numbers(NamedTuple):
    """What is trained; all zero means no change.

    additive: A (out x r), B (in x r), C (r) is added to S.
    rotational: A, B (r x r), C (r) scales S by 1 + C (the paper stores 1 + C; zero keeps weight decay
    from pulling the singular values to zero and small changes exact).
    """

    A: Tensor
    B: Tensor
    C: Tensor


Factors = tuple[Tensor, Tensor]


def additive_factors(triplets: Triplets, numbers: Numbers) -> Factors:
    """P (out x 2r), Q (in x 2r) of (U + A) diag(S + C) (V + B)^T - U diag(S) V^T, expanded."""
    (U, S, V), (A, B, C) = triplets, numbers
    scaled_B = B * (S + C)
    return torch.cat([A, U], dim=1), torch.cat(
        [torch.addcmul(scaled_B, V, S + C), torch.addcmul(scaled_B, V, C)], 1
    )


def rotational_factors(triplets: Triplets, numbers: Numbers) -> Factors:
    """P (out x r), Q (in x r) of U (Q(A) diag(S (1 + C)) Q(B)^T - diag(S)) V^T, Q the Cayley transform."""
    (U, S, V), (A, B, C) = triplets, numbers
    turn_A, turn_B = cayley_minus_identity(torch.stack([A, B]))
    scaled = S * (1 + C)
    left = turn_A * scaled
    # (I + turn_A) diag(scaled) (I + turn_B)^T - diag(S), without the terms that cancel.
    core = torch.diag(S * C) + left + (torch.diag(scaled) + left) @ turn_B.mT
    return U @ core, V


def cayley_minus_identity(X: Tensor) -> Tensor:
    """(I - K)(I + K)^-1 - I = -2 K (I + K)^-1 with K = (X - X^T) / 2; X (... x r x r), fp32."""
    K = (X - X.mT) / 2
    # K and (I + K)^-1 commute, so solving from the left gives the same product.
    return -2 * torch.linalg.solve(torch.eye(X.shape[-1], dtype=X.dtype, device=X.device) + K, K)


def project_off(X: Tensor, basis: Tensor) -> Tensor:
    """X (n x r) without its part in the span of the orthonormal columns of `basis` (n x m)."""
    return X - basis @ (basis.mT @ X)


def depth_gain(S: Tensor, top: Tensor) -> Tensor:
    """How much larger a column's step must be to act like one at the top: top / S, at most `MOST_GAIN`."""
    return torch.where(S > 0, top / S, MOST_GAIN).clamp(max=MOST_GAIN)


def _scale_additive(numbers: Numbers, gain: Tensor) -> Numbers:
    # U C V^T does not depend on S.
    return Numbers(numbers.A * gain, numbers.B * gain, numbers.C)


def _scale_rotational(numbers: Numbers, gain: Tensor) -> Numbers:
    return Numbers(*(n * gain for n in numbers))


def _additive_shapes(out: int, width: int, r: int) -> tuple[tuple[int, ...], ...]:
    return (out, r), (width, r), (r,)


def _rotational_shapes(out: int, width: int, r: int) -> tuple[tuple[int, ...], ...]:
    return (r, r), (r, r), (r,)


@dataclass(frozen=True)
class Form:
    """One way to move a slice: its factors, the shapes of A, B, C, where a gain acts, the rank of dW / r."""

    factors: Callable[[Triplets, Numbers], Factors]
    shapes: Callable[[int, int, int], tuple[tuple[int, ...], ...]]
    scale: Callable[[Numbers, Tensor], Numbers]
    rank_factor: int


FORMS: dict[str, Form] = {
    "additive": Form(additive_factors, _additive_shapes, _scale_additive, 2),
    "rotational": Form(rotational_factors, _rotational_shapes, _scale_rotational, 1),
}
