"""A T2I-Adapter guides as it does in diffusers' own pipeline, also where that pipeline cannot go."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import pictures
from refusal import one_sentence

from spectral_diffusion.errors import InputError
from spectral_diffusion.generate import Request, generate, make_sampler

REQUEST = Request("a dog in the snow", seed=3, steps=2)


def adapter(channels, grey):
    from diffusers import T2IAdapter

    torch.manual_seed(4)
    return T2IAdapter(in_channels=1 if grey else 3, channels=channels, num_res_blocks=1, downscale_factor=8)


@pytest.fixture(scope="module")
def sketch(base, tmp_path_factory):
    """Two adapters of random weights, `grey` and `colour`, and a picture."""
    folder = tmp_path_factory.mktemp("guides")
    for name, grey in (("grey", True), ("colour", False)):
        adapter(list(base.pipeline.unet.config.block_out_channels), grey).save_pretrained(folder / name)
    pictures(1, 128)[0].crop((0, 0, 64, 64)).save(folder / "sketch.png")
    return folder


def guide(folder, name="colour", **options):
    return {"guide": str(folder / name), "guide_image": str(folder / "sketch.png"), **options}


def pixels(picture):
    return np.asarray(picture.image).astype(int)


@pytest.mark.parametrize("name", ["grey", "colour"])
def test_diffusers_own_pipeline_gives_the_same_picture(base, pristine, sketch, name):
    from diffusers import StableDiffusionAdapterPipeline, T2IAdapter
    from PIL import Image

    ours = pixels(generate(base, replace(REQUEST, **guide(sketch, name, guide_strength=0.7)))[0])
    parts = {k: v for k, v in base.pipeline.components.items() if k != "image_encoder"}
    parts |= {"scheduler": make_sampler(base.pipeline, REQUEST.sampler), "requires_safety_checker": False}
    pipeline = StableDiffusionAdapterPipeline(
        **parts, adapter=T2IAdapter.from_pretrained(sketch / name).eval()
    )
    with Image.open(sketch / "sketch.png") as image:
        picture = image.convert("L" if name == "grey" else "RGB")
    theirs = pipeline(
        REQUEST.prompt, image=picture, width=64, height=64, num_inference_steps=2, adapter_conditioning_scale=0.7,
        guidance_scale=REQUEST.guidance, generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    assert abs(np.asarray(theirs).astype(int) - ours).max() <= 1
    assert abs(pixels(generate(base, REQUEST)[0]) - ours).max() > 5


def test_it_goes_with_batches_regions_start_pictures_and_the_hires_fix(base, pristine, sketch):
    region = {"prompt": "a cat", "box": (0, 0, 0.5, 1)}
    start = {"image": str(sketch / "sketch.png"), "steps": 4}
    for options in ({"upscale": 1.5, "regions": (region,)}, start):
        request = replace(REQUEST, count=2, **guide(sketch), **options)
        both = generate(base, request)
        (alone,) = generate(base, replace(request, seed=4, count=1))
        assert abs(pixels(both[1]) - pixels(alone)).max() <= 1
        plain = generate(base, replace(request, guide=None, guide_image=None))
        assert abs(pixels(both[0]) - pixels(plain[0])).max() > 5
        none = generate(base, replace(request, guide_strength=0.0))
        assert abs(pixels(none[0]) - pixels(plain[0])).max() <= 1


def test_what_is_no_guide_is_told(base, base_folder, pristine, sketch, tmp_path):
    with one_sentence("both a T2I-Adapter's folder and the picture", error=InputError):
        replace(REQUEST, guide=str(sketch / "grey"))
    adapter([64, 32], False).save_pretrained(tmp_path / "other")
    for given, said in {
        (tmp_path, "has no config.json"),
        (tmp_path / "other", "another kind of base"),
        (base_folder / "unet", "T2I-Adapter"),
    }:
        with one_sentence(said, error=InputError):
            generate(base, replace(REQUEST, **guide(sketch) | {"guide": str(given)}))
    with one_sentence("no guide's picture", error=InputError):
        generate(base, replace(REQUEST, **guide(sketch) | {"guide_image": "none.png"}))
