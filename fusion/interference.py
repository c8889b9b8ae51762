"""How much concepts get in each other's way, from their weights alone: factors in, no dense dW ever formed.

For two changes dW = P Q^T of one layer (P (out, w), Q (in, w)) with thin QR factorisations P = U R_P, Q = V R_Q:

- cosine: <dW_i, dW_j> / (|dW_i| |dW_j|), Frobenius, -1..1; rotations in disjoint slices have exactly 0;
- energy: |<dW_i, dW_j>| / max(|dW_i|, |dW_j|)^2, 0..1: what the sharing is worth to the stronger of the two;
- inputs, outputs: mean squared cosine of the principal angles between the spaces they read, and write: the
  squared singular values of V_i^T V_j, U_i^T U_j (Bjorck & Golub, 1973), over the smaller rank; 1 where one
  space holds the other. Random spaces of ranks a, b in n dimensions have max(a, b) / n on average.

What this cannot tell is whether pictures mix: every slice of the top spectrum reads directions that all inputs
excite. Pictures tell (`fusion.measure`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from spectral_diffusion.fused import Fused
from spectral_diffusion.norms import inner

Factors = tuple[Tensor, Tensor]
# directions below this share of a factor's largest singular value are rounding, not part of its space
_RANK_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Overlap:
    """Two concepts in one layer; see the module."""

    cosine: float
    energy: float
    inputs: float
    outputs: float
    inputs_random: float  # what random spaces of these ranks would have
    outputs_random: float


def overlap(one: Factors, two: Factors) -> Overlap:
    """The interference of two changes of a layer. A change of exactly nothing overlaps with nothing."""
    own, other, cross = inner(one, one), inner(two, two), inner(one, two)
    norms = float((own * other).clamp(min=0).sqrt())
    strongest = float(torch.maximum(own, other))
    (p1, q1), (p2, q2) = spaces(one), spaces(two)
    return Overlap(
        cosine=max(-1.0, min(1.0, float(cross) / norms)) if norms else 0.0,
        energy=min(1.0, abs(float(cross)) / strongest) if strongest else 0.0,
        inputs=shared(q1, q2),
        outputs=shared(p1, p2),
        inputs_random=expected(q1, q2),
        outputs_random=expected(p1, p2),
    )


def spaces(factors: Factors) -> Factors:
    """Orthonormal bases, fp64, of what P Q^T writes (out, rank) and reads (in, rank)."""
    p, q = (side.double() for side in factors)
    left, left_core = torch.linalg.qr(p)
    right, right_core = torch.linalg.qr(q)
    # of the product, not of the factors: a column that the other side annihilates is not used
    U, S, Vh = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    kept = _RANK_TOLERANCE * S[0] < S
    return left @ U[:, kept], right @ Vh.T[:, kept]


def shared(one: Tensor, two: Tensor) -> float:
    """Mean squared cosine of the principal angles of two spaces given by orthonormal columns; 0..1."""
    ranks = one.shape[1], two.shape[1]
    if not min(ranks):
        return 0.0
    return min(1.0, float((one.mT @ two).square().sum()) / min(ranks))


def expected(one: Tensor, two: Tensor) -> float:
    """What `shared` is on average for random spaces of these ranks: |U^T V|^2 has mean a b / n."""
    return max(one.shape[1], two.shape[1]) / len(one) if one.shape[1] and two.shape[1] else 0.0


def pairs(fused: Fused) -> dict[tuple[str, str], dict[str, Overlap]]:
    """(concept, concept) -> layer -> overlap, of the members at strength 1, for every pair and shared layer."""
    found = {}
    for one, two in combinations(fused.names, 2):
        mine, theirs = fused.factors[one], fused.factors[two]
        found[one, two] = {
            layer: overlap(mine[layer], theirs[layer]) for layer in sorted(mine.keys() & theirs.keys())
        }
    return found


def input_overlaps(one: Fused, two: Fused) -> tuple[float, float]:
    """How much two fused files of one read the same inputs, 0..1, and how much random ones would: means over layers."""
    mine, theirs = (part.factors[part.names[0]] for part in (one, two))
    layers = sorted(mine.keys() & theirs.keys())
    inputs = [(spaces(mine[layer])[1], spaces(theirs[layer])[1]) for layer in layers]
    sums = (sum(measure(*pair) for pair in inputs) for measure in (shared, expected))
    found, random = (total / max(len(layers), 1) for total in sums)
    return found, random


def input_overlap(one: Fused, two: Fused) -> float:
    """The first of `input_overlaps`."""
    return input_overlaps(one, two)[0]


def energies(fused: Fused) -> dict[str, dict[str, float]]:
    """concept -> layer -> |dW| (Frobenius) at strength 1."""
    return {name: {layer: _norm(f) for layer, f in layers.items()} for name, layers in fused.factors.items()}


def _norm(factors: Factors) -> float:
    return float(inner(factors, factors).clamp(min=0).sqrt())


def summary(layers: Mapping[str, Overlap]) -> Overlap:
    """The mean over layers; nothing shared is all zero."""
    if not layers:
        return Overlap(0, 0, 0, 0, 0, 0)
    keys = Overlap.__dataclass_fields__
    return Overlap(*(sum(getattr(o, key) for o in layers.values()) / len(layers) for key in keys))
