"""The form of a drawing: to a request, to a command line, and back from a picture."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pages.commands import Given, fuse_command, generate_command, report_command
from pages.form import MOST_COUNT, MOST_SIDE, Form, form_of, request_of
from spectral_diffusion.errors import InputError
from spectral_diffusion.generate import save
from spectral_diffusion.metadata import recall
from spectral_diffusion.request import Picture

FACTS = {"base": "tiny", "base_fingerprint": "ab" * 32, "concepts": []}
FIXED = Form(prompt="a <rex>", seed=5, random=False)


@pytest.fixture(autouse=True)
def uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))


def drawn(form, folder, strengths=()):
    request = request_of(form, dict(strengths))
    picture = Picture(Image.new("RGB", (64, 64)), request.seed, request, FACTS, tuple(request.shots()), 0)
    return recall(save(picture, folder))


def test_a_picture_gives_the_form_back_that_drew_it(tmp_path):
    form = FIXED._replace(
        negative="fog", sampler="Euler a", steps=7, guidance=3.5, width=64, height=128, count=1, clip_skip=2,
        regions="0,0,0.5,1: a <rex>\n0.5,0,1,1: a <mia>", feather=0.1, upscale=1.5, upscaler="Lanczos",
    )  # fmt: skip
    assert form_of(drawn(form, tmp_path)) == form


def test_one_of_many_pictures_gives_its_own_seed_back(tmp_path):
    form = FIXED._replace(count=3, prompt="a {red|blue|green} ball")
    request = request_of(form, {})
    shots = tuple(request.shots())
    picture = Picture(Image.new("RGB", (64, 64)), shots[2].seed, request, FACTS, shots, 2)
    found = form_of(recall(save(picture, tmp_path)))
    assert (found.seed, found.count, found.prompt) == (7, 1, shots[2].prompt)
    assert request_of(found, {}).shots()[0].prompt == shots[2].prompt


def test_no_path_is_taken_from_a_picture(tmp_path):
    request = replace(request_of(FIXED, {}), image="/etc/passwd", wildcards="/etc", vae="/etc")
    picture = Picture(Image.new("RGB", (64, 64)), 5, request, FACTS, tuple(request.shots()[:1]), 0)
    form = form_of(recall(save(picture, tmp_path)))
    assert "/etc" not in repr(form) and form.start is None


def test_random_seeds_differ_and_a_given_one_stays():
    random = {request_of(FIXED._replace(random=True), {}).seed for _ in range(5)}
    assert len(random) > 1 and request_of(FIXED, {}).seed == 5


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("steps", None, "steps must be a whole number"), ("seed", None, "seed"), ("width", 64, "both"),
        ("count", MOST_COUNT + 1, "At most"), ("guidance", 0, "guidance"), ("sampler", "nope", "no sampler"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_sentence(field, value, said):
    with pytest.raises(InputError, match=said):
        request_of(FIXED._replace(**{field: value}), {})


def test_a_picture_that_would_keep_everybody_waiting_is_refused():
    with pytest.raises(InputError, match="at most"):
        request_of(FIXED._replace(width=MOST_SIDE + 8, height=64), {})


@pytest.mark.parametrize("place", ["/etc/passwd", "../mask.png", "mask.png", "C:\\mask.png", "a/b"])
def test_a_region_cannot_name_a_file(place, tmp_path, monkeypatch):
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no place"):
        request_of(FIXED._replace(regions=f"{place}: a <rex>"), {})


def test_the_command_line_says_what_the_form_says():
    form = FIXED._replace(width=64, height=128, steps=7, regions="left: a <mia>", upscale=2.0)
    line = generate_command(
        Path("duo.safetensors"), Given("toybox"), request_of(form, {"rex": 0.5}), Path("out")
    )
    words = shlex.split(line)
    assert words[:4] == ["spectral-diffusion", "generate", "duo.safetensors", "a <rex>"]
    assert {"--size=64x128", "--steps=7", "--seed=5", "--strength=rex=0.5", "--upscale=2.0"} < set(words)
    assert "--region=0,0,0.5,1: a <mia>" in words and not [word for word in words if "guidance" in word]


def test_the_command_line_of_a_fusion_names_only_what_differs():
    line = fuse_command(
        ["rex", "mia"], {"rex": 1.0, "mia": 0.5}, "mean", Path("l"), Path("o"), Given("toybox")
    )
    assert shlex.split(line)[2:7] == ["fusion", "fuse", "rex", "mia", "--method=mean"]
    assert "--strength=mia=0.5" in line and "--strength=rex" not in line


def test_the_command_line_of_a_report_finds_the_concepts_as_they_were_trained():
    photos = {"rex": Path("p")}
    line = report_command(
        Path("f/duo.safetensors"), Path("f/r.html"), photos, Path("l"), Given("toybox"), 1, 20
    )
    assert "--library=l" in line and "--photos=rex=p" in line and "--seeds=1 --steps=20" in line
