"""A LoRA's numbers survive half precision, and its names are those of other people's rule."""

import torch

from spectral_diffusion.lora import balanced, kohya_name, stored_error
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


def sd15_layers():
    """The layers that concepts adapt in a Stable Diffusion 1.5, from models without weights."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from spectral_diffusion.base import adapted_layers

    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(sd15_configs()["unet"])
        text = CLIPTextModel(CLIPTextConfig(**sd15_configs()["text_encoder"]))
    return adapted_layers(type("Parts", (), {"unet": unet, "text_encoder": text}))


def kohya_rule():
    """Which attention projections kohya's networks name in Stable Diffusion 1.x, by its rule, written out."""
    places = [f"down_blocks_{b}_attentions_{a}" for b in range(3) for a in range(2)]
    places += ["mid_block_attentions_0"]
    places += [f"up_blocks_{b}_attentions_{a}" for b in range(1, 4) for a in range(3)]
    unet = {
        f"lora_unet_{place}_transformer_blocks_0_attn{kind}_to_{which}"
        for place in places
        for kind in (1, 2)
        for which in ("q", "k", "v", "out_0")
    }
    return unet | {
        f"lora_te_text_model_encoder_layers_{layer}_self_attn_{which}_proj"
        for layer in range(12)
        for which in ("q", "k", "v", "out")
    }


def test_the_176_names_of_sd15_are_those_of_kohyas_rule():
    layers = sd15_layers()
    assert len(layers) == 176
    assert {kohya_name(layer) for layer in layers} == kohya_rule()
