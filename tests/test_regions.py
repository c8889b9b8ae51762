"""Regions: each text and each concept's weight change act inside their region, and nowhere else."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_concept
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.regional import regional
from spectral_diffusion.regions import Region, parse_region, place, shares
from spectral_diffusion.words import cross_attention_layers

LEFT, RIGHT, WHOLE = (0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 1)


@pytest.fixture(scope="module")
def duo(base):
    """`rex` in columns 0..2 with single words, `mia` in 3..5 with a word for each layer."""
    rex, mia = (random_concept(base, name, start, seed=start) for name, start in (("rex", 0), ("mia", 3)))
    generator = torch.Generator().manual_seed(9)
    deep = {token: 0.1 * torch.randn(16, 32, generator=generator) for token in mia.words}
    parts = [Fused.of(rex), Fused.of(replace(mia, words=deep))]
    return Fused(
        base.name,
        base.fingerprint,
        tuple(member for part in parts for member in part.members),
        {name: table for part in parts for name, table in part.factors.items()},
        {token: row for part in parts for token, row in part.words.items()},
    )


def drawn(base, fused, *regions, prompt="a photo", **options):
    request = Request(prompt, steps=2, seed=3, regions=regions, **options)
    return np.asarray(generate(base, request, fused)[0].image).astype(int)


def near(one, two):
    return abs(one - two).max() <= 1


def encoded(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# pictures


@pytest.mark.parametrize("guidance", [1, 5])
def test_one_region_over_everything_is_the_fusion_everywhere(base, pristine, duo, guidance):
    prompt = "(<rex>:1.2) and <mia>, " + "in the snow, " * 20
    whole = Region(prompt, WHOLE)
    everywhere = drawn(base, duo, prompt=prompt, guidance=guidance)
    assert near(drawn(base, duo, whole, guidance=guidance), everywhere)
    assert not near(drawn(base, duo, guidance=guidance), everywhere)


def test_regions_without_concepts_of_the_request_s_own_prompt_are_plain(base, pristine, duo):
    same = [Region("a photo", box) for box in (LEFT, (0.2, 0.1, 0.9, 0.6))]
    assert near(drawn(base, None, *same), drawn(base, None))


def test_the_order_of_regions_does_not_matter(base, pristine, duo):
    one, two = Region("<rex>", (0, 0, 0.7, 1), feather=0.1), Region("<mia>", (0.4, 0, 1, 1), negative="snow")
    assert near(drawn(base, duo, one, two), drawn(base, duo, two, one))
    assert not near(drawn(base, duo, one, two), drawn(base, duo, one))


def test_a_concept_of_a_region_acts_in_its_regions_only(base, pristine, duo):
    """Also if the request's own prompt names it, and however often a region does."""
    both = [Region("<rex>", LEFT), Region("<rex>", RIGHT)]
    assert near(drawn(base, duo, *both), drawn(base, duo, Region("<rex>", WHOLE)))
    silent = Region("a photo", LEFT, concepts=("rex",))
    off = drawn(base, duo, Region("a photo", LEFT), strengths={"rex": 0})
    assert not near(drawn(base, duo, silent), off)
    assert near(drawn(base, duo, silent, strengths={"rex": 0}), off)


def test_pictures_with_regions_do_not_depend_on_their_batch(base, pristine, duo):
    regions = (
        Region("{<rex>|a dog}", (0, 0, 0.6, 1), concepts=("rex",)),
        Region("<mia>", RIGHT, feather=0.2),
    )
    request = Request("a photo", steps=2, seed=3, count=3, batch=3, regions=regions, size=(96, 64))
    for i, picture in enumerate(generate(base, request, duo)):
        (alone,) = generate(base, replace(request, seed=3 + i, count=1), duo)
        assert near(*(np.asarray(p.image).astype(int) for p in (picture, alone)))


def test_a_concept_that_is_not_loaded_is_refused_in_a_region(base, pristine, duo):
    for region in (Region("<bob>", LEFT), Region("a dog", LEFT, concepts=("bob",))):
        with pytest.raises(InputError, match="<bob>, which is not loaded; loaded concepts: <mia>, <rex>"):
            drawn(base, duo, region)
    with pytest.raises(InputError, match="<bob>, which is not loaded"):
        drawn(base, duo, Region("a dog", LEFT, negative="<bob>"))


# layers


def outputs(base, key, call):
    """What a layer answers while `call()` runs."""
    found = []
    hook = base.layers[key].register_forward_hook(lambda module, args, output: found.append(output))
    try:
        call()
    finally:
        hook.remove()
    return found[0]


SPATIAL = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q"]


@pytest.mark.parametrize("layer", SPATIAL)
def test_a_weight_change_stays_inside_its_mask_to_the_bit(base, pristine, duo, layer):
    key = next(key for key in base.layers if key.endswith(layer))
    inputs = torch.randn(2, 64, base.layers[key].in_features, generator=torch.Generator().manual_seed(1))
    rex = replace(duo, members=duo.members[:1])
    text = torch.zeros(2, 77, 32)
    with torch.no_grad():
        plain = base.layers[key](inputs)
        changed = plain + inputs @ rex.delta(key).T
        with regional(base, rex, [Region("<rex>", LEFT)], [text, text], 1, (64, 64)):
            answer = base.layers[key](inputs)
    answer, plain, changed = (part.view(2, 8, 8, -1) for part in (answer, plain, changed))
    assert answer[:, :, 4:].equal(plain[:, :, 4:])
    assert torch.allclose(answer[:, :, :4], changed[:, :, :4], atol=1e-5)


@pytest.mark.parametrize("layer", ["ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"])
def test_so_does_one_of_the_layers_around_attention(base, pristine, duo, layer):
    key = next(key for key in base.adaptable if key.startswith("unet.") and key.endswith(layer))
    module, draw = base.adaptable[key], torch.Generator().manual_seed(1)
    out, width = module.weight.shape[:2]
    factors = {key: (torch.randn(out, 3, generator=draw), torch.randn(width, 3, generator=draw))}
    rex = replace(duo, members=duo.members[:1], factors={"rex": factors})
    inputs = torch.randn(2, 64, width, generator=draw)
    if module.weight.ndim == 4:
        inputs = inputs.mT.reshape(2, width, 8, 8)
    text = torch.zeros(2, 77, 32)
    with torch.no_grad():
        plain = module(inputs)
        kept, module.weight.data = (
            module.weight.data,
            module.weight.data + rex.delta(key).reshape(module.weight.shape),
        )
        changed = module(inputs)
        module.weight.data = kept
        with regional(base, rex, [Region("<rex>", LEFT)], [text, text], 1, (64, 64)):
            answer = module(inputs)
    if module.weight.ndim == 4:
        answer, plain, changed = (part.flatten(2).mT for part in (answer, plain, changed))
    answer, plain, changed = (part.reshape(2, 8, 8, -1) for part in (answer, plain, changed))
    assert answer[:, :, 4:].equal(plain[:, :, 4:])
    assert torch.allclose(answer[:, :, :4], changed[:, :, :4], atol=1e-4)


def test_each_pixel_attends_to_its_region_s_text_with_its_region_s_weights(base, pristine, duo):
    module = cross_attention_layers(base.pipeline.unet)[0]
    path = next(path for path, m in base.pipeline.unet.named_modules() if m is module)
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randn(2, 77, 32, generator=generator) for _ in range(3)]
    inputs = torch.randn(2, 64, module.to_q.in_features, generator=generator)
    regions = [Region("<rex>", LEFT), Region("<mia>", (0.25, 0, 0.5, 1))]

    def alone(text, *members):
        kept = {}
        for member in members:
            for side in ("to_k", "to_v"):
                layer = getattr(module, side)
                kept[side] = layer.weight.data
                one = replace(duo, members=(member,))
                layer.weight.data = layer.weight.data + one.delta(f"unet.{path}.{side}")
        answer = module(inputs, text)
        for side, weight in kept.items():
            getattr(module, side).weight.data = weight
        return answer.view(2, 8, 8, -1)

    spatial = {name: {k: t for k, t in table.items() if ".to_k" in k or ".to_v" in k}
               for name, table in duo.factors.items()}  # fmt: skip
    with torch.no_grad():
        own, rex, mia = (alone(text, *who) for text, who in zip(
            texts, ((), duo.members[:1], duo.members[1:]), strict=True))  # fmt: skip
        with regional(base, replace(duo, factors=spatial), regions, texts, 1, (64, 64)):
            mixed = module(inputs, texts[0]).view(2, 8, 8, -1)
    bias = module.to_out[0].bias
    shared = (rex - bias + mia - bias) / 2 + bias
    assert torch.allclose(mixed[:, :, 4:], own[:, :, 4:], atol=1e-5)
    assert torch.allclose(mixed[:, :, :2], rex[:, :, :2], atol=1e-5)
    assert torch.allclose(mixed[:, :, 2:4], shared[:, :, 2:4], atol=1e-5)


# masks


def test_a_painted_mask_is_the_box_it_shows():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    painted, box = Region("a", mask=encoded(mask)), Region("a", LEFT)
    assert painted.coverage(64, 64).equal(box.coverage(64, 64))
    assert Region.of({"prompt": "a", "mask": painted.mask}) == painted
    clear = np.dstack([np.full((64, 64, 3), 255, np.uint8), mask])
    assert Region("a", mask=encoded(clear)).coverage(64, 64).equal(box.coverage(64, 64))


BOXES = st.tuples(*[st.floats(0, 1)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]) , max(b[1], b[3]))
).filter(lambda b: b[0] < b[2] and b[1] < b[3])  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.tuples(BOXES, st.floats(0, 0.5)), min_size=1, max_size=4))
def test_the_shares_of_every_pixel_add_up_to_one(boxes):
    masks, parts = shares([Region("a", box, feather=feather) for box, feather in boxes], 40, 24)
    assert masks.shape == (len(boxes), 24, 40) and parts.shape == (len(boxes) + 1, 24, 40)
    assert masks.min() >= 0 and masks.max() <= 1 and parts.min() >= 0
    assert torch.allclose(parts.sum(0), torch.ones(24, 40), atol=1e-5)


def test_a_feather_is_soft_inside_the_picture_and_keeps_its_border():
    mask = Region("a", LEFT, feather=0.25).coverage(64, 64)
    assert mask[:, 0].equal(torch.ones(64)) and mask[:, -1].equal(torch.zeros(64))
    row = mask[32]
    assert (row.diff() <= 1e-6).all() and 10 <= ((row > 0.01) & (row < 0.99)).sum() <= 17
    assert row[31] + row[32] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("where", "box"),
    [("left", LEFT), ("row 2/4", (0, 0.25, 1, 0.5)), ("column 3/3", (2 / 3, 0, 1, 1)), ("0,0,.5,1", LEFT)],
)
def test_a_place_in_words_is_a_box(where, box):
    assert parse_region(f"{where}: a photo of <rex>: big") == Region("a photo of <rex>: big", box)
    assert Region.of({"prompt": "x", "where": where}).box == pytest.approx(box)


def test_a_place_can_be_a_picture_file(tmp_path):
    Image.new("L", (32, 32), 255).save(tmp_path / "mask.png")
    assert Region("a", **place("mask.png", tmp_path)).coverage(8, 8).equal(torch.ones(8, 8))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Region("a"), "either a box or a mask"),
        (lambda: Region("a", LEFT, mask="x"), "either a box or a mask"),
        (lambda: Region("a", (0.5, 0, 0.5, 1)), "left < right"),
        (lambda: Region("a", (0, 0, 2, 1)), "each 0 to 1"),
        (lambda: Region("a", "left"), "fractions of the picture"),
        (lambda: Region("a", mask="no picture"), "no PNG in base64"),
        (lambda: Region("a", LEFT, feather=2), "feather .* 0 to 0.5"),
        (lambda: Region("a", LEFT, concepts="rex"), "list of names"),
        (lambda: Region(5, LEFT), "are texts"),
        (lambda: Region.of({"prompt": "a", "colour": "red"}), "table with 'prompt'"),
        (lambda: parse_region("left"), "not 'place: prompt'"),
        (lambda: parse_region("nowhere: a"), "no place or mask 'nowhere'"),
        (lambda: parse_region("row 4/3: a"), "no row 4/3"),
    ],
)
def test_a_region_that_makes_no_sense_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()
