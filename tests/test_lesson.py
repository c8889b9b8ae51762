"""A step's loss is the same however it is divided, in whatever form the base predicts, with or without masks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import pictures
from PIL import Image

from concepts.adapter import adapted
from concepts.attention import outside_share, words_outside
from concepts.dataset import Example
from concepts.lesson import Lesson
from concepts.prior import Prior
from concepts.settings import Settings
from spectral_diffusion.ledger import Slice
from spectral_diffusion.words import Words, initial_words

TINY = {"rank": 2, "crops": 2, "precision": "fp32", "batch": 4, "prior_batch": 3}


def examples(masked=True, caption="a photo of <rex>"):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    return [
        Example(image, caption if i else "a photo of <rex>", mask if masked and i else None, Path("x.png"))
        for i, image in enumerate(pictures())
    ]


@pytest.fixture(scope="module")
def prior():
    rng = torch.Generator().manual_seed(0)
    noisy, predicted = (torch.randn(5, 4, 8, 8, generator=rng) for _ in range(2))
    return Prior(noisy, torch.arange(0, 1000, 200), predicted, ["a dog", "", "a cat", "a red car", "a dog"])


def lesson(base, prior, masked=True, caption="a photo of <rex>", **options):
    settings = Settings("rex", "dog", **{**TINY, **options})
    embedding = base.pipeline.text_encoder.get_input_embeddings()
    layers = 16 if settings.layerwise else 1
    rows = initial_words("rex", "dog", base.pipeline.tokenizer, embedding, layers, 0)
    return Lesson(base, examples(masked, caption), settings, prior, Words(rows, base.pipeline.tokenizer))


def gradients(taught, parts=1):
    """Gradients of words and adapter after one step in `parts` parts, and the losses."""
    base, total = taught.base, torch.zeros(3)
    with adapted(base, taught.settings, Slice(1, 2), {}) as numbers:
        trained = [*numbers["unet"], *numbers["text_encoder"], taught.words.table]
        for number in trained[:-1]:
            with torch.no_grad():
                number.copy_(0.01 * torch.randn(number.shape, generator=torch.Generator().manual_seed(1)))
        taught.words.table.grad = None
        whole = taught.draw(3)
        with taught.reading():
            for index in range(parts):
                part = whole.part(index, parts)
                if len(part):
                    losses = taught.losses(part, whole)
                    sum(losses).backward()
                    total += torch.stack(losses).detach()
        return torch.cat([number.grad.flatten() for number in trained]), total


def close(one, two, rtol=1e-4):
    return (one - two).norm() <= rtol * one.norm()


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_of_a_step_sum_up_to_the_whole(base, pristine, prior, parts):
    taught = lesson(base, prior, attention_weight=0.5)
    (whole, losses), (summed, same_losses) = gradients(taught), gradients(taught, parts)
    assert whole.norm() > 0 and (losses > 0).all()
    assert close(whole, summed) and close(losses, same_losses)


LONG = f"a photo of <rex>, {'a red car, ' * 40}"  # of three chunks


@pytest.mark.parametrize("layerwise", [False, True])
def test_parts_sum_up_where_captions_are_longer_than_a_chunk(base, pristine, prior, layerwise):
    taught = lesson(base, prior, caption=LONG, attention_weight=0.5, layerwise=layerwise)
    assert len({len(prompt) for prompt in taught.draw(3).prompts}) == 2, "a long and a short one in one step"
    (whole, losses), (summed, same_losses) = gradients(taught), gradients(taught, 7)
    assert close(whole, summed) and close(losses, same_losses)


def test_a_long_caption_does_not_change_what_the_prior_is_asked(base, prior):
    def prior_loss(caption):
        return gradients(lesson(base, prior, caption=caption))[1][1].item()

    assert prior_loss(LONG) == pytest.approx(prior_loss("a photo of <rex>"), rel=1e-4)


def test_accumulating_small_batches_draws_the_same_step(base, prior):
    large = lesson(base, prior).draw(5)
    small = lesson(base, prior, batch=2, accumulate=2, prior_batch=3).draw(5)
    assert (
        small.clean.equal(large.clean) and small.noise.equal(large.noise) and small.prompts == large.prompts
    )
    assert len(small.asked) == 6


def test_recomputing_changes_no_gradient(base, pristine, prior):
    plain, _ = gradients(lesson(base, prior, layerwise=True))
    taught = lesson(base, prior, layerwise=True)
    base.pipeline.unet.enable_gradient_checkpointing()
    try:
        recomputed, _ = gradients(taught)
    finally:
        base.pipeline.unet.disable_gradient_checkpointing()
    assert close(plain, recomputed)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_gradient(base, prior, precision):
    exact, _ = gradients(lesson(base, prior))
    half, losses = gradients(lesson(base, prior, precision=precision))
    assert torch.isfinite(losses).all() and torch.cosine_similarity(exact, half, 0) > 0.98


def test_noise_offset_moves_each_channel_as_a_whole_and_leaves_the_rest(base, prior):
    plain, moved = lesson(base, prior).draw(2), lesson(base, prior, noise_offset=0.5).draw(2)
    shift = moved.noise - plain.noise
    assert moved.t.equal(plain.t) and shift.abs().max() > 0.1
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-5)


def test_a_velocity_base_is_asked_for_the_velocity(base, prior, monkeypatch):
    schedule = base.pipeline.scheduler
    velocity = type(schedule).from_config(schedule.config, prediction_type="v_prediction")
    monkeypatch.setattr(base.pipeline, "scheduler", velocity)
    taught = lesson(base, None, snr_gamma=0.0, masked=False)
    draw = taught.draw(0)
    alpha = schedule.alphas_cumprod[draw.t][:, None, None, None]
    wanted = alpha.sqrt() * draw.noise - (1 - alpha).sqrt() * draw.clean  # Salimans & Ho, 2022
    monkeypatch.setattr(Lesson, "_predict", lambda *_: (wanted, []))
    assert taught.losses(draw, draw).concept < 1e-10


def test_photos_of_another_shape_than_the_prior_are_asked_apart(base, pristine, prior):
    wide = [Example(image.resize((128, 64)), "a photo of <rex>", None, Path("x.png")) for image in pictures()]
    settings = Settings("rex", "dog", **TINY)
    square = lesson(base, prior)
    taught = Lesson(base, wide, settings, prior, square.words)
    whole, losses = gradients(taught)
    assert taught.draw(0).clean.shape == (4, 4, 8, 16)
    assert torch.isfinite(whole).all() and losses[1] > 0
    summed, _ = gradients(taught, 6)
    assert close(whole, summed)


def test_captions_vary_with_the_step_only_if_asked_to(base, prior):
    fixed, varied = lesson(base, prior), lesson(base, prior, caption_templates=True)
    assert {p for step in range(6) for p in fixed.draw(step).prompts} == {"a photo of <rex-1> <rex-2>"}
    drawn = [varied.draw(step).prompts for step in range(6)]
    assert len({p for prompts in drawn for p in prompts}) > 4
    assert drawn == [varied.draw(step).prompts for step in range(6)]


def test_a_photo_without_a_caption_gets_another_template_each_step_whatever_else_is_asked(base, prior):
    bare = [replace(example, given=False) for example in examples()]
    for options in ({}, {"caption_keep": 2}):
        settings = Settings("rex", "dog", **TINY, **options)
        taught = Lesson(base, bare, settings, prior, lesson(base, prior).words)
        assert len({p for step in range(6) for p in taught.draw(step).prompts}) > 4


def test_pictures_of_the_class_are_learned_beside_the_concept_with_the_plain_word(base, pristine, prior):
    plain = lesson(base, prior)
    red = [Example(Image.new("RGB", (64, 64), "red"), "x", None, Path("r.png"))]
    settings = Settings("rex", "owl", **TINY, class_batch=2, class_weight=0.5)
    taught = Lesson(base, examples(), settings, prior, plain.words, red)
    draw = taught.draw(1)
    assert draw.prompts[4:] == ["a photo of an owl"] * 2 and len(draw.clean) == 6
    assert draw.share.tolist() == [0.25] * 4 + [0.25] * 2
    assert draw.clean[:4].equal(plain.draw(1).clean) and (draw.weights[4:] == 1).all()
    (whole, losses), (summed, same_losses) = gradients(taught), gradients(taught, 5)
    assert close(whole, summed) and close(losses, same_losses)
    weightless = Settings("rex", "owl", **TINY, class_batch=2, class_weight=0.0)
    _, without = gradients(Lesson(base, examples(), weightless, prior, plain.words, red))
    assert 0 < without[0] < losses[0]


# attention


def test_attention_outside_a_mask_is_a_share():
    inside = torch.zeros(1, 1, 8, 8)
    inside[..., :4] = 1
    left, right = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    left[..., :2], right[..., 2:] = 3.0, 0.1
    assert outside_share(left, inside).item() == 0 and outside_share(right, inside).item() == 1
    assert outside_share(left + right, inside).item() == pytest.approx(0.1 / 3.1, rel=1e-4)


@pytest.mark.parametrize("seen", [0.0, 1e-30, 1.0])
@pytest.mark.parametrize("mask", [0.0, 1.0])
def test_no_mask_and_no_attention_make_it_nan(seen, mask):
    share = words_outside([torch.full((2, 4, 4), seen)], torch.full((2, 1, 8, 8), mask))
    assert torch.isfinite(share).all() and (share >= 0).all() and (share <= 1).all()
    assert words_outside([], torch.ones(2, 1, 8, 8)).tolist() == [0, 0]


def test_the_regulariser_pulls_the_words_into_the_mask(base, pristine, prior):
    _, losses = gradients(lesson(base, prior, attention_weight=2.0))
    _, half = gradients(lesson(base, prior, attention_weight=1.0))
    assert 0 < half[2] < 1 and losses[2].item() == pytest.approx(2 * half[2].item(), rel=1e-4)
    assert losses[0].item() == pytest.approx(half[0].item(), rel=1e-4)


def test_without_masks_it_is_off(base, prior):
    _, losses = gradients(lesson(base, prior, masked=False, attention_weight=1.0))
    assert losses[2] == 0 and torch.isfinite(losses).all()
