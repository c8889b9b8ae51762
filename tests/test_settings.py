"""Settings refuse what cannot work or contradicts itself, one sentence each."""

import pytest

from concepts.settings import Settings
from spectral_diffusion.errors import InputError


@pytest.mark.parametrize(
    "option",
    [
        {"steps": 0}, {"rank": 0}, {"start": -1}, {"batch": 0}, {"weight_rate": float("nan")}, {"word_rate": -1.0},
        {"prior_weight": float("inf")}, {"form": "diagonal"}, {"class_word": " "}, {"name": "Rex!"},
        {"previews": -1}, {"rank": 1.5}, {"accumulate": 0}, {"ema": 1.0}, {"precision": "fp8"},
        {"schedule": "wave"}, {"text_rate": -1e-9}, {"preview_prompts": ("a dog",)}, {"held_out": -1},
        {"tag_dropout": 1.0}, {"caption_kind": "poem"}, {"word_norm": float("nan")},
        {"seed": -1}, {"seed": 2**70}, {"scatter": -1},
    ],
)  # fmt: skip
def test_impossible_settings_cannot_be_built(option):
    with pytest.raises(InputError):
        Settings(**{"name": "rex", "class_word": "dog", **option})


@pytest.mark.parametrize(
    "options, said",
    [
        (
            {"isolated": True, "reserved": 8, "form": "rotational"},
            "isolated and form = rotational contradict",
        ),
        ({"isolated": True}, "isolated needs reserved"),
        ({"reserved": 64}, "reserved does nothing without isolated"),
        ({"isolated": True, "reserved": 8, "start": 6}, "reserved = 8 is less than the slice needs"),
        ({"weight_rate": 0.0, "word_rate": 0.0}, "nothing would be trained"),
        ({"keep_best": True, "previews": 0}, "keep_best needs previews"),
        ({"patience": 2, "previews": 0}, "patience needs previews"),
        ({"half_base": True}, "half_base and precision = auto contradict"),
        ({"optimiser_options": {"lr": 1.0}}, "lr of optimiser_options"),
        ({"class_photos": "dogs/", "buckets": True}, "class_photos and buckets contradict"),
        ({"optimiser": "prodigy"}, "one factor for all parts: set weight_rate=1 and word_rate=1"),
    ],
)
def test_a_contradiction_is_one_sentence(options, said):
    with pytest.raises(InputError, match=said) as refusal:
        Settings("rex", "dog", **options)
    assert str(refusal.value).count(". ") == 0 and str(refusal.value).endswith(".")


def test_each_part_has_its_own_rate_or_that_of_the_weights():
    rates = Settings("rex", "dog", weight_rate=0.5, text_rate=0.0, word_rate=0.1).rates
    assert rates == {"unet": 0.5, "text_encoder": 0.0, "words": 0.1}
