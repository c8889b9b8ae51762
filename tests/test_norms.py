"""Norm control caps what members share and leaves alone what they do not; all of it from factors."""

from dataclasses import replace

import pytest
import torch
from conftest import random_concept
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.fuse import fuse
from spectral_diffusion.fused import Fused
from spectral_diffusion.norms import gain, inner


@pytest.fixture(scope="module")
def trio(base):
    return [random_concept(base, n, 3 * i, seed=i) for i, n in enumerate(("rex", "mia", "nox"))]


FACTORS = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32))


def factors_of(shape):
    out, width, rank, seed = shape
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=draw), torch.randn(width, rank, generator=draw)


@settings(max_examples=40, deadline=None)
@given(FACTORS, st.integers(1, 4))
def test_the_inner_product_is_that_of_the_dense_changes(shape, other):
    one, two = factors_of(shape), factors_of((*shape[:2], other, shape[3] + 1))
    dense_product = (one[0].double() @ one[1].double().T * (two[0].double() @ two[1].double().T)).sum()
    assert torch.isclose(inner(one, two), dense_product, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(FACTORS, st.integers(2, 5), st.floats(0.5, 3))
def test_the_controlled_sum_has_the_norm_of_the_cap_or_its_own(shape, count, cap):
    parts = [factors_of((*shape[:3], shape[3] + i)) for i in range(count)]
    changes = [p.double() @ q.double().T for p, q in parts]
    together, alone = sum(changes).norm(), sum(c.norm() ** 2 for c in changes) ** 0.5
    assert gain(parts, cap, sum(changes)) == pytest.approx(gain(parts, cap), rel=1e-9)
    assert float(gain(parts, cap) * together) == pytest.approx(float(min(together, cap * alone)), rel=1e-6)


def test_norm_control_leaves_one_member_and_orthogonal_ones_alone():
    one = torch.eye(4)[:, :2], torch.eye(4)[:, :2]
    two = torch.eye(4)[:, 2:], torch.eye(4)[:, 2:]
    assert gain([one], 0.1) == 1 and gain([one, two], 1.0) == 1 and gain([one, one], 1.25) < 1


def test_norm_control_acts_where_members_point_the_same_way(base, trio):
    double = replace(trio[1], layers=trio[0].layers, form="additive")
    fused = fuse([trio[0], double], norm_control=1.25)
    layer = fused.layers()[3]
    alone = float(Fused.of(trio[0]).delta(layer).norm())
    assert float(fused.delta(layer).norm()) == pytest.approx(1.25 * 2**0.5 * alone, rel=1e-5)
    assert float(fused.with_norm_cap(None).delta(layer).norm()) == pytest.approx(2 * alone, rel=1e-5)
    assert fused.switched("mia", False).delta(layer).equal(Fused.of(trio[0]).delta(layer))
