"""Aspect-ratio buckets: the few picture shapes that a training on uncropped photos is sorted into.

A bucket is (width, height) in pixels, both multiples of a step, of at most size² pixels, as SD 1.x was
not, but its fine-tunes are, trained. A batch holds one shape only.
"""

from __future__ import annotations

from functools import cache
from math import log

LONGEST = 2.5  # a side may be this many times the other; what is longer is cropped
_STEP = 64  # pixels: the UNet halves its latents (8 pixels each) three times


def step_of(size: int) -> int:
    """The step of the sides for a base of `size`: 64, or an eighth of a small base's side."""
    return min(_STEP, max(8, size // 8 // 8 * 8))


@cache
def buckets(size: int) -> tuple[tuple[int, int], ...]:
    """All shapes for a base of `size`, the square first, then from tall to wide."""
    step = step_of(size)
    widest: dict[int, int] = {}  # height -> the largest width with it
    for width in range(step, size * 4, step):
        height = size * size // width // step * step
        if height and width / height <= LONGEST and height / width <= LONGEST:
            widest[height] = width
    shapes = {shape for height, width in widest.items() for shape in ((width, height), (height, width))}
    return ((size, size), *sorted(shapes - {(size, size)}))


def nearest(native: tuple[int, int], size: int) -> tuple[int, int]:
    """The bucket from which the least of a picture of `native` (width, height) is cropped away."""
    return min(buckets(size), key=lambda shape: abs(log(shape[0] / shape[1] * native[1] / native[0])))
