"""One request gives the same pictures however they are batched, and each carries what made it."""

import copy
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import pictures, random_concept
from PIL import Image

from spectral_diffusion import generate as module
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import (
    SAMPLERS,
    Picture,
    Request,
    draw_again,
    generate,
    make_sampler,
    parameters,
    save,
)
from spectral_diffusion.metadata import recall


@pytest.fixture(scope="module")
def duo(base):
    """Two concepts of large random numbers, fused."""
    parts = [Fused.of(random_concept(base, name, start)) for name, start in (("rex", 0), ("mia", 3))]
    return Fused(
        base.name,
        base.fingerprint,
        tuple(member for part in parts for member in part.members),
        {name: table for part in parts for name, table in part.factors.items()},
        {token: row for part in parts for token, row in part.words.items()},
    )


BLOCKS = ("text", "down", "mid", "up")
REQUEST = Request("a photo of a dog", seed=5, count=3, steps=2, batch=3)


def pixels(picture):
    return np.asarray(picture.image).astype(int)


def near(one, two):
    return abs(pixels(one) - pixels(two)).max() <= 1  # float noise may tip a rounding


@pytest.fixture(scope="module")
def drawn(base):
    return generate(base, REQUEST)


def test_the_same_request_gives_the_same_pictures(base, pristine, drawn):
    again = generate(base, REQUEST)
    assert [p.image.tobytes() for p in again] == [p.image.tobytes() for p in drawn]
    assert all(p.image.size == (64, 64) for p in drawn)


def test_picture_i_is_the_one_drawn_alone_with_seed_plus_i(base, drawn):
    assert [picture.seed for picture in drawn] == [5, 6, 7]
    for i, picture in enumerate(drawn):
        (alone,) = generate(base, replace(REQUEST, seed=5 + i, count=1))
        assert near(alone, picture)
    assert not near(drawn[0], drawn[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_the_same_whatever_the_batch(base, pristine, sampler):
    request = replace(REQUEST, sampler=sampler, count=2, steps=3)
    together = generate(base, replace(request, batch=2))
    apart = generate(base, replace(request, batch=1))
    assert all(near(one, two) for one, two in zip(together, apart, strict=True))


def test_a_seed_is_the_same_picture_in_a_batch_of_1_and_of_8(base, pristine, duo):
    request = Request("a <rex> in the snow", seed=5, count=8, steps=3, batch=8, sampler="Euler a")
    together, apart = (generate(base, replace(request, batch=batch), duo) for batch in (8, 1))
    assert all(near(one, two) for one, two in zip(together, apart, strict=True))


def test_progress_counts_every_step_of_every_batch(base):
    seen = []
    generate(base, replace(REQUEST, batch=2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_size_and_negative_prompt_act(base, drawn):
    (wide,) = generate(base, replace(REQUEST, count=1, size=(128, 64)))
    assert wide.image.size == (128, 64)
    (other,) = generate(base, replace(REQUEST, count=1, negative="snow"))
    assert not near(other, drawn[0])


def test_concepts_act_by_their_strength_and_leave_the_base(base, pristine, duo):
    fused = duo
    request = Request("<rex> and <mia>", steps=2)
    (full,) = generate(base, request, fused)
    (same,) = generate(base, replace(request, strengths={"rex": 1.0}), fused)
    assert same.image.tobytes() == full.image.tobytes()
    (less,) = generate(base, replace(request, strengths={"rex": 0.25}), fused)
    assert [c["strength"] for c in less.made_with["concepts"]] == [0.25, 1.0]
    assert not near(less, full)


def test_a_block_s_factor_is_a_strength_there(base, pristine, duo):
    request = Request("<rex>", steps=2, strengths={"mia": 0})
    (half,) = generate(base, replace(request, strengths={"rex": 0.5, "mia": 0}), duo)
    (same,) = generate(base, replace(request, blocks={"rex": dict.fromkeys(BLOCKS, 0.5)}), duo)
    assert near(same, half)
    (other,) = generate(base, replace(request, blocks={"rex": {"up": 0.5}}), duo)
    assert not near(other, half)
    with pytest.raises(InputError, match="rex has no block 'side'"):
        generate(base, replace(request, blocks={"rex": {"side": 1}}), duo)


def test_lms_needs_no_scipy_and_integrates_exactly(base):
    scheduler = make_sampler(base.pipeline, "LMS")
    scheduler.set_timesteps(6)
    sigma = scheduler.sigmas.double().numpy()
    grid = np.linspace(sigma[3], sigma[4], 20001)
    for order in (1, 2, 3, 4):
        for one in range(order):
            weights = [
                (grid - sigma[3 - k]) / (sigma[3 - one] - sigma[3 - k]) for k in range(order) if k != one
            ]
            whole = np.trapezoid(np.prod([np.ones_like(grid), *weights], axis=0), grid)
            assert scheduler.get_lms_coefficient(order, 3, one) == pytest.approx(whole, rel=1e-6)


def test_a_concept_that_is_not_loaded_is_refused_and_the_base_restored(base, pristine, duo):
    fused = duo
    with pytest.raises(InputError, match="<bob>, which is not loaded; loaded concepts: <mia>, <rex>"):
        generate(base, Request("<bob>"), fused)
    with pytest.raises(InputError, match="loaded concepts: none"):
        generate(base, Request("<rex>"))
    with pytest.raises(InputError, match="'<lora:x:1>', which is no LoRA that was found"):
        generate(base, Request("a dog <lora:x:1>"))
    with pytest.raises(InputError, match="no concept is loaded"):
        generate(base, Request("a dog", strengths={"rex": 1}))


def test_the_base_is_restored_if_drawing_stops_half_way(base, pristine, duo):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(base, Request("<mia>", steps=2), duo, stop)


@pytest.mark.parametrize(
    "option",
    [
        {"count": 0}, {"steps": 0}, {"batch": 0}, {"guidance": 0.5}, {"guidance": float("nan")},
        {"guidance": float("inf")}, {"seed": -1}, {"seed": 2**63}, {"size": (100, 64)}, {"size": (64, 8)},
        {"sampler": "Nope"}, {"clip_skip": 0}, {"denoise": 1.5}, {"upscale": 0.5}, {"upscaler": "ESRGAN"},
        {"steps": 2.5}, {"prompt": 5}, {"count": True}, {"strengths": {"rex": -1}}, {"sampler": "Heun "},
    ],
)  # fmt: skip
def test_an_impossible_request_cannot_be_built(option):
    value = next(iter(option.values()))
    shown = re.escape(str(next(iter(value.values())) if isinstance(value, dict) else value))
    with pytest.raises(InputError, match=shown):
        Request(**{"prompt": "a dog", **option})


def test_an_unknown_sampler_lists_the_known_ones():
    with pytest.raises(InputError, match=r"no sampler 'DDPM'; there are DPM\+\+ 2M, .*DDIM"):
        Request("a dog", sampler="DDPM")


def picture(prompt="a photo of <rex>", negative="", base="tiny", seed=5):
    made_with = {"base": base, "base_fingerprint": "ab" * 32, "concepts": [{"name": "rex"}]}
    return Picture(Image.new("RGB", (64, 72)), seed, Request(prompt, negative, seed=3, count=3), made_with)


def test_saving_counts_on_and_never_overwrites(tmp_path):
    (tmp_path / "notes-1.png").write_bytes(b"mine")
    (tmp_path / "00004-7.png").write_bytes(b"mine")
    (tmp_path / "99999-7.png").write_bytes(b"mine")
    names = [save(picture(seed=seed), tmp_path).name for seed in (5, 5, 6)]
    assert names == ["100000-5.png", "100001-5.png", "100002-6.png"]
    assert (tmp_path / "00004-7.png").read_bytes() == b"mine"


def test_two_processes_saving_at_once_get_two_files(tmp_path, monkeypatch):
    first = save(picture(), tmp_path)
    content = first.read_bytes()
    with monkeypatch.context() as patch:  # the other process lists the folder before `first` was there
        patch.setattr(type(tmp_path), "glob", lambda *_: iter(()))
        second = save(picture(), tmp_path)
    assert second != first and first.read_bytes() == content


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(OSError, match="No space"):
        save(picture(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def start_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("start") / "disc.png"
    pictures(1)[0].save(file)
    return str(file)


def test_a_start_picture_counts_the_more_the_less_is_denoised(base, pristine, start_file):
    request = Request("a dog", seed=3, steps=10, image=start_file)
    faint, strong = (generate(base, replace(request, denoise=d))[0] for d in (0.1, 1.0))
    from_noise = generate(base, Request("a dog", seed=3, steps=10))[0]
    assert not near(strong, faint) and not near(strong, from_noise)
    wide = generate(base, replace(request, size=(128, 64), denoise=0.1))[0]
    assert wide.image.size == (128, 64)
    with pytest.raises(InputError, match="raise either"):
        replace(request, denoise=0.05)
    with pytest.raises(InputError, match=r"There is no start picture .*none\.png"):
        generate(base, replace(request, image="none.png"))


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_the_hires_fix_enlarges_and_does_not_depend_on_the_batch(base, pristine, upscaler):
    request = Request("a dog", steps=3, count=2, upscale=1.5, upscaler=upscaler, sampler="Euler a")
    seen = []
    big = generate(base, request, progress=lambda done, total: seen.append((done, total)))
    assert [picture.image.size for picture in big] == [(96, 96)] * 2
    assert seen[-1] == (5, 5)  # 3 steps and then 0.7 of 3
    alone = generate(base, replace(request, seed=1, count=1))[0]
    assert near(alone, big[1])
    assert "Size: 64x64" in parameters(big[0]) and "Hires upscale: 1.5" in parameters(big[0])


def test_another_vae_draws_and_goes_again(base, base_folder, pristine, tmp_path, drawn):
    other = copy.deepcopy(base.pipeline.vae)
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.5
    other.save_pretrained(tmp_path / "vae")
    before = base.pipeline.vae
    (same,) = generate(base, replace(REQUEST, count=1, vae=str(base_folder / "vae")))
    assert near(same, drawn[0])
    (brighter,) = generate(base, replace(REQUEST, count=1, vae=str(tmp_path / "vae")))
    assert pixels(brighter).mean() > pixels(same).mean() + 20
    assert base.pipeline.vae is before
    from_file = replace(REQUEST, count=1, vae=str(tmp_path / "vae" / "diffusion_pytorch_model.safetensors"))
    assert generate(base, from_file)[0].image.tobytes() == brighter.image.tobytes()
    with pytest.raises(InputError, match="is no VAE's file, nor its folder"):
        generate(base, replace(REQUEST, vae=str(tmp_path)))


def test_weights_breaks_clip_skip_and_length_act_in_any_batch(base, pristine, duo):
    long = ", ".join(["a photo of a dog on the beach"] * 20) + " <rex>"
    prompts = ["a (dog:1.4) BREAK [cat]", "{a dog|a cat|<mia>|<rex>} in (space)", long]
    for prompt in prompts:
        request = Request(prompt, "((snow))", seed=2, count=2, steps=2, clip_skip=2)
        both = generate(base, request, duo)
        alone = generate(base, replace(request, seed=3, count=1), duo)
        assert near(alone[0], both[1])
        plain = generate(base, replace(request, seed=3, count=1, clip_skip=1), duo)
        assert not near(plain[0], alone[0])
    shorter = generate(base, replace(request, prompt=long.removesuffix(" <rex>")), duo)
    assert shorter[0].image.tobytes() != both[0].image.tobytes(), "what is beyond 77 tokens was cut"
    with pytest.raises(InputError, match="Clip skip must be 1 to 2"):
        generate(base, Request("a dog", clip_skip=3))


def test_what_was_drawn_in_a_batch_is_drawn_again_bit_for_bit(base, pristine, duo, tmp_path):
    request = Request(
        "a {dog|cat|(<rex>:1.2)}", seed=4, count=3, steps=2, batch=2, sampler="Euler a",
        strengths={"rex": 0.5}, regions=({"prompt": "<mia>", "box": (0, 0, 0.5, 1), "feather": 0.1},),
    )  # fmt: skip
    for picture in generate(base, request, duo):
        again = draw_again(base, recall(save(picture, tmp_path)), duo)
        assert again.image.tobytes() == picture.image.tobytes()
        assert again.seed == picture.seed
    with pytest.raises(InputError, match=r"other concepts or strengths .*then: rex, mia"):
        draw_again(base, recall(save(picture, tmp_path)), duo.without("mia"))


def test_a_half_precision_base_draws_nearly_the_same(base_folder, drawn):
    from spectral_diffusion.base import load_base

    half = generate(load_base(str(base_folder), torch.bfloat16), replace(REQUEST, count=1))
    assert abs(pixels(half[0]) - pixels(drawn[0])).mean() < 6


def test_requests_are_plain_data():
    assert json.loads(json.dumps(asdict(REQUEST)))["prompt"] == REQUEST.prompt
