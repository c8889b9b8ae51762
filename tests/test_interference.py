"""Interference from factors alone: what the dense formulas give, 0 for rotations apart, 1 for the same twice."""

import math

import pytest
import torch
from conftest import random_concept
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.fuse import fuse
from fusion.interference import energies, expected, input_overlap, overlap, pairs, shared, spaces, summary
from spectral_diffusion.fused import Fused
from spectral_diffusion.spectrum import Triplets
from spectral_diffusion.tuner.maths import Numbers, rotational_factors

SHAPES = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(1, 4))
SEEDS = st.integers(0, 10**6)


def drawn(shape, seed):
    out, width, rank, other = shape
    draw = torch.Generator().manual_seed(seed)

    def factors(r):
        return torch.randn(out, r, generator=draw), torch.randn(width, r, generator=draw)

    return factors(rank), factors(other)


def dense(factors):
    p, q = (side.double() for side in factors)
    return p @ q.T


def projector(change):
    """Onto the row space of a dense change."""
    _, S, Vh = torch.linalg.svd(change)
    rank = int((1e-9 * S[0] < S).sum())
    return Vh[:rank].T @ Vh[:rank], rank


@settings(max_examples=50, deadline=None)
@given(SHAPES, SEEDS)
def test_it_is_what_the_dense_formulas_give(shape, seed):
    one, two = drawn(shape, seed)
    got, a, b = overlap(one, two), dense(one), dense(two)
    assert got.cosine == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), abs=1e-7)
    assert got.energy == pytest.approx(
        abs(float((a * b).sum())) / float(max(a.norm(), b.norm())) ** 2, abs=1e-7
    )
    for value, (left, right) in ((got.inputs, (a, b)), (got.outputs, (a.T, b.T))):
        (one_onto, m), (two_onto, n) = projector(left), projector(right)
        assert value == pytest.approx(float((one_onto @ two_onto).trace()) / min(m, n), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(SHAPES, SEEDS, st.floats(0.01, 100), st.floats(0.01, 100))
def test_it_is_symmetric_and_its_angles_do_not_depend_on_strengths(shape, seed, one_scale, two_scale):
    one, two = drawn(shape, seed)
    there, back = overlap(one, two), overlap(two, one)
    scaled = overlap((one_scale * one[0], one[1]), (two[0], two_scale * two[1]))
    for key in ("cosine", "inputs", "outputs"):
        assert getattr(there, key) == pytest.approx(getattr(back, key), abs=1e-9)
        assert getattr(there, key) == pytest.approx(getattr(scaled, key), abs=1e-4)
    assert there.energy == pytest.approx(back.energy)


@settings(max_examples=30, deadline=None)
@given(SHAPES, SEEDS)
def test_a_change_with_itself_is_one(shape, seed):
    one, _ = drawn(shape, seed)
    got = overlap(one, one)
    assert (got.cosine, got.energy, got.inputs, got.outputs) == pytest.approx((1, 1, 1, 1), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_rotations_in_disjoint_slices_do_not_touch(seed, rank):
    draw = torch.Generator().manual_seed(seed)
    U, S, Vh = torch.linalg.svd(torch.randn(12, 10, generator=draw), full_matrices=False)

    def rotation(start):
        here = slice(start, start + rank)
        numbers = Numbers(*(torch.randn(s, generator=draw) for s in ((rank, rank), (rank, rank), (rank,))))
        return rotational_factors(Triplets(U[:, here], S[here], Vh[here].T), numbers)

    got = overlap(rotation(0), rotation(5))
    assert (got.cosine, got.energy, got.inputs, got.outputs) == pytest.approx((0, 0, 0, 0), abs=1e-5)


def test_no_change_at_all_overlaps_with_nothing():
    one, _ = drawn((4, 5, 2, 2), 0)
    nothing = torch.zeros(4, 2), torch.randn(5, 2)
    got = overlap(one, nothing)
    assert (got.cosine, got.energy, got.inputs, got.outputs) == (0, 0, 0, 0)
    assert all(math.isfinite(value) for value in vars(got).values())


def test_random_spaces_overlap_as_much_as_expected():
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(300):
        (_, one), (_, two) = (
            spaces((torch.randn(9, r, generator=draw), torch.randn(20, r, generator=draw))) for r in (3, 5)
        )
        found.append(shared(one, two))
    assert expected(one, two) == pytest.approx(5 / 20)
    assert sum(found) / len(found) == pytest.approx(5 / 20, abs=0.02)


def test_every_pair_and_layer_of_a_fused_file(base):
    trio = [random_concept(base, n, 3 * i, seed=i) for i, n in enumerate(("rex", "mia", "nox"))]
    fused = fuse(trio)
    found = pairs(fused)
    assert list(found) == [("rex", "mia"), ("rex", "nox"), ("mia", "nox")]
    assert all(layers.keys() == base.layers.keys() for layers in found.values())
    mean = summary(found["rex", "mia"])
    assert mean.cosine == pytest.approx(
        sum(o.cosine for o in found["rex", "mia"].values()) / len(base.layers)
    )
    assert summary({}).cosine == 0
    one, two = (Fused.of(concept) for concept in trio[:2])
    assert input_overlap(one, two) == pytest.approx(mean.inputs)
    layer = fused.layers()[0]
    assert energies(fused)["rex"][layer] == pytest.approx(float(one.delta(layer).norm()), rel=1e-5)
