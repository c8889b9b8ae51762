"""Merges made for task vectors and LoRAs by others, on whole weight changes, with PEFT's own functions.

Every merge here is a sum of shares, one per concept, so that its members keep their own strengths. The
arithmetic works on dW = P Q^T, never on P and Q apart, which would mix the concepts' factors (peft #3004).
Pruning destroys low rank: the shares of `ties` and `dare` are stored dense.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.members import DENSE

Shares = list[Tensor]  # of the concepts that change a layer, dense (out, in)


def check_density(density: float) -> float:
    """`density` itself; InputError unless it is a share in 0..1, 0 excluded."""
    if isinstance(density, bool) or not 0 < density <= 1:
        raise InputError(f"density must be above 0 and at most 1, not {density}.")
    return density


def ties_shares(changes: Sequence[Tensor], density: float) -> Shares:
    """TIES (Yadav et al., NeurIPS 2023): keep the largest, elect a sign per number, average those that agree."""
    from peft.utils.merge_utils import calculate_majority_sign_mask

    kept = torch.stack([_pruned(change, density, "magnitude") for change in changes])
    agree = calculate_majority_sign_mask(kept, method="total")
    return list(kept * agree / agree.sum(0).clamp(min=1))


def seed_of(layer: str, seed: int) -> int:
    """A seed of the layer's own: of equal ones, layers of one size would drop the same places."""
    return int.from_bytes(hashlib.sha256(f"{seed} {layer}".encode()).digest()[:7])


def dare_shares(changes: Sequence[Tensor], density: float, seed: int = 0) -> Shares:
    """DARE (Yu et al., ICML 2024): drop numbers at random, scale up the rest, add."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [_pruned(change, density, "random") for change in changes]


def _pruned(change: Tensor, density: float, method: str) -> Tensor:
    from peft.utils.merge_utils import prune

    # PEFT warns at a density of 1, which is a fair wish
    return change if density >= 1 else prune(change, density, method=method, rescale=method == "random")


def dense(parts: Sequence[Fused], shares: Callable[[str, Sequence[Tensor]], Shares]) -> list[Fused]:
    """The parts with the shares of their changes, as members of form `dense`: P is the share, Q the identity.

    `shares`: a layer's name and what changes it -> their shares. Members keep the columns they were trained in.
    """
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {part.names[0]: {} for part in parts}
    for layer in sorted({layer for part in parts for layer in part.layers()}):
        here = [part for part in parts if layer in part.layers()]
        changes = [p @ q.T for part in here for p, q in [part.factors[part.names[0]][layer]]]
        for part, share in zip(here, shares(layer, changes), strict=True):
            found[part.names[0]][layer] = share, torch.eye(share.shape[1])
    return [_dense_part(part, found[part.names[0]]) for part in parts]


def _dense_part(part: Fused, factors: dict[str, tuple[Tensor, Tensor]]) -> Fused:
    (member,) = part.members
    return replace(part, members=(replace(member, form=DENSE),), factors={member.name: factors})


def svd_shares(factors: Sequence[tuple[Tensor, Tensor]], rank: int) -> list[tuple[Tensor, Tensor]]:
    """The sum cut to its `rank` largest singular values (PEFT's `svd`), as shares of the same ranks as before.

    With U the sum's first left singular vectors the cut sum is U U^T sum_k P_k Q_k^T, so concept k's share is
    (U U^T P_k) Q_k^T. The decomposition is that of a small core: the sum is never formed.
    """
    p, q = (torch.cat(side, dim=1).double() for side in zip(*factors, strict=True))
    left, left_core = torch.linalg.qr(p)
    right_core = torch.linalg.qr(q).R
    U = left @ torch.linalg.svd(left_core @ right_core.T).U[:, :rank]
    return [((U @ (U.T @ p.double())).float(), q) for p, q in factors]


def cut(parts: Sequence[Fused], rank: int) -> list[Fused]:
    """The parts with every layer's sum cut to `rank`. Raises InputError for a rank that is no number from 1 on."""
    if type(rank) is not int or rank < 1:
        raise InputError(f"rank must be a whole number from 1 on, not {rank}.")
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {part.names[0]: {} for part in parts}
    for layer in sorted({layer for part in parts for layer in part.layers()}):
        here = [part for part in parts if layer in part.layers()]
        shares = svd_shares([part.factors[part.names[0]][layer] for part in here], rank)
        for part, share in zip(here, shares, strict=True):
            found[part.names[0]][layer] = share
    return [replace(part, factors={part.names[0]: found[part.names[0]]}) for part in parts]
