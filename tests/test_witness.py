"""A third reader of our LoRAs, besides diffusers and PEFT: LyCORIS, which has names, alpha and merging of its own."""

import copy

import pytest
import torch
from conftest import random_concept

from benchmarks.full_size import merge_by_lycoris
from fusion.fuse import fuse
from spectral_diffusion.export import Options, export
from spectral_diffusion.fused import applied


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_lycoris_merges_our_lora_into_the_weights_that_we_bake(base, pristine, tmp_path, dtype, tolerance):
    concepts = [random_concept(base, "rex", 0), random_concept(base, "mia", 3, "rotational", 1)]
    fused = fuse(concepts, {"rex": 0.5, "mia": 0.75})
    [path] = export(fused, "kohya", tmp_path / "duo.safetensors", Options(dtype=dtype))
    unet, encoder = (copy.deepcopy(part) for part in (base.pipeline.unet, base.pipeline.text_encoder))
    assert merge_by_lycoris(unet, encoder, path) == len(base.layers), "no layer is left out"
    with applied(base, fused):
        for ours, theirs in ((base.pipeline.unet, unet), (base.pipeline.text_encoder, encoder)):
            for (name, own), other in zip(
                ours.state_dict().items(), theirs.state_dict().values(), strict=True
            ):
                assert (own - other).abs().max() <= tolerance * own.abs().max(), name
