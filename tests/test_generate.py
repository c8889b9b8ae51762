"""One request gives the same pictures however they are batched, and each carries what made it."""

import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from fusion.fuse import fuse
from spectral_diffusion import generate as module
from spectral_diffusion.errors import InputError
from spectral_diffusion.generate import KEYWORD, SAMPLERS, Picture, Request, generate, parameters, save

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


def test_progress_counts_every_step_of_every_batch(base):
    seen = []
    generate(base, replace(REQUEST, batch=2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_size_and_negative_prompt_act(base, drawn):
    (wide,) = generate(base, replace(REQUEST, count=1, size=(128, 64)))
    assert wide.image.size == (128, 64)
    (other,) = generate(base, replace(REQUEST, count=1, negative="snow"))
    assert not near(other, drawn[0])


def test_concepts_act_by_their_strength_and_leave_the_base(base, pristine, taught):
    fused = fuse([taught.rex, taught.mia])
    request = Request("<rex> and <mia>", steps=2)
    (full,) = generate(base, request, fused)
    (same,) = generate(base, replace(request, strengths={"rex": 1.0}), fused)
    assert same.image.tobytes() == full.image.tobytes()
    (less,) = generate(base, replace(request, strengths={"rex": 0.25}), fused)
    assert [c["strength"] for c in less.made_with["concepts"]] == [0.25, 1.0]


def test_a_concept_that_is_not_loaded_is_refused_and_the_base_restored(base, pristine, taught):
    fused = fuse([taught.rex, taught.mia])
    with pytest.raises(InputError, match="<bob>, which is not loaded; loaded concepts: <mia>, <rex>"):
        generate(base, Request("<bob>"), fused)
    with pytest.raises(InputError, match="loaded concepts: none"):
        generate(base, Request("<rex>"))
    with pytest.raises(InputError, match="no concept is loaded"):
        generate(base, Request("a dog", strengths={"rex": 1}))


def test_the_base_is_restored_if_drawing_stops_half_way(base, pristine, taught):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(base, Request("<mia>", steps=2), fuse([taught.mia]), stop)


@pytest.mark.parametrize(
    "option",
    [
        {"count": 0}, {"steps": 0}, {"batch": 0}, {"guidance": 0.5}, {"guidance": float("nan")},
        {"guidance": float("inf")}, {"seed": -1}, {"seed": 2**63}, {"size": (100, 64)}, {"size": (64, 8)},
        {"sampler": "Heun"},
    ],
)  # fmt: skip
def test_an_impossible_request_cannot_be_built(option):
    with pytest.raises(InputError, match=re.escape(str(next(iter(option.values()))))):
        Request("a dog", **option)


def test_an_unknown_sampler_lists_the_known_ones():
    with pytest.raises(InputError, match=r"no sampler 'LMS'; there are DPM\+\+ 2M, .*DDIM"):
        Request("a dog", sampler="LMS")


def picture(prompt="a photo of <rex>", negative="", base="tiny", seed=5):
    made_with = {"base": base, "base_fingerprint": "ab" * 32, "concepts": [{"name": "rex"}]}
    return Picture(Image.new("RGB", (64, 72)), seed, Request(prompt, negative, seed=3, count=3), made_with)


# as A1111's reader has them (modules/infotext_utils.py)
A1111_PARAM = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read_by_a1111(text):
    *lines, last = text.strip().split("\n")
    found = A1111_PARAM.findall(last)
    assert len(found) >= 3, "A1111 takes the last line for a part of the prompt"
    facts = {key: json.loads(value) if value.startswith('"') else value for key, value in found}
    prompt, _, negative = "\n".join(lines).partition("\nNegative prompt: ")
    return prompt, negative, facts


@pytest.mark.parametrize("base", ["tiny", 'a, b: "c"'])
@pytest.mark.parametrize("negative", ["", "snow, ice: cold"])
@pytest.mark.parametrize("prompt", ["a photo of <rex>", "<rex>, rain\nand a Hund: größer 犬"])
def test_a1111_reads_the_parameters_back(tmp_path, prompt, negative, base):
    with Image.open(save(picture(prompt, negative, base), tmp_path)) as image:
        read = read_by_a1111(image.text["parameters"])
    assert read[:2] == (prompt, negative)
    facts = {
        "Steps": "25",
        "Sampler": "DPM++ 2M",
        "CFG scale": "5.0",
        "Seed": "5",
        "Size": "64x72",
        "Model": base,
    }
    assert read[2] == facts


def test_our_own_chunk_holds_all_that_is_needed_to_draw_it_again(tmp_path):
    shown = picture("größer", seed=2**63 - 1)
    with Image.open(save(shown, tmp_path)) as image:
        ours = json.loads(image.text[KEYWORD])
    assert Request(**ours.pop("request")) == replace(shown.request)
    assert ours == {"seed": shown.seed, **shown.made_with}
    assert parameters(shown).endswith("Model: tiny")


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


def test_a_half_precision_base_draws_nearly_the_same(base_folder, drawn):
    from spectral_diffusion.base import load_base

    half = generate(load_base(str(base_folder), torch.bfloat16), replace(REQUEST, count=1))
    assert abs(pixels(half[0]) - pixels(drawn[0])).mean() < 6


def test_requests_are_plain_data():
    assert json.loads(json.dumps(asdict(REQUEST)))["prompt"] == REQUEST.prompt
