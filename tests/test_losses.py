"""Losses are true means, weights only lower what is easy, and an explosion is told from noise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from concepts.losses import exploding, masked_mse, remembered, snr_weight


def test_the_masked_loss_is_the_true_weighted_mean():
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, 2, 4, 3, 3))
    weight = rng.uniform(size=(2, 1, 3, 3))
    wanted = [
        sum(weight[n, 0, y, x] * (predicted[n, c, y, x] - target[n, c, y, x]) ** 2
            for c in range(4) for y in range(3) for x in range(3)) / (4 * weight[n].sum())
        for n in range(2)
    ]  # fmt: skip
    got = masked_mse(*(torch.from_numpy(a) for a in (predicted, target, weight)))
    assert np.allclose(got, wanted)


def test_a_constant_weight_changes_nothing():
    a, b = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    plain = masked_mse(a, b, None)
    for weight in (1.0, 0.2):
        assert torch.allclose(masked_mse(a, b, torch.full((3, 1, 5, 5), weight)), plain)


def test_an_empty_mask_gives_zero_not_nan():
    a, b = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    assert masked_mse(a, b, torch.zeros(1, 1, 2, 2)).item() == 0


def test_min_snr_only_lowers_easy_steps():
    alphas = torch.tensor([0.999, 0.9, 0.5, 0.01])
    weights = snr_weight(alphas, torch.arange(4))
    assert torch.allclose(weights, torch.tensor([5 / 999, 5 / 9, 1.0, 1.0]), rtol=1e-3)


def test_a_gamma_of_zero_weighs_nothing():
    alphas = torch.tensor([0.999, 0.5, 0.01])
    assert snr_weight(alphas, torch.arange(3), 0.0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("alpha", [0.99, 0.9, 0.3, 0.02])
def test_noise_and_velocity_losses_weigh_the_same_error_of_the_picture_alike(alpha):
    """An answer that is off by e in the picture is off by e sqrt(SNR) in the noise, e sqrt(SNR + 1) in v."""
    alphas, snr, at = torch.tensor([alpha]), alpha / (1 - alpha), torch.tensor([0])
    noise = snr_weight(alphas, at, 5.0, "epsilon") * snr
    velocity = snr_weight(alphas, at, 5.0, "v_prediction") * (snr + 1)
    assert torch.allclose(noise, velocity, rtol=1e-4)


@given(st.lists(st.floats(0.001, 0.9), max_size=60), st.floats(0.001, 3.0))
def test_an_ordinary_course_never_explodes(errors, first):
    assert not exploding([first, *errors])


@given(st.lists(st.floats(0.8, 2.0), min_size=1, max_size=60))
def test_a_base_that_knows_nothing_from_the_start_does_not_explode(errors):
    assert not exploding(errors) and exploding([*errors, *[30.0] * 6])


@given(st.lists(st.floats(0.01, 0.3), min_size=1, max_size=60), st.floats(0.95, 1e30))
def test_an_error_that_stays_at_its_worst_explodes_however_early_and_the_short_memory_sees_it(errors, high):
    past, seen = [], []
    for error in [*errors, *[high] * 5]:
        past = remembered([*past, error])
        seen.append(exploding(past))
    assert exploding([*errors, *[high] * 5]) and seen[-1] and not any(seen[: len(errors)])
    assert len(past) <= 10


def test_one_bad_step_is_no_explosion():
    assert not exploding([0.2] * 30 + [2.0])
