"""The top singular triplets of one weight: exact to fp32, with signs that do not depend on the route.

A weight W (out x in) has the thin SVD W = U diag(S) V^T; a triplet is one column of U, one of V and their singular
value.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_diffusion.errors import InputError
from spectral_diffusion.files import finite

# Below this ratio S[k-1] / S[0] the Gram matrix, which squares it, no longer gives fp32 accuracy.
GRAM_SAFE_RATIO = 1e-3
# Of the fp32 route: narrower weights are not worth it; columns beyond k that the mending may draw on; and the
# largest |W^T u - s v| / S[0] of a triplet that is as good as fp32 gets (torch's own fp32 SVD: 1.3e-6 at width 1280).
WIDE, SPARE, EXACT = 256, 16, 1.5e-6


class Triplets(NamedTuple):
    """k singular triplets of one weight: U (out x k), S (k) falling, V (in x k); fp32."""

    U: Tensor
    S: Tensor
    V: Tensor

    def take(self, columns: Sequence[int]) -> "Triplets":
        """The triplets of the given columns, in the given order, as copies."""
        index = torch.as_tensor(list(columns), dtype=torch.long, device=self.S.device)
        return Triplets(*(t.index_select(t.ndim - 1, index) for t in self))


def as_matrix(weight: Tensor) -> Tensor:
    """The (out x in) matrix of a linear or 1x1 convolution weight; a view."""
    if weight.ndim == 4 and weight.shape[2:] == (1, 1):
        return weight[:, :, 0, 0]
    if weight.ndim != 2:
        raise InputError(
            f"A weight of shape {tuple(weight.shape)} has no spectrum here: only linear layers and 1x1 "
            "convolutions do."
        )
    return weight


def top_triplets(weight: Tensor, k: int) -> Triplets:
    """The first min(k, width) singular triplets of `weight`, with canonical signs, fp32, on its device.

    The eigenvectors of the Gram matrix of the shorter side. Wide weights take them in fp32 and mend them by an
    fp64 Rayleigh-Ritz step, which turns the columns only among themselves and a few spare ones; the residual
    tells whether that was enough, and where it was not, as in narrow weights, the Gram matrix is in fp64.
    Weights of nearly lacking rank take the full fp64 SVD. What else was tried: docs/performance.md. The largest
    entry of every column of U is positive.
    """
    matrix = as_matrix(weight.detach())
    if not finite(matrix):
        raise InputError(
            "The weight holds numbers that are not finite, so it has no spectrum: check the base."
        )
    k = min(k, *matrix.shape)
    triplets = _in_float32(matrix, k) if min(matrix.shape) >= WIDE else None
    if triplets is None:
        triplets = _in_float64(matrix, k)
    return Triplets(*(t.float().to(weight.device).contiguous() for t in _canonical(triplets)))


def _in_float32(matrix: Tensor, k: int) -> Triplets | None:
    """Triplets (fp64) by way of the fp32 Gram matrix; None if they are not exact to `EXACT`."""
    matrix = matrix.float()
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    _, vectors = torch.linalg.eigh(tall.mT @ tall)
    spare = min(k + SPARE, tall.shape[1])
    long, S, short = _rayleigh_ritz(tall, vectors.flip(1)[:, :spare], k)
    wrong = torch.linalg.vector_norm(tall.mT @ long.float() - (short * S).float(), dim=0).max()
    if not wrong <= EXACT * S[0]:  # also where something is not finite
        return None
    return Triplets(long, S, short) if tall is matrix else Triplets(short, S, long)


def _rayleigh_ritz(tall: Tensor, basis: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best k triplets (U, S, V) of `tall` with V in the span of `basis` (in x b), nearly orthonormal; fp64.

    Y = tall basis; the pencil (Y^T Y, basis^T basis) gives S^2 and the columns' combinations.
    """
    basis = _double(basis)
    images = _double(tall) @ basis
    root = torch.linalg.cholesky(basis.mT @ basis)
    whitened = torch.linalg.solve_triangular(root, images.mT @ images, upper=False)
    whitened = torch.linalg.solve_triangular(root, whitened.mT, upper=False)
    _, turns = torch.linalg.eigh(whitened)
    turns = torch.linalg.solve_triangular(root.mT, turns.flip(1)[:, :k], upper=True)
    images = images @ turns
    S = torch.linalg.vector_norm(images, dim=0)
    return images / S, S, basis @ turns


def _in_float64(matrix: Tensor, k: int) -> Triplets:
    """Triplets (fp64) by way of the fp64 Gram matrix, or the full SVD where that is not exact enough."""
    matrix = _double(matrix)
    triplets = _from_gram(matrix, k)
    return triplets if triplets.S[-1] > GRAM_SAFE_RATIO * triplets.S[0] else _from_svd(matrix, k)


def _double(matrix: Tensor) -> Tensor:
    # Apple's GPU has no fp64.
    return (matrix.cpu() if matrix.device.type == "mps" else matrix).double()


def _from_gram(matrix: Tensor, k: int) -> Triplets:
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    _, vectors = torch.linalg.eigh(tall.T @ tall)
    short = vectors.flip(1)[:, :k]
    scaled = tall @ short
    S = torch.linalg.vector_norm(scaled, dim=0)
    long = scaled / S
    return Triplets(long, S, short) if tall is matrix else Triplets(short, S, long)


def _from_svd(matrix: Tensor, k: int) -> Triplets:
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return Triplets(U[:, :k], S[:k], Vh[:k].T)


def _canonical(triplets: Triplets) -> Triplets:
    U, S, V = triplets
    largest = U.gather(0, U.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(U.dtype)
    return Triplets(U * signs, S, V * signs)
