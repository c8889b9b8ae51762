"""Losses of concept training, as pure functions of tensors."""

from __future__ import annotations

from torch import Tensor


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


def snr_weight(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float = 5.0) -> Tensor:
    """min-SNR weights (batch,) of noise-prediction losses (Hang et al., 2023)."""
    alpha = alphas_cumprod[timesteps]
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / snr
