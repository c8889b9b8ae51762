"""A picture tells other programs and ourselves how it was drawn, in every format, or nothing at all."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import sd_parsers
from PIL import Image, PngImagePlugin

from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.metadata import FORMATS, KEYWORD, encoded, parameters, recall
from spectral_diffusion.regions import Region
from spectral_diffusion.request import Picture, Request, Shot

USER_COMMENT, DESCRIPTION = 0x9286, 0x010E


def picture(prompt="a photo of <rex>", negative="", base="tiny", seed=5, **options):
    made_with = {"base": base, "base_fingerprint": "ab" * 32, "concepts": [{"name": "rex"}]}
    request = Request(prompt, negative, seed=3, count=3, **options)
    return Picture(Image.new("RGB", (64, 72), "teal"), seed, request, made_with)


def written(folder, shown, kind="png", metadata=True):
    file = folder / f"picture.{kind}"
    file.write_bytes(encoded(shown, kind, metadata))
    return file


# as A1111's reader has them (modules/infotext_utils.py)
A1111_PARAM = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def read_by_a1111(file):
    """Prompt, negative and the last line's facts, by A1111's own rules for files and for the text."""
    with Image.open(file) as image:
        if image.format == "PNG":
            text = image.text["parameters"]
        else:
            comment = image.getexif().get_ifd(0x8769)[USER_COMMENT]
            assert comment[:8] == b"UNICODE\0"
            text = comment[8:].decode("utf-16-be")
    *lines, last = text.strip().split("\n")
    found = A1111_PARAM.findall(last)
    assert len(found) >= 3, "A1111 takes the last line for a part of the prompt"
    facts = {key: json.loads(value) if value.startswith('"') else value for key, value in found}
    prompt, _, negative = "\n".join(lines).partition("\nNegative prompt: ")
    return prompt, negative, facts


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("base", ["tiny", 'a, b: "c"'])
@pytest.mark.parametrize("negative", ["", "snow, ice: cold"])
@pytest.mark.parametrize("prompt", ["a photo of <rex>", "(<rex>:1.2), rain\nand a Hund: größer 犬"])
def test_a1111_reads_the_parameters_back(tmp_path, prompt, negative, base, kind):
    read = read_by_a1111(written(tmp_path, picture(prompt, negative, base), kind))
    assert read[:2] == (prompt, negative)
    assert read[2] == {
        "Steps": "25",
        "Sampler": "DPM++ 2M",
        "CFG scale": "5.0",
        "Seed": "5",
        "Size": "64x72",
        "Model": base,
    }


def test_what_is_out_of_the_ordinary_has_a1111_s_names(tmp_path):
    shown = picture(clip_skip=2, upscale=2, upscale_steps=7, size=(32 * 2, 64), upscale_denoise=0.5)
    facts = read_by_a1111(written(tmp_path, shown))[2]
    assert facts["Clip skip"] == "2" and facts["Size"] == "64x64"
    hires = {key: value for key, value in facts.items() if key.startswith(("Hires", "Denoising"))}
    assert hires == {
        "Hires upscale": "2", "Hires steps": "7", "Hires upscaler": "Latent", "Denoising strength": "0.5",
    }  # fmt: skip
    start = read_by_a1111(written(tmp_path, picture(image="x.png", denoise=0.3)))[2]
    assert start["Denoising strength"] == "0.3" and "Hires upscale" not in start


def test_the_drawn_prompt_is_told_not_its_wildcards():
    shots = (Shot("a dog", "", 3), Shot("a cat", "snow", 4))
    shown = replace(picture("a {dog|cat}"), shots=shots, place=1)
    assert parameters(shown).startswith("a cat\nNegative prompt: snow\n")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_package_that_reads_such_metadata_reads_ours(tmp_path, kind):
    read = sd_parsers.ParserManager().parse(written(tmp_path, picture("a photo of <rex>, big", "snow"), kind))
    (sampler,) = read.samplers
    assert sampler.name == "DPM++ 2M" and sampler.model.name == "tiny"
    assert [p.value for p in sampler.prompts] == ["a photo of <rex>, big"]
    assert [p.value for p in sampler.negative_prompts] == ["snow"]
    assert {k: sampler.parameters[k] for k in ("seed", "steps")} == {"seed": "5", "steps": "25"}


def mask():
    buffer = io.BytesIO()
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_whole_request_comes_back_from_every_format(tmp_path, kind):
    regions = (Region("<rex>: größer", (0, 0, 0.5, 1), negative="a", feather=0.1), Region("b", mask=mask()))
    options = {
        "size": (64, 128), "strengths": {"rex": 0.5}, "blocks": {"rex": {"up.1": 0}}, "regions": regions,
        "sampler": "Euler a", "batch": 2, "image": "größer.png", "denoise": 0.5, "upscale": 1.5,
    }  # fmt: skip
    shots = tuple(Shot(f"p{i}", "n", i, (("<rex>", "a"), ("b", "n"))) for i in (3, 4))
    shown = replace(picture("größer", seed=4, **options), shots=shots, place=1)
    told = recall(written(tmp_path, shown, kind))
    assert told.request == shown.request
    assert (told.seed, told.shots, told.place, told.made_with) == (4, shots, 1, shown.made_with)


@pytest.mark.parametrize("kind", FORMATS)
def test_without_metadata_a_picture_tells_nothing(tmp_path, kind):
    file = written(tmp_path, picture("secret"), kind, metadata=False)
    with Image.open(file) as image:
        assert not image.getexif() and not getattr(image, "text", {})
    assert b"secret" not in file.read_bytes() and KEYWORD.encode() not in file.read_bytes()
    with pytest.raises(InputError, match="carries no request of spectral-diffusion"):
        recall(file)


def test_equal_pictures_are_equal_files_and_png_keeps_every_bit(tmp_path):
    assert encoded(picture()) == encoded(picture())
    with Image.open(written(tmp_path, picture())) as image:
        assert image.tobytes() == picture().image.tobytes()


def test_a_format_that_is_none_and_a_jpeg_that_cannot_hold_it_are_told():
    with pytest.raises(InputError, match="format 'gif'; there are png, jpeg, webp"):
        encoded(picture(), "gif")
    with pytest.raises(InputError, match="too long for JPEG"):
        encoded(picture("x" * 70_000), "jpeg")
    assert encoded(picture("x" * 70_000), "webp") and encoded(picture("x" * 70_000), "jpeg", False)


def account():
    return json.loads(Image.open(io.BytesIO(encoded(picture()))).text[KEYWORD])


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.pop("request"),
        lambda told: told["request"].update(steps="many"),
        lambda told: told["request"].update(colour="red"),
        lambda told: told.update(request=[1]),
        lambda told: told.update(place=7),
        lambda told: told.update(place="x"),
        lambda told: told.update(shots=[{"prompt": "a"}]),
        lambda told: told["shots"][0].update(seed="x"),
        lambda told: told.update(shots=None),
    ],
)
def test_metadata_that_make_no_sense_are_told(tmp_path, change):
    told = account()
    change(told)
    facts = PngImagePlugin.PngInfo()
    facts.add_itxt(KEYWORD, json.dumps(told))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=facts)
    with pytest.raises(DamagedFile, match=r"metadata of .*x\.png is damaged"):
        recall(tmp_path / "x.png")


def test_what_is_no_picture_of_ours_is_told(tmp_path):
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(InputError, match="no PNG, JPEG or WebP"):
        recall(tmp_path / "x.png")
    with pytest.raises(InputError, match="There is no file"):
        recall(tmp_path / "y.png")


def test_a_base_that_is_one_file_is_told_by_the_hash_that_a1111_knows(base, pristine, tmp_path, monkeypatch):
    from spectral_diffusion import plain
    from spectral_diffusion.base import Base
    from spectral_diffusion.engines import Item
    from spectral_diffusion.engines.local import Worker
    from spectral_diffusion.generate import generate, save
    from spectral_diffusion.plain import autov2

    (file := tmp_path / "chill.safetensors").write_bytes(b"weights")
    with monkeypatch.context() as patch:  # 4 GB take seconds: read when it is written down, and not before
        patch.setattr(plain, "_sha256", lambda path, start: pytest.fail("read"))
        (picture,) = generate(Base("chill", base.pipeline, file), Request("a dog", steps=1))
        assert encoded(picture, metadata=False)
        with Worker(Base("chill", base.pipeline, file), metadata=False) as worker:
            (outcome,) = worker.work((Item("1", 1, picture.request, picture.shot),))
        assert outcome.content == encoded(picture, metadata=False)
    assert f"Model hash: {autov2(file)}, Model: chill" in parameters(picture)
    save(picture, tmp_path)
    assert recall(tmp_path / "00001-0.png").made_with["model_hash"] == autov2(file)
    (picture,) = generate(base, Request("a dog", steps=1))
    assert "Model hash" not in parameters(picture)
