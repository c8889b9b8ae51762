"""The commands that draw, from end to end, and one sentence for every mistake."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import run, told
from conftest import random_concept
from PIL import Image

from spectral_diffusion.drawing import parse_blocks, parse_size
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused


@pytest.fixture(scope="module")
def rex(base, tmp_path_factory):
    """A fused file of one concept."""
    file = tmp_path_factory.mktemp("concepts") / "rex.safetensors"
    Fused.of(random_concept(base, "rex", 0)).save(file)
    return file


@pytest.fixture
def draw(base_folder, tmp_path, monkeypatch, base):
    """A command of ours on the tiny base, which is not loaded again: `draw("generate", …)`."""
    monkeypatch.setattr("spectral_diffusion.base.load_base", lambda name, **_: base)

    def call(command, *arguments):
        where = ("--base", base_folder, "-o", tmp_path / "out")
        return run("spectral_diffusion", command, *arguments, *where)

    return call


def pixels(file):
    with Image.open(file) as image:
        return image.convert("RGB").tobytes()


def test_what_is_asked_for_is_drawn_told_and_drawn_again(draw, rex, pristine, tmp_path):
    result = draw(
        "generate", rex, "a {dog|cat}", "--steps", 4, "--seed", 3, "--count", 3, "--batch", 2, "--size", "64x128",
        "--strength", "rex=0.5", "--block", "rex.up.1=0", "--region", "top: (<rex>:1.2)", "--feather", 0.1,
        "--clip-skip", 2, "--upscale", 1.5, "--sampler", "DPM++ 2M SDE Karras",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    files = [Path(line) for line in result.stdout.splitlines()]
    assert len(files) == 3
    shown = json.loads(draw("recall", files[1]).stdout)
    assert shown["prompt"] == "a {dog|cat}" and shown["seed"] == 4 and shown["size"] == [64, 128]
    assert shown["strengths"] == {"rex": 0.5} and shown["blocks"] == {"rex": {"up.1": 0}}
    assert shown["regions"][0]["box"] == [0, 0, 1, 0.5] and shown["regions"][0]["concepts"] == ["rex"]
    again = draw("recall", files[1], rex, "--run")
    assert again.exit_code == 0, again.output
    assert pixels(Path(again.stdout.strip())) == pixels(files[1])
    told(draw("recall", files[1], "--run"), "drawn with rex: give their file after the picture")


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats_and_no_metadata(draw, rex, tmp_path, kind):
    result = draw("generate", rex, "a", "--steps", 1, "--format", kind, "--no-metadata")
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()).name == f"00001-0.{kind}"
    told(draw("recall", result.stdout.strip()), "carries no request of spectral-diffusion")


def test_a_batch_tells_what_failed_and_goes_on(draw, rex, pristine, tmp_path):
    file = tmp_path / "jobs.csv"
    file.write_text("prompt,seed,steps\n<rex>,1:2,1\n<bob>,1,1\n")
    result = draw("batch", file, "--fused", rex)
    assert result.exit_code == 1, result.output
    assert "2 made, 0 kept, 1 failed" in result.stdout and "sheet-00001-1.png" in result.stdout
    assert "row 2 failed: The prompt names <bob>" in result.stderr
    file.write_text("prompt,seed,steps\n<rex>,1:2,1\n")
    result = draw("batch", file, "--fused", rex)
    assert result.exit_code == 0 and "0 made, 2 kept, 0 failed" in result.stdout


def test_other_people_s_files_and_another_base_are_told_by_the_picture(draw, rex, base, pristine, tmp_path):
    from safetensors.torch import save_file

    key = next(key for key in base.layers if key.endswith("attn2.to_q"))
    pair = {f"{key}.lora_A.weight": torch.ones(2, 32), f"{key}.lora_B.weight": torch.ones(32, 2)}
    save_file(pair, tmp_path / "style.safetensors")
    own = Fused.load(rex)
    moved = {layer: (p.flip(0), q.flip(0)) for layer, (p, q) in own.factors["rex"].items()}
    other = replace(own, base_name="chill", base_fingerprint="cd" * 32, factors={"rex": moved})
    other.save(tmp_path / "other.safetensors")
    told(draw("generate", tmp_path / "other.safetensors", "<rex>"), "made over base chill", "--base")
    result = draw(
        "generate", tmp_path / "other.safetensors", "<rex> <lora:style:0.5>", "--lora-folder", tmp_path,
        "--steps", 1, "--portable", "--prediction", "epsilon",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    file = Path(result.stdout.strip())
    shown = json.loads(draw("recall", file).stdout)
    assert shown["portable"] is True and shown["prediction"] == "epsilon" and shown["prompt"] == "<rex>"
    assert shown["loras"] == {str(tmp_path / "style.safetensors"): 0.5}
    with Image.open(file) as image:
        assert "<lora:style:0.5>" in image.text["parameters"] and "Portable: " in image.text["parameters"]
    again = draw("recall", file, tmp_path / "other.safetensors", "--run")
    assert again.exit_code == 0, again.output
    assert pixels(Path(again.stdout.strip())) == pixels(file)
    assert json.loads(draw("recall", again.stdout.strip()).stdout)["portable"] is True
    same = draw(
        "generate",
        rex,
        "<rex>",
        "--lora",
        f"{tmp_path / 'style.safetensors'}=0.5",
        "--steps",
        1,
        "--portable",
    )
    assert json.loads(draw("recall", same.stdout.strip()).stdout)["portable"] is False


MISTAKES = {
    "lora": (("--lora", "x.safetensors=much"), "'x.safetensors=much' is not file=weight"),
    "guide": (("--guide", "sketch"), "both a T2I-Adapter's folder and the picture"),
    "size": (("--size", "wide"), "--size 'wide' is not width x height"),
    "block": (("--block", "rex.up"), "'rex.up' is not name.block=number"),
    "strange block": (("--block", "rex.side=1"), "rex has no block 'side'"),
    "place": (("--region", "nowhere: a"), "no place or mask 'nowhere'"),
    "stranger in a region": (
        ("--region", "left: <bob>"),
        "<bob>, which is not loaded; loaded concepts: <rex>",
    ),
    "format": (("--format", "gif"), "no picture format 'gif'"),
    "upscaler": (("--upscaler", "ESRGAN"), "no upscaler 'ESRGAN'; there are Latent, Lanczos"),
    "lcm": (("--sampler", "LCM", "--steps", 60), "LCM does at most 50 steps, not 60"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_before_the_base_is_loaded(draw, rex, tmp_path, monkeypatch, case):
    monkeypatch.setattr("spectral_diffusion.base.load_base", None)
    options, said = MISTAKES[case]
    told(draw("generate", rex, "a", *options), said)
    assert not (tmp_path / "out").exists()


def test_a_wildcard_without_its_folder_is_told(draw, rex, tmp_path):
    told(draw("generate", rex, "a __place__"), "give the folder that holds place.txt")
    (tmp_path / "place.txt").write_text("beach\n")
    result = draw("generate", rex, "a __place__", "--steps", 1, "--wildcards", tmp_path)
    assert result.exit_code == 0, result.output


def test_a_picture_of_another_base_is_not_drawn_again(draw, rex, base, tmp_path):
    from spectral_diffusion.generate import generate, save
    from spectral_diffusion.request import Request

    (picture,) = generate(base, Request("a", steps=1))
    other = replace(picture, made_with={**picture.made_with, "base_fingerprint": "cd" * 32, "base": "chill"})
    told(draw("recall", save(other, tmp_path), "--run"), "drawn with base chill (cdcdcdcdcdcd), not tiny")


def test_ray_draws_on_one_kind_of_device(draw, rex, tmp_path):
    (tmp_path / "jobs.csv").write_text("prompt\na\n")
    options = ("--ray", 2, "--device", "cpu", "--device", "cuda")
    told(draw("batch", tmp_path / "jobs.csv", *options), "With --ray give one --device")


def test_options_are_read():
    assert parse_size("512x768") == (512, 768) and parse_size(None) is None
    assert parse_blocks(["a.up.1=0.5", "a.mid=1", "b.text=0"]) == {
        "a": {"up.1": 0.5, "mid": 1},
        "b": {"text": 0},
    }
    with pytest.raises(InputError):
        parse_size("512")
