"""The teacher prior is what the base answers, prepared once, and made again when its cache is damaged."""

import pytest
import torch

from concepts import prior
from spectral_diffusion.base import load_base


def asked(base, folder, class_word="dog"):
    return prior.load_prior(base, class_word, 4, folder)


def equal(one, two):
    return one.prompts == two.prompts and all(
        getattr(one, part).equal(getattr(two, part)) for part in ("noisy", "timesteps", "predicted")
    )


def test_the_prior_is_what_the_base_answers(base, pristine, tmp_path):
    got = asked(base, tmp_path)
    with torch.no_grad():
        hidden, _ = base.pipeline.encode_prompt(got.prompts, "cpu", 1, False)
        assert base.pipeline.unet(got.noisy, got.timesteps, hidden).sample.equal(got.predicted)
    assert not any("<" in prompt for prompt in got.prompts)


def test_a_second_load_is_equal_and_does_not_ask_the_base(base, tmp_path, monkeypatch):
    first = asked(base, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prior, "_prepare", None)
        assert equal(first, asked(base, tmp_path))
    assert equal(first, asked(base, tmp_path / "elsewhere"))
    assert not equal(first, asked(base, tmp_path, "cat"))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("content", ["truncated", b"", b"<html>", b"\x08\0\0\0\0\0\0\0{}      ", "other"])
def test_a_damaged_prior_is_made_again(base, tmp_path, content):
    first = asked(base, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    if content == "other":
        prior.load_prior(base, "dog", 3, tmp_path / "three")
        content = next((tmp_path / "three").glob("*.safetensors")).read_bytes()
    file.write_bytes(whole[:-9] if content == "truncated" else content)
    assert equal(first, asked(base, tmp_path))
    assert file.read_bytes() == whole


def test_half_of_the_questions_are_about_the_class():
    prompts = prior.plain_prompts("otter", 64, torch.Generator().manual_seed(0))
    assert prompts.count("") == 8
    assert sum("otter" in prompt for prompt in prompts) == 24  # 32 less the empty ones


def test_another_weight_or_dtype_asks_anew(base, base_folder, tmp_path):
    asked(base, tmp_path)
    other = load_base(str(base_folder))
    with torch.no_grad():
        other.pipeline.unet.conv_out.weight.add_(0.1)  # no weight of attention: the fingerprint stays
    assert other.fingerprint == base.fingerprint
    assert not equal(asked(base, tmp_path), asked(other, tmp_path))
    half = load_base(str(base_folder), dtype=torch.bfloat16)
    assert len({prior._key(one, "dog", 4) for one in (base, other, half)}) == 3
