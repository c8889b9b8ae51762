"""The packaged vocabulary is CLIP's own, and prompts become the numbers every Stable Diffusion 1.x reads."""

import hashlib

import pytest

from spectral_diffusion.errors import InputError
from spectral_diffusion.tokenizer import (
    MERGES,
    clip_merges,
    clip_tokenizer,
    clip_vocabulary,
    read_tokenizer,
    tokenizer_of,
)


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer()


def test_the_vocabulary_is_clips():
    vocabulary = clip_vocabulary()
    assert len(vocabulary) == 49408 and len(clip_merges()) == 48894
    known = {"!": 0, "a</w>": 320, "of</w>": 539, "photo</w>": 1125, "cat</w>": 2368}
    known |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    assert {token: vocabulary[token] for token in known} == known
    assert hashlib.sha256(MERGES.read_bytes()).hexdigest() == MERGES_SHA256


MERGES_SHA256 = "6dce4e7b8657abf88e265ef1a1db3626e5a989443f9ec99a29506e72d8281c43"


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  Photo of\na CAT", [320, 1125, 539, 320, 2368]),
        ("", []),
    ],
)
def test_prompts_become_clips_numbers(tokenizer, prompt, ids):
    assert tokenizer(prompt).input_ids == [49406, *ids, 49407]


@pytest.mark.parametrize("prompt", ["déjà vu, 2 cats!", "猫と犬", "🐱 <rex>", "it's 3d-art"])
def test_any_text_comes_back(tokenizer, prompt):
    read = tokenizer.decode(tokenizer(prompt).input_ids, skip_special_tokens=True)
    assert read.replace(" ", "") == prompt.replace(" ", "")


def test_it_pads_and_cuts_to_77_with_the_end_mark(tokenizer):
    short, long = (
        tokenizer(text, padding="max_length", truncation=True).input_ids for text in ("cat", "cat " * 200)
    )
    assert short == [49406, 2368, *[49407] * 75]
    assert long == [49406, *[2368] * 75, 49407]


def test_it_is_the_same_after_saving_in_the_format_of_2022(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = read_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_folder_without_a_tokenizer_has_none_and_a_damaged_one_is_a_sentence(tmp_path):
    assert read_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"model": {"vocab": {"a": 0}, "merges": [["x", "y"]]}}', "[]"])
def test_a_damaged_tokenizer_in_a_header_is_a_sentence(tmp_path, text):
    with pytest.raises(InputError, match=r"x\.safetensors holds a damaged tokenizer"):
        tokenizer_of(text, tmp_path / "x.safetensors")
