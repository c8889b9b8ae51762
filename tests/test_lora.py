"""A LoRA's numbers survive half precision, and its names are those of other people's rule."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spectral_diffusion.base import adapted_layers, further_layers
from spectral_diffusion.export import export
from spectral_diffusion.fused import Fused
from spectral_diffusion.lora import balanced, kohya_name, stored_error
from spectral_diffusion.members import Member
from spectral_diffusion.model_file import read_layout
from spectral_diffusion.single_file import sd15_configs


def test_balancing_is_exact_and_saves_numbers_too_small_for_half_precision():
    draw = torch.Generator().manual_seed(0)
    up = 1e-9 * torch.randn(8, 3, generator=draw)
    down = 1e3 * torch.randn(3, 8, generator=draw)
    pair = balanced(up, down)
    assert (pair.up @ pair.down).equal(up @ down)
    assert stored_error({"x": pair}, torch.float16) < 2e-3
    assert stored_error({"x": type(pair)(up, down)}, torch.float16) > 0.9
    assert balanced(torch.zeros(4, 2), down[:2]).up.equal(torch.zeros(4, 2))


@pytest.fixture(scope="module")
def sd15():
    """The UNet and the text encoder of Stable Diffusion 1.5, without weights."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(sd15_configs()["unet"])
        text = CLIPTextModel(CLIPTextConfig(**sd15_configs()["text_encoder"]))
    return SimpleNamespace(unet=unet, text_encoder=text)


def places():
    """Where Stable Diffusion 1.x has its transformers."""
    found = [f"down_blocks_{b}_attentions_{a}" for b in range(3) for a in range(2)] + [
        "mid_block_attentions_0"
    ]
    return found + [f"up_blocks_{b}_attentions_{a}" for b in range(1, 4) for a in range(3)]


ATTENTION = [
    f"transformer_blocks_0_attn{kind}_to_{which}" for kind in (1, 2) for which in ("q", "k", "v", "out_0")
]
AROUND = ["proj_in", "proj_out", "transformer_blocks_0_ff_net_0_proj", "transformer_blocks_0_ff_net_2"]
TEXT = [f"self_attn_{which}_proj" for which in ("q", "k", "v", "out")]


def kohya_rule(around: bool):
    """What kohya's networks name in Stable Diffusion 1.x, by its rule, written out: attention, and all `around` it."""
    unet = [f"lora_unet_{place}_{layer}" for place in places() for layer in ATTENTION + AROUND * around]
    text = [*TEXT, *["mlp_fc1", "mlp_fc2"] * around]
    return {
        *unet,
        *(f"lora_te_text_model_encoder_layers_{i}_{layer}" for i in range(12) for layer in text),
    }


def test_the_176_names_of_sd15_are_those_of_kohyas_rule(sd15):
    layers = adapted_layers(sd15)
    assert len(layers) == 176
    assert {kohya_name(layer) for layer in layers} == kohya_rule(around=False)


@pytest.mark.parametrize("around", [False, True])
def test_a_file_of_full_size_has_just_the_keys_and_shapes_of_kohyas_rule(sd15, tmp_path, around):
    layers = adapted_layers(sd15) | (further_layers(sd15) if around else {})
    factors = {
        k: (torch.ones(len(layer.weight), 2), torch.ones(layer.weight.shape[1], 2))
        for k, layer in layers.items()
    }
    member = Member("rex", "dog", "lora", None, 2, 1.0, "ab" * 32)
    words = {token: torch.ones(1, 768) for token in ("<rex-1>", "<rex-2>")}
    fused = Fused("sd15", "cd" * 32, (member,), {"rex": factors}, words)
    [path] = export(fused, "kohya", tmp_path / "rex.safetensors")
    shapes = {key: entry.shape for key, entry in read_layout(path).tensors.items()}
    rule = kohya_rule(around)
    assert len(rule) == (264 if around else 176)  # as kohya's trainer counts them: 72 and 192
    assert shapes.keys() == {
        f"{name}.{end}" for name in rule for end in ("alpha", "lora_down.weight", "lora_up.weight")
    }
    modules = {kohya_name(key): layer for key, layer in layers.items()}
    for name, layer in modules.items():
        conv = (1, 1) if name.endswith(("proj_in", "proj_out")) else ()
        assert shapes[f"{name}.alpha"] == () and isinstance(layer, nn.Conv2d) == bool(conv)
        assert shapes[f"{name}.lora_down.weight"] == (2, layer.weight.shape[1], *conv)
        assert shapes[f"{name}.lora_up.weight"] == (layer.weight.shape[0], 2, *conv)
