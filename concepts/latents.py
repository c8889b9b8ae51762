"""A concept's photos as latents: some jittered crops of each, encoded once before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from concepts.dataset import Example
from spectral_diffusion.metrics import to_tensor

ZOOM = 0.82  # the tightest crop, as a fraction of the picture's side


@dataclass(frozen=True)
class Latents:
    """Scaled latents (n, 4, h, w) of n crops, loss weights (n, 1, h, w) or None, the photo of each crop (n,)."""

    values: Tensor
    weights: Tensor | None
    photo: Tensor


def crop_boxes(side: int, count: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """The whole picture, then `count - 1` random square crops of at least `ZOOM` of its side."""
    boxes = [(0, 0, side, side)]
    for _ in range(count - 1):
        size = round(side * rng.uniform(ZOOM, 1.0))
        left, top = rng.integers(0, side - size + 1, 2)
        boxes.append((int(left), int(top), int(left) + size, int(top) + size))
    return boxes


@torch.no_grad()
def encode(
    vae: AutoencoderKL, examples: Sequence[Example], crops: int, background: float, seed: int
) -> Latents:
    """Encodes `crops` crops of each photo, every other one mirrored; masks become loss weights.

    The weight is 1 inside a mask and `background` outside; a photo without a mask counts as all inside.
    """
    rng = np.random.default_rng(seed)
    pictures: list[Image.Image] = []
    masks: list[Image.Image] = []
    photo = []
    for index, example in enumerate(examples):
        mask = example.mask or Image.new("L", example.image.size, 255)
        for i, box in enumerate(crop_boxes(example.image.width, crops, rng)):
            pair = [
                picture.crop(box).resize(example.image.size, Image.Resampling.LANCZOS)
                for picture in (example.image, mask)
            ]
            if i % 2:
                pair = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pair]
            pictures.append(pair[0])
            masks.append(pair[1])
            photo.append(index)
    x = to_tensor(pictures, examples[0].image.width).to(vae.device, vae.dtype)
    means = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(8)])
    values = means.float() * vae.config.scaling_factor
    weights = None
    if any(example.mask for example in examples):
        inside = torch.stack([torch.from_numpy(np.array(m)).float() / 255 for m in masks])[:, None]
        inside = F.interpolate(inside, size=values.shape[-2:], mode="area").to(values.device)
        weights = background + (1 - background) * inside
    return Latents(values, weights, torch.tensor(photo))
