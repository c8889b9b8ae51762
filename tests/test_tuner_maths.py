"""The adapter's maths: the paper's formula without its dense matrices, rotations, rank capacity."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_layers import R

from spectral_diffusion.triplets import Triplets
from spectral_diffusion.tuner import Numbers
from spectral_diffusion.tuner.maths import FORMS, additive_factors, cayley_minus_identity, rotational_factors


def random_slice(out: int, width: int, r: int, seed: int, size: float, form: str) -> tuple[Triplets, Numbers]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=generator, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    shapes = FORMS[form].shapes(out, width, r)
    numbers = Numbers(*(size * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))
    return Triplets(U[:, :r], S[:r], Vh[:r].T), numbers


def dense_additive(triplets: Triplets, numbers: Numbers) -> torch.Tensor:
    """The paper's formula, as it is written."""
    (U, S, V), (A, B, C) = triplets, numbers
    return (U + A) @ torch.diag(S + C) @ (V + B).T - U @ torch.diag(S) @ V.T


def dense_rotational(triplets: Triplets, numbers: Numbers) -> torch.Tensor:
    (U, S, V), (A, B, C) = triplets, numbers

    def cayley(X: torch.Tensor) -> torch.Tensor:
        K, identity = (X - X.T) / 2, torch.eye(len(X), dtype=X.dtype)
        return (identity - K) @ torch.linalg.inv(identity + K)

    return U @ (cayley(A) @ torch.diag(S * (1 + C)) @ cayley(B).T - torch.diag(S)) @ V.T


slices = given(
    out=st.integers(4, 24),
    width=st.integers(4, 24),
    r=st.integers(1, 4),
    seed=st.integers(0, 999),
    size=st.sampled_from([1e-3, 0.1, 1.0]),
)


@settings(max_examples=40, deadline=None)
@slices
@pytest.mark.parametrize(
    ("form", "dense", "factors"),
    [("additive", dense_additive, additive_factors), ("rotational", dense_rotational, rotational_factors)],
)
def test_the_factors_are_the_papers_dense_formula(form, dense, factors, out, width, r, seed, size):
    triplets, numbers = random_slice(out, width, r, seed, size, form)
    P, Q = factors(triplets, numbers)
    assert P.shape[1] == Q.shape[1] == FORMS[form].rank_factor * r
    exact = dense(triplets, numbers)
    assert torch.allclose(P @ Q.T, exact, atol=1e-11 * (1 + float(exact.norm())))
    small = [tuple(t.float() for t in group) for group in (triplets, numbers)]
    P, Q = factors(Triplets(*small[0]), Numbers(*small[1]))
    assert (P @ Q.T - exact).norm() <= 3e-5 * exact.norm(), "fp32 keeps its digits: nothing cancels"


@settings(max_examples=30, deadline=None)
@given(r=st.integers(1, 6), seed=st.integers(0, 999), size=st.sampled_from([0.01, 1.0, 30.0]))
def test_the_cayley_transform_is_a_rotation(r, seed, size):
    X = size * torch.randn(r, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Q = torch.eye(r, dtype=torch.float64) + cayley_minus_identity(X)
    assert torch.allclose(Q @ Q.T, torch.eye(r, dtype=torch.float64), atol=1e-9)
    assert torch.linalg.det(Q) > 0


@pytest.mark.parametrize(("form", "capacity"), [("additive", 2 * R), ("lora", R), ("rotational", 0)])
def test_rank_capacity_is_2r_against_loras_r(form, capacity):
    """Lemma 3.1: the largest minus the smallest reachable rank of the tuned weight."""
    n = 12
    weight = torch.randn(n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(weight)
    triplets = Triplets(U[:, :R], S[:R], Vh[:R].T)

    def rank_after(P: torch.Tensor, Q: torch.Tensor) -> int:
        return int(torch.linalg.matrix_rank(weight + P @ Q.T, rtol=1e-9))

    if form == "lora":
        reached = [rank_after(-U[:, :cut] * S[:cut], Vh[:cut].T) for cut in range(R + 1)]
    elif form == "rotational":
        draws = (random_slice(n, n, R, seed, 2.0, form)[1] for seed in range(5))
        reached = [rank_after(*rotational_factors(triplets, numbers)) for numbers in draws]
    else:
        reached = [
            rank_after(*additive_factors(triplets, lowering(U, S, Vh, cut))) for cut in range(2 * R + 1)
        ]
    assert max(reached) == n and max(reached) - min(reached) == capacity


def lowering(U: torch.Tensor, S: torch.Tensor, Vh: torch.Tensor, cut: int) -> Numbers:
    """Numbers with which the tuned weight loses `cut` ranks: the slice's own and r of the rest."""
    A, B, C = torch.zeros(len(U), R).double(), torch.zeros(len(U), R).double(), torch.zeros(R).double()
    C[:cut] = -S[:R][:cut]
    for j in range(max(0, cut - R)):
        # The j-th product becomes minus the (r + j)-th triplet of the rest.
        C[j], A[:, j], B[:, j] = -S[j] - S[R + j], U[:, R + j] - U[:, j], Vh[R + j] - Vh[j]
    return Numbers(A, B, C)
