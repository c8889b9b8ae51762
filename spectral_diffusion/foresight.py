"""What a picture will look like, while it is being drawn: the sampler's own guess, decoded now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

_SHARE = 4  # of the time of drawing, one part in so many goes into decoding at most


@contextmanager
def foreseen(
    pipeline: StableDiffusionPipeline,
    guidance: float,
    show: Callable[[Image.Image], None],
    seconds: float = 0.5,
) -> Iterator[None]:
    """While active, `show` gets the first picture of what the UNet works on, as it would be if it ended now.

    At most every `seconds`, and more seldom where decoding is slow. Draws the same pictures as without. Whatever
    the sampler, the UNet of Stable Diffusion 1.x reads x_t = √ᾱ x_0 + √(1 − ᾱ) ε.
    """
    config = pipeline.scheduler.config
    alphas, kind = pipeline.scheduler.alphas_cumprod, config.get("prediction_type", "epsilon")
    due = time.monotonic()

    def look(module: Any, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        nonlocal due
        began = time.monotonic()
        if began < due:
            return
        told = output[0] if isinstance(output, tuple) else output.sample
        moment = given[1] if len(given) > 1 else named["timestep"]
        alpha = alphas[min(round(float(moment)), len(alphas) - 1)].item()
        show(_decoded(pipeline, guessed(given[0][:1], _guided(told, guidance), alpha, kind)))
        due = time.monotonic() + max(seconds, _SHARE * (time.monotonic() - began))

    handle = pipeline.unet.register_forward_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _guided(told: Tensor, guidance: float) -> Tensor:
    """(1, channels, height, width) of the first picture; with guidance the negatives come first."""
    if guidance <= 1:
        return told[:1]
    negative, positive = (half[:1] for half in told.chunk(2))
    return negative + guidance * (positive - negative)


def guessed(noisy: Tensor, told: Tensor, alpha: float, kind: str) -> Tensor:
    """x_0 from x_t and what the UNet says about it: the noise (`epsilon`), the velocity or x_0 itself (`sample`)."""
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    if kind == "sample":
        return told
    if kind == "v_prediction":
        return signal * noisy - noise * told
    return (noisy - noise * told) / max(signal, 1e-3)


@torch.no_grad()
def _decoded(pipeline: StableDiffusionPipeline, latent: Tensor) -> Image.Image:
    vae = pipeline.vae
    pixels = vae.decode(latent.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    values = (pixels[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).mul(255).round()
    return Image.fromarray(values.to(torch.uint8).cpu().numpy())
