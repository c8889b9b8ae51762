"""Norm control: how large a sum of weight changes may get, from the factors alone.

**The rule.** In a layer, members alone have norms n_k = |strength_k dW_k| (Frobenius). Changes that have
nothing to do with each other add up to sqrt(sum_k n_k^2); changes that point the same way add up to
sum_k n_k, and overcook what they share. With norm control a layer's sum is scaled down to
`cap * sqrt(sum_k n_k^2)` where it is larger, and left bit for bit as it is where not. It follows that:
one member is never changed; members with orthogonal changes (rotations in disjoint slices) are never
changed; of n equal changes the cap leaves cap * sqrt(n) instead of n; and the gain depends only on the
members that act, so dropping one gives what never having had it gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# what two members may share before they are scaled: a cosine of .56
DEFAULT_CAP = 1.25
# up to this columns^2 / width the norm of a sum is quicker by its factors than by the sum itself
_FEW = 4


def inner(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> Tensor:
    """<P1 Q1^T, P2 Q2^T> (Frobenius) of factors P (out, w), Q (in, w), in fp64 without forming either product.

    trace((P1 Q1^T)^T P2 Q2^T) = sum((P1^T P2) * (Q1^T Q2)).
    """
    (p1, q1), (p2, q2) = ((p.double(), q.double()) for p, q in (one, two))
    return ((p1.mT @ p2) * (q1.mT @ q2)).sum()


def gain(parts: Sequence[tuple[Tensor, Tensor]], cap: float, change: Tensor | None = None) -> float:
    """The factor that norm control puts on sum_k P_k Q_k^T: 1 or less, and exactly 1 for a single part.

    `change`: that sum, (out, in), where it is at hand; its norm is cheaper than the factors' for many parts.
    """
    if len(parts) < 2:
        return 1.0
    alone = sum(float(inner(part, part)) for part in parts)
    columns = sum(p.shape[1] for p, _ in parts)
    if change is None or columns**2 <= _FEW * min(change.shape):
        p, q = (torch.cat(side, dim=1) for side in zip(*parts, strict=True))
        together = float(inner((p, q), (p, q)))
    else:
        together = float(change.double().square().sum())
    return 1.0 if together <= cap**2 * alone else cap * (alone / together) ** 0.5
