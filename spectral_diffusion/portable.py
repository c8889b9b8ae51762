"""Is a base the one a concept was trained on, the same in another precision, or another base?

The fingerprint tells the first: it is equal for fp32 and fp16. Rounding to bf16 loses bits that no hash can
bring back, so that case is measured: a concept knows singular vectors of its base, U or V, and W W^T U lies in the
span of U, W^T W V in that of V, for that W alone. What sticks out is compared with what rounding W to bf16 would
cause. Either side is proof: a method of fusion may change one of them (`filtered` the input side, `svd` the output
side) and has to leave the other. A base that another training moved by less than a rounding cannot be told apart from
a rounded one; it acts as one, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from spectral_diffusion.errors import BaseMismatch

if TYPE_CHECKING:
    from spectral_diffusion.base import Base
    from spectral_diffusion.fused import Fused

Relation = Literal["same", "rounded", "other"]
_BF16, _FP16 = 2.0**-8, 2.0**-11  # the largest relative error of one rounding
_RANK_TOLERANCE = 1e-4  # columns smaller than this share of the largest are noise of the file
_MOST_KNOWN = 256
_KNOWN: dict[tuple[object, ...], Relation] = {}


def remembered(
    fingerprint: str, factors: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]], find: Callable[[], Relation]
) -> Relation:
    """What `find` told of these factors, by member and layer, and the base of this fingerprint.

    It takes seconds at full size, and one drawing asks several times.
    """
    sums = [(n, k, p.sum().item(), q.sum().item()) for n, f in factors.items() for k, (p, q) in f.items()]
    key = (fingerprint, *sums)
    if key not in _KNOWN:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        _KNOWN[key] = find()
    return _KNOWN[key]


def check_prediction(fused: Fused, base: Base) -> None:
    """Raises BaseMismatch if `base` is loaded to predict something else than the one that `fused` was made over.

    No fingerprint tells it: the weights are the same.
    """
    if fused.prediction not in (None, base.prediction):
        raise BaseMismatch(
            f"{', '.join(fused.names)} was trained on a base that predicts {fused.prediction}, and {base.name} is "
            f"loaded as one that predicts {base.prediction}: give --prediction {fused.prediction}."
        )


def check_one_prediction(one: Fused, two: Fused) -> None:
    """Raises BaseMismatch if two were made over one base that was loaded to predict different things."""
    if one.prediction and two.prediction and one.prediction != two.prediction:
        raise BaseMismatch(
            f"{', '.join(one.names)} was trained on a base that predicts {one.prediction}, {', '.join(two.names)} on "
            f"one that predicts {two.prediction}: only concepts of one base go together."
        )


def _outputs(form: str, P: Tensor, Q: Tensor) -> Tensor:
    """Columns (out, r) in the span of U: U itself, the second half of P = [A | U]; of a rotation P, in that span."""
    return P[:, P.shape[1] // 2 :] if form == "additive" else P


def _inputs(form: str, P: Tensor, Q: Tensor) -> Tensor:
    """Columns (in, r) in the span of V; the halves of an additive Q differ by V diag(S), see `tuner.maths`."""
    half = Q.shape[1] // 2
    return Q[:, :half] - Q[:, half:] if form == "additive" else Q


def is_rounding(layers: Iterable[tuple[str, Tensor, Tensor, Tensor]]) -> bool:
    """Whether the weights are those the factors were made from, give or take a rounding to bf16.

    `layers` are (form, P (out, p), Q (in, p), W (out, in, …)), the factors as `tuner.maths` makes them, or with one
    side changed. No layers are no proof: False.
    """
    strays: dict[str, list[Tensor]] = {"outputs": [], "inputs": []}
    for form, P, Q, weight in layers:
        W = weight.detach().cpu().float().flatten(1)
        strays["outputs"].append(_stray(W, _outputs(form, P.float(), Q.float())))
        strays["inputs"].append(_stray(W.mT, _inputs(form, P.float(), Q.float())))
    sums = [torch.stack(found).sum(0) for found in strays.values() if found]
    return any(bool(allowed > 0) and bool(outside <= allowed) for outside, allowed in sums)


def _stray(W: Tensor, columns: Tensor) -> Tensor:
    """What of W W^T B sticks out of the span of B, and what a rounding of W and of B could cause; (2,), squares.

    W (m, n), B (m, r): orthonormal columns in the span of `columns`, of those that are not nothing.
    """
    basis, sizes, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    basis = (
        basis[:, sizes > _RANK_TOLERANCE * sizes.max()].float() if sizes.max() > 0 else basis[:, :0].float()
    )
    read = W.mT @ basis
    back = W @ read
    outside = (back - basis @ (basis.mT @ back)).square().sum()
    # noise of relative size e in every number of W moves W (W^T B) by e |W| |W^T B| / sqrt(n), and (W^T) B by
    # e |W| |B| / sqrt(m), which W then carries on as it does any direction: by |W| / sqrt(n)
    m, n = W.shape
    size = W.square().sum()
    noise = size * read.square().sum() / n + size * size * basis.shape[1] / (m * n)
    # B as the file has it: its own noise, carried by W W^T, and what it makes of its span
    blur = (W @ W.mT).square().sum() * basis.shape[1] / m + back.square().sum()
    return torch.stack([outside, _BF16**2 * noise + _FP16**2 * blur])
