"""Pictures and masks from files: checked before they are decoded, upright, RGB, cropped.

Every refusal is one sentence that names the file. A large JPEG is decoded at the smallest scale that still
holds the pixels asked for, which is many times faster. Colour profiles are not converted; only the first
picture of an animation is read.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from spectral_diffusion.errors import InputError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
ACCEPTED = "PNG, JPEG and WebP"
MAX_PIXELS = 120_000_000
MAX_SIDES = 8  # a picture more than this many times longer than wide would be cropped to a sliver
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I")
MASK_SHAPE_TOLERANCE = 0.02  # of the aspect ratio: scaling a picture rounds its sides

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class Picture(NamedTuple):
    """A decoded picture: `rgb`, `alpha` (L) if it hides anything, `native`: upright (width, height) on disk.

    `rgb` may be smaller than `native`, never smaller than what was asked for (or than `native` itself).
    """

    rgb: Image.Image
    alpha: Image.Image | None
    native: tuple[int, int]


def read_picture(path: Path, pixels: int) -> Picture:
    """The picture, upright and on white, with at least `pixels` on its short side if the file has them.

    Raises InputError for what is no picture, is damaged, too large or too narrow.
    """
    with _opened(path) as image:
        native = image.size
        image.draft(None, (pixels, pixels))  # a JPEG is decoded at 1/2, 1/4 or 1/8 if that is enough
        image.load()
        decoded = image.size
        upright = ImageOps.exif_transpose(image)
        rgb, alpha = _rgb_and_alpha(upright)
    turned = decoded[0] != decoded[1] and rgb.size != decoded
    return Picture(rgb, alpha, native[::-1] if turned else native)


def read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """The mask (L, 255 = concept) scaled to the picture's `size`; its brightest is the concept, be it 1 or 255.

    Raises InputError if it has another shape, nothing in it, or cannot be read.
    """
    with _opened(path) as image:
        image.load()
        mask = _brightness(ImageOps.exif_transpose(image))
    if abs(mask.width * size[1] - mask.height * size[0]) > MASK_SHAPE_TOLERANCE * mask.width * size[1]:
        raise InputError(
            f"The mask {path} is {mask.width} × {mask.height}, another shape than its picture: "
            "make it anew from the picture, or remove it."
        )
    if mask.getextrema()[1] == 0:
        raise InputError(
            f"The mask {path} is empty (all black): paint the concept white, or remove the mask."
        )
    return mask.resize(size, Image.Resampling.BILINEAR)


def crop_box(size: tuple[int, int], shape: tuple[int, int], focus: Box | None) -> Box:
    """The largest box of the aspect ratio of `shape` in `size`, as near to the centre of `focus` as can be."""
    width = max(1, min(size[0], round(size[1] * shape[0] / shape[1])))
    height = max(1, min(size[1], round(size[0] * shape[1] / shape[0])))
    left, top, right, bottom = focus or (0, 0, *size)
    x = min(max((left + right - width) // 2, 0), size[0] - width)
    y = min(max((top + bottom - height) // 2, 0), size[1] - height)
    return x, y, x + width, y + height


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture with its header read; whatever goes wrong until the block ends is one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap below is ours
            image = Image.open(path, formats=sorted(set(FORMATS.values())))
        with image:
            _check_size(path, image.size)
            yield image
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture ({ACCEPTED} are read), whatever its name says.") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels: scale it down.") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise InputError(f"{path} is truncated or damaged ({error}): replace or remove it.") from error


def _check_size(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels: scale it down.")
    if max(size) > MAX_SIDES * min(size):
        raise InputError(f"{path} is {size[0]} × {size[1]}, too narrow to learn from: crop it yourself.")


def _rgb_and_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Any mode to RGB on white, and the alpha channel (L) if it hides anything."""
    if image.mode in SIXTEEN_BITS:  # convert() would clip at 255 instead of scaling
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB"), None
    image = image.convert("RGBA")
    alpha = image.getchannel("A")
    white = Image.new("RGBA", image.size, "white")
    rgb = Image.alpha_composite(white, image).convert("RGB")
    return rgb, alpha if alpha.getextrema()[0] < 255 else None


def _brightness(image: Image.Image) -> Image.Image:
    """How bright each point is (L), the brightest 255; what is transparent is dark, unless nothing else is told."""
    if image.mode in SIXTEEN_BITS:
        most = max(image.convert("I").getextrema()[1], 1)
        return image.convert("I").point(lambda value: value * (255 / most)).convert("L")
    grey = image.convert("RGB").convert("L")
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        shown = ImageChops.multiply(image.convert("RGBA").convert("L"), alpha)
        grey = shown if shown.getextrema()[1] or alpha.getextrema()[0] == 255 else alpha
    most = grey.getextrema()[1]
    return grey.point(lambda value: round(value * 255 / most)) if most else grey
