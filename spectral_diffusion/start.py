"""Pictures to start from and to be guided by: opened with care, brought to a size the base can draw."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from spectral_diffusion.errors import InputError

_MOST_PIXELS = 64_000_000


def open_picture(file: Path | str, what: str = "start picture") -> Image.Image:
    """The picture upright and in RGB, on white where it is transparent.

    Raises InputError for what is no PNG, JPEG or WebP, truncated, or of more than 64 million pixels.
    """
    if not Path(file).is_file():
        raise InputError(f"There is no {what} {file}.")
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise InputError(f"{file} has more than {_MOST_PIXELS:,} pixels: shrink it first.")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):  # 16 bits a channel
                upright = upright.convert("I").point(lambda value: value / 256).convert("L")
            rgba = upright.convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} cannot be read as a {what} ({error}): save it as PNG.") from error
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def fitted(size: tuple[int, int]) -> tuple[int, int]:
    """The nearest size a base can draw: multiples of 8 from 64 on."""
    width, height = (max(64, 8 * round(side / 8)) for side in size)
    return width, height
