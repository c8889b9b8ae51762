"""Is a base the one a concept was trained on, the same in another precision, or another base?

The fingerprint tells the first: it is equal for fp32 and fp16. Rounding to bf16 loses bits that no hash can
bring back, so that case is measured: a concept knows the singular vectors U and V of its base, and W^T U lies
in the span of V for that W. What sticks out is compared with what rounding W to bf16 would cause. A base
that another training moved by less than that cannot be told apart from a rounded one; it acts as one, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

Relation = Literal["same", "rounded", "other"]
_BF16, _FP16 = 2.0**-8, 2.0**-11  # the largest relative error of one rounding


def _additive(P: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    # P = [A | U]; the halves of Q differ by V diag(S), see `tuner.maths.additive_factors`
    rank = P.shape[1] // 2
    return P[:, rank:], torch.nn.functional.normalize(Q[:, :rank] - Q[:, rank:], dim=0)


def _rotational(P: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
    return P, Q  # in the span of U; V itself


_SPANS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "additive": _additive,
    "rotational": _rotational,
}


def is_rounding(layers: Iterable[tuple[str, Tensor, Tensor, Tensor]]) -> bool:
    """Whether the weights are those the factors were made from, give or take a rounding to bf16.

    `layers` are (form, P (out, p), Q (in, p), W (out, in, …)), the factors as `tuner.maths` makes them. No
    layers are no proof: False.
    """
    outside = allowed = 0.0
    for form, P, Q, weight in layers:
        U, V = _SPANS[form](P.float(), Q.float())
        W = weight.detach().cpu().float().flatten(1)
        read = W.mT @ U
        outside += (read - V @ (V.mT @ read)).square().sum().item()
        # noise of relative size e in every number of W moves W^T U by about e |W| |U| / sqrt(out)
        noise = W.square().sum().item() * U.square().sum().item() / len(W)
        allowed += _BF16**2 * noise + _FP16**2 * read.square().sum().item()  # the file's U and V are fp16
    return allowed > 0.0 and outside <= allowed
