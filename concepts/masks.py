"""Masks in pixels: grown, feathered, and made from a plain background without any model.

A mask is an L picture, 255 where the concept is. All functions are pure and keep the size.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from PIL import Image, ImageChops, ImageFilter

PLAIN = 26  # how far, in 0..255 a channel, background may stray from its own colour
EVEN = 16  # the same for most of the border: studio backdrops stay within 8, walls and lawns do not
_WORK_SIDE = 256  # pixels of the long side while the background is looked for
_FRAME = 0.03  # of the short side: the border that is taken for background
_SHARE = 0.6  # of the border that must be even; the rest may be a subject that the picture cuts
_SMALLEST, _LARGEST = 0.01, 0.95  # share of the picture that a found subject may fill


def grow(mask: Image.Image, pixels: int) -> Image.Image:
    """Every point of `mask` becomes a disc of radius `pixels`: the largest value within that distance."""
    if pixels < 1:
        return mask
    values = np.asarray(mask)
    rows = [isqrt(pixels * pixels - dy * dy) for dy in range(pixels + 1)]  # the disc's half widths
    grown = _spread(values, rows[0])
    for dy in range(1, min(pixels, values.shape[0] - 1) + 1):
        wide = _spread(values, rows[dy])
        np.maximum(grown[dy:], wide[:-dy], out=grown[dy:])
        np.maximum(grown[:-dy], wide[dy:], out=grown[:-dy])
    return Image.fromarray(grown)


def _spread(values: np.ndarray, reach: int) -> np.ndarray:
    """Maximum over the columns up to `reach` away, (h, w) -> (h, w); windows are doubled."""
    padded = np.pad(values, ((0, 0), (reach, reach)))
    width, window = 2 * reach + 1, 1
    while window < width:
        step = min(window, width - window)
        padded = np.maximum(padded[:, :-step], padded[:, step:])
        window += step
    return padded


def feather(mask: Image.Image, pixels: int) -> Image.Image:
    """A soft edge of about `pixels` outside of `mask`; nothing inside of it becomes weaker."""
    if pixels < 1:
        return mask
    soft = grow(mask, pixels // 2).filter(ImageFilter.GaussianBlur(pixels / 2))
    return ImageChops.lighter(mask, soft)


def plain_background(image: Image.Image) -> Image.Image | None:
    """The mask of what stands before a plain background, or None if the background is not plain.

    Background is what has the border's usual colour and is joined to the border; a subject may touch the
    border. White fur before white stays a guess: look at the contact sheet.
    """
    scale = min(1.0, _WORK_SIDE / max(image.size))
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    pixels = np.asarray(small.convert("RGB").filter(ImageFilter.MedianFilter(3)), dtype=np.int16)
    frame = np.ones(pixels.shape[:2], dtype=bool)
    edge = max(1, round(_FRAME * min(frame.shape)))
    frame[edge:-edge, edge:-edge] = False
    colour = np.median(pixels[frame], axis=0)
    away = np.abs(pixels - colour).max(axis=2)
    if (away[frame] <= EVEN).mean() < _SHARE:
        return None
    alike = away <= PLAIN
    subject = ~_reached(frame & alike, alike)
    if not _SMALLEST <= subject.mean() <= _LARGEST:
        return None
    mask = Image.fromarray(np.where(subject, 255, 0).astype(np.uint8))
    mask = mask.filter(ImageFilter.MedianFilter(5))  # without specks of noise and compression
    return mask.resize(image.size, Image.Resampling.BICUBIC) if mask.getbbox() else None


def _reached(start: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The points of `allowed` joined to `start` by steps to one of four neighbours; (h, w) bools."""
    reached = start
    while True:
        wider = reached.copy()
        wider[1:] |= reached[:-1]
        wider[:-1] |= reached[1:]
        wider[:, 1:] |= reached[:, :-1]
        wider[:, :-1] |= reached[:, 1:]
        wider &= allowed
        if (wider == reached).all():
            return reached
        reached = wider
