"""The adapter inside of diffusers' models, and PEFT's own saving."""

import copy
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from peft import PeftType, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from small_models import OPTIONS, changes, config, no_svd, same, stir
from torch import nn

from spectral_diffusion import tuner
from spectral_diffusion.errors import InputError
from spectral_diffusion.triplets import top_triplets
from spectral_diffusion.tuner import SpectralConfig, fold, set_strength, spectral_layers, using_spectrum
from spectral_diffusion.tuner import model as tuner_model


@pytest.fixture(scope="module")
def pristine_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.fixture
def unet(pristine_unet):
    return copy.deepcopy(pristine_unet)


def picture(unet, **kwargs) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    noise, words = (torch.randn(s, generator=generator) for s in ((1, 4, 8, 8), (1, 5, 12)))
    with torch.no_grad():
        return unet(noise.to(unet.dtype), 10, words.to(unet.dtype), **kwargs).sample


def test_the_method_is_a_member_of_pefts_enum_and_registers_once():
    assert PeftType("SPECTRAL") is PeftType.SPECTRAL is config().peft_type
    assert pickle.loads(pickle.dumps(PeftType.SPECTRAL)) is PeftType.SPECTRAL
    assert list(PeftType).count(PeftType.SPECTRAL) == 1
    tuner._extend_peft_types("SPECTRAL")
    tuner._register()
    assert list(PeftType).count(PeftType.SPECTRAL) == 1


@pytest.mark.parametrize("options", OPTIONS)
def test_a_unet_starts_as_the_base_and_only_the_numbers_train(unet, pristine_unet, options):
    unet.add_adapter(config(**options), "dog")
    assert torch.equal(picture(unet), picture(pristine_unet))
    trainable = {n for n, p in unet.named_parameters() if p.requires_grad}
    assert len(spectral_layers(unet)) == 4 * 8 and len(trainable) == 3 * len(spectral_layers(unet))
    assert all(".spectral_" in name for name in trainable)


@pytest.mark.parametrize("options", OPTIONS)
def test_unet_adapters_are_set_scaled_fused_unfused_and_deleted(unet, pristine_unet, options):
    base = picture(pristine_unet)
    for name, start in (("dog", 0), ("cat", 2)):
        unet.add_adapter(config(start=start, **options), name)
        stir(unet, name, start)
    unet.set_adapters(["dog", "cat"], [0.8, 0.5])
    both = picture(unet)
    unet.set_adapters(["dog"], [0.8])
    dog = picture(unet)
    assert not torch.allclose(both, dog, atol=1e-4) and not torch.allclose(dog, base, atol=1e-4)

    unet.set_adapters(["dog", "cat"], [0.8, 0.5])
    unet.fuse_lora(safe_fusing=True)
    assert torch.allclose(picture(unet), both, atol=1e-5)
    unet.unfuse_lora()
    assert torch.equal(picture(unet), both)

    unet.delete_adapters("cat")
    assert torch.equal(picture(unet), dog)
    unet.disable_adapters()
    assert torch.equal(picture(unet), base)
    unet.enable_adapters()
    unet.delete_adapters("dog")
    assert torch.equal(picture(unet), base)


def test_a_call_with_scale_zero_is_the_base_and_does_not_lose_the_strength(unet, pristine_unet):
    unet.add_adapter(config(), "dog")
    stir(unet, "dog")
    set_strength(unet, "dog", 0.3)
    before = picture(unet)
    assert torch.equal(picture(unet, cross_attention_kwargs={"scale": 0.0}), picture(pristine_unet))
    assert torch.equal(picture(unet), before)
    with pytest.raises(InputError, match="no spectral adapter 'bird'"):
        set_strength(unet, "bird", 1.0)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_saved_adapter_brings_its_own_columns_into_another_unet(unet, pristine_unet, options, monkeypatch):
    unet.add_adapter(config(start=1, **options), "dog")
    stir(unet, "dog")
    saved = get_peft_model_state_dict(unet, adapter_name="dog")
    assert {key.rpartition(".")[2] for key in saved} >= {
        "spectral_U",
        "spectral_S",
        "spectral_V",
        "spectral_A",
    }
    monkeypatch.setattr(tuner_model, "top_triplets", no_svd)
    other = copy.deepcopy(pristine_unet)
    other.add_adapter(SpectralConfig(**config(start=1, **options).to_dict()), "renamed")
    result = set_peft_model_state_dict(other, saved, adapter_name="renamed")
    assert not result.unexpected_keys and not [k for k in result.missing_keys if "spectral_" in k]
    assert same(changes(other, "renamed"), changes(unet, "dog"))
    assert torch.equal(picture(other), picture(unet))


FRESH = """
    import sys, torch
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file, save_file
    from spectral_diffusion.triplets import Triplets
    from spectral_diffusion.tuner import SpectralConfig, model as tuner_model, spectral_layers

    def other_machine(weight, k):
        "An SVD as another machine has it: of the transpose, in fp64, with other signs."
        V, S, Uh = torch.linalg.svd(weight.double().T, full_matrices=False)
        return Triplets(-Uh.T[:, :k].float(), S[:k].float(), -V[:, :k].float())

    folder, route = sys.argv[1:]
    tuner_model.top_triplets = other_machine
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(12, 10), torch.nn.Linear(10, 14))
    saved = PeftConfig.from_pretrained(folder).to_dict()
    config = SpectralConfig(**{**saved, "init_weights": route == "svd"})
    inject_adapter_in_model(config, net, "loaded")
    set_peft_model_state_dict(net, load_file(folder + "/adapter.safetensors"), "loaded")
    found = {n: m.get_delta_weight("loaded").detach() for n, m in spectral_layers(net).items()}
    save_file(found, folder + "/found.safetensors")
"""


@pytest.mark.parametrize("route", ["svd", "file"])
def test_a_fresh_process_with_another_svd_gets_the_same_weight_change(tmp_path, route):
    from peft import inject_adapter_in_model

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 14))
    settings = SpectralConfig(r=3, start=2, target_modules=["0", "1"], slice_aware=True)
    inject_adapter_in_model(settings, net, "dog")
    stir(net, "dog")
    settings.save_pretrained(tmp_path)
    save_file(get_peft_model_state_dict(net, adapter_name="dog"), tmp_path / "adapter.safetensors")
    command = [sys.executable, "-c", textwrap.dedent(FRESH), str(tmp_path), route]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same(load_file(tmp_path / "found.safetensors"), changes(net, "dog"))


def test_a_spectrum_can_be_handed_in_and_is_checked(unet, monkeypatch):
    unet.add_adapter(config(start=2), "computed")
    names = spectral_layers(unet)
    spectrum = {name: top_triplets(layer.original_weight, 4) for name, layer in names.items()}
    monkeypatch.setattr(tuner_model, "top_triplets", no_svd)
    with using_spectrum(spectrum):
        unet.add_adapter(config(start=2), "given")
        for layer in names.values():
            assert all(map(torch.equal, layer.triplets("given"), layer.triplets("computed")))
        with pytest.raises(InputError, match="4 columns"):
            unet.add_adapter(config(start=4), "deep")
    with pytest.raises(AssertionError):
        unet.add_adapter(config(), "outside")
    with using_spectrum({}), pytest.raises(InputError, match="has no layer"):
        unet.add_adapter(config(), "unknown")


@pytest.mark.parametrize("name", ["a.b", "a b", "", "train", "keys"])
def test_unusable_adapter_names_are_refused_before_anything_is_changed(unet, name):
    with pytest.raises(InputError, match="adapter name"):
        unet.add_adapter(config(), name)
    assert not spectral_layers(unet)


def test_a_half_precision_unet_keeps_the_adapter_in_fp32(unet, pristine_unet):
    unet.add_adapter(config(), "dog")
    stir(unet, "dog")
    before = changes(unet, "dog")
    unet.to(torch.bfloat16)
    assert same(changes(unet, "dog"), before)
    assert picture(unet).dtype == torch.bfloat16
    unet.add_adapter(config(start=2), "cat")
    numbers = [t for n, t in unet.state_dict().items() if ".spectral_" in n]
    assert numbers and all(t.dtype == torch.float32 for t in numbers)


def test_folding_a_unet_adapter_saves_the_papers_numbers_alone(unet, pristine_unet):
    unet.add_adapter(config(isolated=True, reserved=6, slice_aware=True), "dog")
    stir(unet, "dog")
    before = changes(unet, "dog")
    fold(unet, "dog")
    assert same(changes(unet, "dog"), before)
    saved = get_peft_model_state_dict(unet, adapter_name="dog")
    assert {key.rpartition(".")[2] for key in saved} == {f"spectral_{part}" for part in "ABCUSV"}
    other = copy.deepcopy(pristine_unet)
    other.add_adapter(SpectralConfig(**unet.peft_config["dog"].to_dict()), "dog")
    set_peft_model_state_dict(other, saved, "dog")
    assert same(changes(other, "dog"), before)
