"""Losses of concept training, as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from torch import Tensor

_RECENT, _FIRST = 5, 20  # steps whose losses are compared to see an explosion
_MANY, _FLOOR = 10.0, 0.5  # a model that knows nothing answers with an error of about 1


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


def exploding(losses: Sequence[float]) -> bool:
    """Whether the newest losses are far above those of the first steps, of one training in order."""
    if len(losses) < _FIRST + _RECENT:
        return False
    return fmean(losses[-_RECENT:]) > _MANY * max(median(losses[:_FIRST]), _FLOOR)


def remembered(losses: Sequence[float]) -> list[float]:
    """The part of the past that `exploding` will ever look at."""
    return [*losses[:_FIRST], *losses[_FIRST:][-_RECENT:]]
