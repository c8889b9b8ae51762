"""Adapters in disjoint slices of one layer: they add exactly, do not touch, and learn alike at every depth."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_layers import OUT, WIDTH, R, adapted, add, base_layer, cosine, inputs, stir
from torch import nn

from spectral_diffusion.tuner import SpectralLayer
from spectral_diffusion.tuner.maths import FORMS


@pytest.mark.parametrize("form", FORMS)
def test_disjoint_slices_add_exactly_in_any_order_and_leave_no_trace(form):
    base = base_layer()
    layer = SpectralLayer(copy.deepcopy(base), "a")
    names = ["a", "b", "c"]
    for start, name in zip((0, 3, 6), names, strict=True):
        add(layer, name, form=form, start=start)
        stir(layer, name, seed=start)
    together = base.weight + sum(layer.get_delta_weight(n) for n in names)
    for order in (["a", "b", "c"], ["c", "a", "b"]):
        layer.set_adapter(order)
        assert torch.allclose(layer(inputs()), nn.functional.linear(inputs(), together, base.bias), atol=1e-5)
        layer.merge(adapter_names=order)
        assert torch.allclose(layer.get_base_layer().weight, together, atol=1e-6)
        layer.unmerge()
    layer.merge(adapter_names=["a", "c"])
    without_b = layer.get_base_layer().weight.clone()
    layer.unmerge()
    layer.merge(adapter_names=["a", "b", "c"])
    layer.delete_adapter("b")
    assert torch.equal(layer.get_base_layer().weight, without_b), "removing one restores the rest bit for bit"


@settings(max_examples=20, deadline=None)
@given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), size=st.sampled_from([0.05, 1.0, 10.0]))
def test_rotations_of_disjoint_slices_are_orthogonal(seeds, size):
    layer = adapted(form="rotational", start=0)
    add(layer, "b", form="rotational", start=R)
    X, Y = (stir(layer, n, size, s).get_delta_weight(n) for n, s in zip("ab", seeds, strict=True))
    assert abs(cosine(X, Y)) < 1e-6
    assert (X.T @ Y).norm() < 1e-5 * X.norm() * Y.norm()


def neighbours(
    size: float, base: nn.Module | None = None, **options
) -> tuple[SpectralLayer, torch.Tensor, torch.Tensor]:
    layer = adapted(base, start=0, **options)
    add(layer, "b", start=R, **options)
    stir(stir(layer, "a", size, 1), "b", size, 2)
    with torch.no_grad():  # what training may do when concepts are alike: lean on the other's directions
        layer.spectral_A["a"] += size * layer.spectral_U["b"]
        layer.spectral_B["b"] += size * layer.spectral_V["a"]
    return layer, layer.get_delta_weight("a"), layer.get_delta_weight("b")


@pytest.mark.parametrize("slice_aware", [False, True])
def test_isolated_adapters_do_not_touch_the_slices_of_others(slice_aware):
    layer, X, Y = neighbours(0.1, isolated=True, reserved=2 * R, slice_aware=slice_aware)
    for change, other in ((X, "b"), (Y, "a")):
        U, _, V = layer.triplets(other)
        assert (U.T @ change).norm() < 1e-6 * change.norm(), "nothing written into the other's output side"
        assert (change @ V).norm() < 1e-6 * change.norm(), "nothing read from the other's input side"


def test_isolated_changes_are_nearly_orthogonal_and_plain_ones_are_not():
    """What is left, A_i and B_i against A_j and B_j outside all slices, is of fourth order in the numbers."""
    torch.manual_seed(0)
    isolated, wide = {}, nn.Linear(96, 80)
    for size in (0.02, 0.04):
        _, X, Y = neighbours(size, copy.deepcopy(wide), isolated=True, reserved=2 * R)
        isolated[size] = abs(cosine(X, Y))
    _, X, Y = neighbours(0.02, copy.deepcopy(wide))
    assert isolated[0.02] < 3e-4 and abs(cosine(X, Y)) > 10 * isolated[0.02]
    assert 2.5 < isolated[0.04] / isolated[0.02] < 6, "the cosine falls with the square of the numbers"


def test_isolation_reserves_nothing_beyond_a_narrow_layer():
    layer = stir(adapted(isolated=True, reserved=500))
    assert layer.spectral_U_others["a"].shape == (OUT, min(OUT, WIDTH) - R)


def changed_by_one_step(form: str, start: int, slice_aware: bool, optimiser: type) -> float:
    """Relative size of the weight change after one step against a loss that treats all columns alike."""
    n = 24
    weight = torch.diag(0.7 ** torch.arange(n, dtype=torch.float32))
    base = nn.Linear(n, n, bias=False).requires_grad_(False)
    base.weight.data = weight
    layer = adapted(base, form=form, start=start, slice_aware=slice_aware)
    target = torch.ones(n, n).triu() - torch.ones(n, n).tril()
    parameters = [getattr(layer, part)["a"] for part in ("spectral_A", "spectral_B")]
    step = optimiser(parameters, lr=1e-4)
    (layer.get_delta_weight("a") * target).sum().backward()
    step.step()
    return float(layer.get_delta_weight("a").detach().norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_a_slice_aware_step_acts_alike_at_every_depth(form, optimiser):
    aware = [changed_by_one_step(form, start, True, optimiser) for start in (0, 6, 12)]
    plain = [changed_by_one_step(form, start, False, optimiser) for start in (0, 6, 12)]
    assert max(aware) / min(aware) < 1.05
    assert plain[0] / plain[2] > 20, "without it a deep slice hardly learns"
    assert 0.3 < aware[0] / plain[0] < 6, "a learning rate chosen at the top stays of the same kind"
