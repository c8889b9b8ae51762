"""What plain prompts feed a layer is recorded once, and a concept that is taught keeps off it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_layers import WIDTH, adapted, inputs, stir

from concepts import neutral
from concepts.adapter import ADAPTER, collect
from concepts.adapter import adapted as in_training
from concepts.low_rank import lora_layers
from concepts.neutral import neutral_inputs, off
from concepts.settings import Settings
from spectral_diffusion.errors import InputError
from spectral_diffusion.ledger import Slice
from spectral_diffusion.tuner import spectral_layers


def orthonormal(n: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(WIDTH, n, generator=draw)).Q


@given(weight=st.floats(0, 100), loudest=st.floats(0.1, WIDTH))
def test_the_filter_is_the_ridge_it_claims_to_be(weight, loudest):
    directions, energy = orthonormal(WIDTH), torch.linspace(0.1, loudest, WIDTH)
    F = off(directions, energy, weight)
    C = directions * energy @ directions.mT
    expected = torch.linalg.inv(torch.eye(WIDTH) + weight * C)
    assert torch.allclose(torch.eye(WIDTH) - F @ F.mT, expected, atol=1e-4)


@pytest.mark.parametrize("form", ["additive", "rotational"])
def test_a_change_that_keeps_off_inputs_is_zero_at_first_and_then_reads_less_of_them(form):
    loud = orthonormal(3)
    layer, x = adapted(form=form), inputs()
    plain = layer.base_layer(x)
    layer.keep_off("a", 0.99 * loud)
    assert torch.equal(layer(x), plain)
    change = stir(layer, "a").get_delta_weight("a")
    free = stir(adapted(form=form), "a").get_delta_weight("a")
    assert (change @ loud).norm() < 0.2 * (free @ loud).norm()
    assert torch.allclose(layer.spectral_V["a"].norm(dim=0), torch.ones(layer.r["a"]))
    layer.fold("a")
    assert torch.equal(layer.get_delta_weight("a"), change) and "a" not in layer.spectral_V_neutral


def test_what_plain_prompts_feed_is_recorded_once_and_depends_on_no_thread(
    base, pristine, tmp_path, monkeypatch
):
    calls, real = [], neutral.record
    monkeypatch.setattr(neutral, "record", lambda *a: calls.append(1) or real(*a))
    monkeypatch.setattr(neutral, "_HOW", replace(neutral._HOW, steps=1))
    layers = base.targeted("attention")
    first = neutral_inputs(base, layers, 1.0, tmp_path)
    again = neutral_inputs(base, layers, 1.0, tmp_path)
    assert len(calls) == 1 and all(again[key].equal(first[key]) for key in layers)
    for key, layer in layers.items():
        F = first[key]
        assert len(F) == layer.weight.shape[1] and 0 < F.shape[1] <= len(F)
        lengths = F.norm(dim=0)
        assert lengths.min() > 0.09**0.5 and lengths.max() < 1
    for _ in range(2):  # layers that attention is not among
        neutral_inputs(base, base.targeted("proj"), 1.0, tmp_path)
    assert len(calls) == 2
    quieter = neutral_inputs(base, layers, 10.0, tmp_path)
    assert len(calls) == 2 and all(quieter[key].norm() > first[key].norm() for key in layers)


@pytest.mark.parametrize("form", ["additive", "rotational", "lora"])
def test_in_training_every_layer_keeps_off_and_the_numbers_say_so(base, pristine, form):
    settings = Settings("rex", "dog", rank=2, form=form, weight_rate=1e-3)
    layers = base.targeted("attention")
    draw = torch.Generator().manual_seed(0)
    loud = {
        k: torch.linalg.qr(torch.randn(l.weight.shape[1], 2, generator=draw)).Q for k, l in layers.items()
    }
    owned = Slice(0, 2) if settings.owns_slice else None
    with in_training(base, settings, owned, {k: 0.999 * F for k, F in loud.items()}):
        for part in (base.pipeline.unet, base.pipeline.text_encoder):
            for parameter in part.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.1, generator=draw)
            acting = {**spectral_layers(part, ADAPTER), **lora_layers(part)}
            assert acting
            prefix = "unet" if part is base.pipeline.unet else "text_encoder"
            for path, layer in acting.items():
                change = layer.get_delta_weight(ADAPTER)
                assert (change @ loud[f"{prefix}.{path}"]).norm() < 0.02 * change.norm()
        numbers = collect(base)
    assert numbers.keys() == layers.keys()
    if form == "lora":
        assert all((n["Q"].mT @ loud[key]).norm() < 0.02 * n["Q"].norm() for key, n in numbers.items())


def test_what_reads_a_fixed_space_cannot_keep_off_anything():
    assert Settings("rex", "dog").keeps_off == 1
    assert Settings("rex", "dog", form="orthogonal").keeps_off == 0
    assert Settings("rex", "dog", isolated=True, reserved=64).keeps_off == 0
    with pytest.raises(InputError, match="set neutral_weight to 0"):
        Settings("rex", "dog", form="orthogonal", neutral_weight=1.0)
