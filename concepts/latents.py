"""A concept's photos as latents: jittered crops of each, encoded once, and how a step draws from them.

All crops of one shape make one `Latents`; a training on aspect-ratio buckets has several. A photo's crops
depend on its pixels and the seed only, so adding, removing or editing another photo changes nothing for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from concepts.dataset import Example
from concepts.latent_cache import LIMIT, Posterior, cached, entry_name, vae_key
from spectral_diffusion.cache import prune
from spectral_diffusion.errors import InputError
from spectral_diffusion.files import finite

ZOOM = 0.82  # the tightest crop, as a fraction of the picture's side
_TOGETHER = 8  # crops the VAE sees at once


@dataclass(frozen=True)
class Latents:
    """n crops of one shape, on the VAE's device.

    `values`: scaled means (n, 4, h, w). `weights`: of the loss (n, 1, h, w), or None without any mask.
    `photo`: index of each crop's example (n,). `spread`: scaled standard deviations (n, 4, h, w).
    `chance`: how often each crop is drawn relative to the others (n,), kohya's repeats. `masked`: whether
    its example has a mask (n,).
    """

    values: Tensor
    weights: Tensor | None
    photo: Tensor
    spread: Tensor | None = None
    chance: Tensor | None = None
    masked: Tensor | None = None


class Batch(NamedTuple):
    """What one step trains on: as in `Latents`, with b rows."""

    values: Tensor
    weights: Tensor | None
    photo: Tensor


def crop_boxes(
    width: int, count: int, rng: np.random.Generator, height: int | None = None
) -> list[tuple[int, int, int, int]]:
    """The whole picture, then `count - 1` random crops of its shape and of at least `ZOOM` of its side.

    The picture is square if `height` is left out.
    """
    height = height or width
    boxes = [(0, 0, width, height)]
    for _ in range(count - 1):
        zoom = rng.uniform(ZOOM, 1.0)
        across, down = round(width * zoom), round(height * zoom)
        left, top = int(rng.integers(0, width - across + 1)), int(rng.integers(0, height - down + 1))
        boxes.append((left, top, left + across, top + down))
    return boxes


def encode_buckets(
    vae: AutoencoderKL,
    examples: Sequence[Example],
    crops: int,
    background: float,
    seed: int,
    flip: bool = True,
    cache: Path | None = None,
) -> list[Latents]:
    """Encodes `crops` crops of each photo; masks become loss weights. `flip`: every other crop is mirrored, and of one
    crop a mirrored second is made.

    The weight is 1 inside a mask and `background` outside; a photo without a mask counts as all inside. Gives one
    `Latents` a shape of the examples; `photo` counts over all of them. `cache` is a folder
    (`latent_cache.default_dir()`); None keeps nothing. Raises InputError if the VAE's answer is not finite.
    """
    key = vae_key(vae) if cache else None
    masked = any(example.mask for example in examples)
    groups: dict[tuple[int, int], list[_Encoded]] = {}
    for index, example in enumerate(examples):
        views = list(_views(example, crops, seed, flip))
        pixels = np.stack([np.asarray(image) for image, _ in views])
        posterior = _posterior(vae, pixels, example, cache and cache / entry_name(key, pixels))
        inside = _inside([mask for _, mask in views], posterior.mean.shape[-2:]) if masked else None
        groups.setdefault(example.image.size, []).append(_Encoded(index, example, posterior, inside))
    if cache:
        prune(cache, LIMIT)
    return [_joined(vae, group, background) for group in groups.values()]


def draw(groups: Sequence[Latents], batch: int, rng: torch.Generator, sample: bool = False) -> Batch:
    """`batch` random crops, all from one group, each crop as likely as its `chance` says.

    With `sample`, the latents are drawn from the VAE's posterior anew instead of being its mean. `rng` is a
    CPU generator; the result is deterministic in its state.
    """
    chances = [torch.ones(len(g.photo)) if g.chance is None else g.chance for g in groups]
    which = 0
    if len(groups) > 1:
        which = int(torch.multinomial(torch.stack([c.sum() for c in chances]), 1, generator=rng))
    group = groups[which]
    rows = torch.multinomial(chances[which], batch, replacement=True, generator=rng)
    values = group.values[rows]
    if sample and group.spread is not None:
        noise = torch.randn(values.shape, generator=rng)
        values = values + group.spread[rows] * noise.to(values)
    return Batch(values, None if group.weights is None else group.weights[rows], group.photo[rows])


class _Encoded(NamedTuple):
    index: int
    example: Example
    posterior: Posterior
    inside: Tensor | None


def _views(
    example: Example, crops: int, seed: int, flip: bool
) -> Iterable[tuple[Image.Image, Image.Image | None]]:
    """The crops of one photo and of its mask; all but the first from `detail`, so that none is enlarged."""
    image, mask, shape = example.image, example.mask, example.image.size
    content = hashlib.sha256(image.tobytes()).digest()
    rng = np.random.default_rng([seed, *content[:8]])
    source = example.detail or image
    scale = source.width / image.width
    boxes = crop_boxes(image.width, crops, rng, image.height)
    if flip and len(boxes) == 1:
        boxes *= 2  # the whole picture, and mirrored
    for i, box in enumerate(boxes):
        pair: list[Image.Image | None] = [image, mask]
        if box != boxes[0]:
            fine = tuple(side * scale for side in box)
            pair = [
                source.resize(shape, Image.Resampling.LANCZOS, box=fine),
                mask and mask.resize(shape, Image.Resampling.BILINEAR, box=box),
            ]
        if flip and i % 2:
            pair = [p and p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in pair]
        yield pair[0], pair[1]


def _posterior(vae: AutoencoderKL, pixels: np.ndarray, example: Example, path: Path | None) -> Posterior:
    """Of one photo's crops, (n, h, w, 3) uint8, on the CPU; always encoded together, so always alike."""

    @torch.no_grad()
    def make() -> Posterior:
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist for part in x.split(_TOGETHER)]
        together = (torch.cat([getattr(p, f) for p in parts]) for f in Posterior._fields)
        # In the layout the cache gives back: pixels are channels last, so the answer is too, and convolutions
        # round otherwise then: the run that fills the cache would differ from all later ones in the last bit.
        made = Posterior(*(t.float().cpu().contiguous() for t in together))
        if not all(finite(t) for t in made):
            raise InputError(
                f"{example.path} overflows the base's VAE in {vae.dtype}: train in fp32 or bf16."
            )
        return made

    if path is None:
        return make()
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    n, height, width, _ = pixels.shape
    shape = (n, vae.config.latent_channels, height // factor, width // factor)
    return cached(path, shape, make)


def _inside(masks: Sequence[Image.Image | None], size: Sequence[int]) -> Tensor:
    """Masks as shares of each latent point that are inside: (n, 1, h, w) in 0..1; no mask: all ones."""
    rows = [torch.ones(1, 1, *size) if mask is None else _shrunk(mask, size) for mask in masks]
    return torch.cat(rows)


def _shrunk(mask: Image.Image, size: Sequence[int]) -> Tensor:
    values = torch.from_numpy(np.array(mask)).float() / 255
    return F.interpolate(values[None, None], size=tuple(size), mode="area")


def _joined(vae: AutoencoderKL, group: Sequence[_Encoded], background: float) -> Latents:
    """One shape's photos put together and moved to the VAE's device."""
    scale, device = vae.config.scaling_factor, vae.device
    counts = torch.tensor([len(part.posterior.mean) for part in group])
    values = torch.cat([part.posterior.mean for part in group]) * scale
    spread = torch.cat([(0.5 * part.posterior.logvar).exp() for part in group]) * scale
    weights = None
    if group[0].inside is not None:
        inside = torch.cat([part.inside for part in group])
        weights = (background + (1 - background) * inside).to(device)
    per_photo = (
        torch.tensor([part.index for part in group]),
        torch.tensor([float(part.example.repeats) for part in group]),
        torch.tensor([part.example.mask is not None for part in group]),
    )
    photo, chance, masked = (row.repeat_interleave(counts) for row in per_photo)
    return Latents(values.to(device), weights, photo, spread.to(device), chance, masked)
