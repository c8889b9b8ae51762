"""Losses of concept training, as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from torch import Tensor

RECENT = 5  # steps that show an explosion
_SOMETHING, _NOTHING = 0.75, 0.9  # errors of a model that knows something, and of one that does not
_MANY = 3.0


def masked_mse(predicted: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Mean squared error (batch, c, h, w) under `weight` (batch, 1, h, w), as the true weighted mean: (batch,).

    A one-channel mask over c channels must be counted c times, or the loss is c times too large
    (a defect of the paper's released code).
    """
    error = (predicted - target).square()
    if weight is None:
        return error.mean(dim=(1, 2, 3))
    weight = weight.expand_as(error)
    return (error * weight).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3)).clamp(min=1e-6)


def snr_weight(
    alphas_cumprod: Tensor, timesteps: Tensor, gamma: float = 5.0, kind: str = "epsilon", floor: float = 0.0
) -> Tensor:
    """min-SNR weights (batch,) of noise (`epsilon`) or velocity (`v_prediction`) losses (Hang et al., 2023).

    `gamma` 0 is off: all ones. The loss on the noise is SNR times that on the picture, the loss on v is
    SNR + 1 times that, hence the divisors. `floor` is the least that an error of the picture counts, however
    deep in the noise: min-SNR gives what is decided there (which thing, how large, where) next to nothing.
    """
    alpha = alphas_cumprod[timesteps]
    if not gamma:
        return alpha.new_ones(alpha.shape)
    snr = alpha / (1 - alpha)
    return (snr.clamp(max=gamma) + floor) / (snr + 1 if kind == "v_prediction" else snr)


def exploding(errors: Sequence[float]) -> bool:
    """Whether the newest errors of one training, in order, are those of a model that knows nothing, whose error is 1.

    The least of the first ones is nearly that of the base, whatever the steps did: one that never knew is let be,
    until it does much worse.
    """
    if len(errors) <= RECENT:
        return False
    least = min(errors[:RECENT])
    return fmean(errors[-RECENT:]) > (_NOTHING if least < _SOMETHING else _MANY * least)


def remembered(errors: Sequence[float]) -> list[float]:
    """The part of the past that `exploding` will ever look at."""
    return [*errors[:RECENT], *errors[RECENT:][-RECENT:]]
