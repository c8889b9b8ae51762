"""The adapter's layer: identity at the start, one weight change for every use, refusals that name what is wrong."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_layers import R, adapted, add, base_layer, every_adapter, every_base, inputs, stir
from torch import nn

from spectral_diffusion.errors import InputError
from spectral_diffusion.triplets import top_triplets
from spectral_diffusion.tuner import SpectralConfig, SpectralLayer
from spectral_diffusion.tuner.maths import FORMS


@every_base
@every_adapter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_new_adapter_is_exactly_the_base(kind, options, dtype):
    base = base_layer(kind, dtype)
    layer, x = adapted(copy.deepcopy(base), **options), inputs(kind, dtype)
    assert torch.equal(layer(x), base(x))
    assert torch.count_nonzero(layer.get_delta_weight("a")) == 0
    layer.merge()
    assert torch.equal(layer.get_base_layer().weight, base.weight)


@every_base
@every_adapter
def test_merged_unmerged_and_exported_weight_agree(kind, options):
    base = base_layer(kind)
    layer, x = stir(adapted(copy.deepcopy(base), **options)), inputs(kind)
    layer.set_strength("a", 0.7)
    unmerged = layer(x)
    exported = copy.deepcopy(base)
    exported.weight.data += layer.get_delta_weight("a")
    layer.merge()
    assert not torch.allclose(unmerged, base(x), atol=1e-3)
    assert torch.allclose(layer(x), unmerged, atol=1e-5)
    assert torch.equal(layer(x), exported(x))
    layer.unmerge()
    assert torch.equal(layer.get_base_layer().weight, base.weight), "restored bit for bit"
    assert torch.equal(layer(x), unmerged)


@every_adapter
def test_gradients_reach_the_numbers_and_nothing_else(options):
    layer = stir(adapted(base_layer().requires_grad_(False), **options))
    layer(inputs()).square().mean().backward()
    with_gradient = {name for name, p in layer.named_parameters() if p.grad is not None}
    assert with_gradient == {"spectral_A.a", "spectral_B.a", "spectral_C.a"}
    assert all(p.grad.norm() > 0 for name, p in layer.named_parameters() if name in with_gradient)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_do_not_vanish_at_the_zero_start(form):
    layer = adapted(form=form)
    layer(inputs()).square().mean().backward()
    assert all(getattr(layer, part)["a"].grad.norm() > 0 for part in layer.adapter_layer_names)


@every_adapter
@given(strength=st.floats(-2, 2))
@settings(max_examples=10, deadline=None)
def test_the_change_is_linear_in_the_strength(options, strength):
    layer = stir(adapted(**options))
    full = layer.get_delta_weight("a")
    layer.set_strength("a", strength)
    assert torch.allclose(layer.get_delta_weight("a"), strength * full, atol=1e-6)


def test_our_strength_survives_what_diffusers_does_to_its_own_scale():
    layer = stir(adapted())
    layer.set_strength("a", 0.25)
    layer.scale_layer(0)
    assert torch.equal(layer(inputs()), layer.base_layer(inputs()))
    layer.set_scale("a", 1.0)
    assert layer.total_strength("a") == 0.25
    layer.scale_layer(3.0)
    layer.unscale_layer(3.0)
    assert layer.total_strength("a") == 0.25
    with pytest.raises(InputError, match="strength"):
        layer.set_strength("a", math.inf)


@every_adapter
def test_folding_stores_the_numbers_as_they_act_and_changes_nothing(options):
    layer = stir(adapted(**options))
    before, acting = layer.get_delta_weight("a"), layer.numbers("a")
    layer.fold("a")
    assert torch.equal(layer.get_delta_weight("a"), before)
    assert torch.equal(layer.spectral_A["a"], acting.A) and torch.equal(layer.spectral_C["a"], acting.C)
    assert not len(layer.spectral_gain) and not len(layer.spectral_U_others)


def tensors_of(layer: SpectralLayer) -> list[torch.Tensor]:
    return [t for n, t in layer.state_dict(keep_vars=True).items() if n.startswith("spectral_")]


@every_adapter
def test_everything_of_the_adapter_stays_fp32_over_a_half_precision_base(options):
    layer = stir(adapted(base_layer(dtype=torch.bfloat16), **options))
    before = layer.get_delta_weight("a")
    layer.to(torch.float16).to(device="cpu", dtype=torch.bfloat16)
    layer._move_adapter_to_device_of_base_layer("a")
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in tensors_of(layer)) and tensors_of(layer)
    assert torch.equal(layer.get_delta_weight("a"), before)
    assert layer(inputs(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_autocast_does_not_reach_the_small_matrices():
    layer = stir(adapted(form="rotational"))
    before = layer.get_delta_weight("a")
    with torch.autocast("cpu", torch.bfloat16):
        P, Q = layer.factors("a")
        assert layer(inputs()).dtype == torch.bfloat16
    assert torch.equal(P @ Q.T, before)


def test_a_merge_of_broken_numbers_is_refused_and_leaves_the_weight():
    layer = stir(adapted())
    before = layer.base_layer.weight.clone()
    with torch.no_grad():
        layer.spectral_A["a"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="nothing was merged"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before) and not layer.merged


def test_an_adapter_added_over_a_merged_one_sees_the_pristine_weight():
    layer = stir(adapted(start=0))
    expected = top_triplets(layer.original_weight, 2 * R).take(range(R, 2 * R))
    layer.merge()
    add(layer, "b", start=R)
    assert all(map(torch.equal, layer.triplets("b"), expected))


def test_a_disabled_layer_is_the_base_even_when_merged():
    layer = stir(adapted())
    base = layer.base_layer(inputs())
    layer.merge()
    layer.enable_adapters(False)
    assert torch.equal(layer(inputs()), base)


def test_tensors_awaited_from_a_file_show_when_they_never_came():
    layer = SpectralLayer(base_layer(), "a")
    layer.update_layer("a", SpectralConfig(r=R, init_weights=False, slice_aware=True), None)
    assert torch.isnan(layer(inputs())).all()


@pytest.mark.parametrize(
    "base",
    [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv1d(4, 4, 1),
        nn.Embedding(4, 4),
    ],
    ids=str,
)
def test_layers_without_a_plain_matrix_are_refused(base):
    with pytest.raises(InputError, match="Cannot adapt"):
        SpectralLayer(base, "a")


def test_a_slice_below_the_narrowest_layer_is_refused():
    with pytest.raises(InputError, match="width 16"):
        adapted(start=14)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"form": "sideways"}, "form = 'sideways'"),
        ({"r": 0}, "r = 0"),
        ({"r": 2.5}, "r = 2.5"),
        ({"start": -1}, "start = -1"),
        ({"columns": []}, "columns"),
        ({"columns": [1, 1]}, "twice"),
        ({"columns": [1, -2]}, "columns"),
        ({"columns": [1, 2], "start": 3}, "contradict"),
        ({"columns": [1, 2], "r": 3}, "r = 3"),
        ({"isolated": True}, "reserved = None"),
        ({"isolated": True, "form": "rotational", "reserved": 9}, "isolated"),
    ],
)
def test_a_contradictory_config_is_refused_naming_option_and_value(options, names):
    with pytest.raises(InputError, match=names):
        SpectralConfig(**options)


def test_a_config_settles_its_slice_and_survives_json():
    assert SpectralConfig(start=8).slice == list(range(8, 16))
    assert SpectralConfig(columns=[9, 4]).r == 2 and SpectralConfig(columns=[9, 4]).columns_needed == 10
    for options in ({"r": 4, "start": 4}, {"columns": [9, 4], "slice_aware": True}):
        config = SpectralConfig(target_modules=["to_v", "to_k"], **options)
        saved = json.loads(json.dumps(config.to_dict()))
        again = SpectralConfig(**saved)
        assert again.slice == config.slice and again.slice_aware == config.slice_aware
        assert again.init_weights is False, "what is saved is filled from its file, without an SVD"
