"""Every layer is in the blocks that users know."""

import pytest

from spectral_diffusion.blocks import blocks_of

LAYERS = {
    "text_encoder.text_model.encoder.layers.1.self_attn.q_proj": ("text", "text.1"),
    "text_encoder.encoder.layers.11.self_attn.out_proj": ("text", "text.11"),
    "unet.down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q": ("down", "down.2", "attn1"),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0": ("mid", "attn2"),
    "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k": ("up", "up.1", "attn2"),
    "vae.decoder.conv_in": (),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_in_the_blocks_that_users_know(layer):
    assert blocks_of(layer) == LAYERS[layer]


def test_every_layer_of_a_base_is_in_a_block(base):
    assert all(blocks_of(layer) for layer in base.layers)
