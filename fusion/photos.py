"""A concept's photos and masks as they lie in their folder, to measure likeness against.

Reads what `python -m concepts train` reads of a plain folder: pictures, and masks of the same name in `mask/`.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from spectral_diffusion.errors import InputError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")


def read_photos(folder: Path | str) -> tuple[list[Image.Image], list[Image.Image | None]]:
    """RGB pictures in the order of their names, and per picture its mask (L) or None.

    Raises InputError for a folder without pictures, or a picture that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"There is no folder of photos {folder}.")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no photo: PNG, JPEG or WebP.")
    masks = [folder / "mask" / f"{file.stem}.png" for file in files]
    images = [_open(file).convert("RGB") for file in files]
    return images, [_open(mask).convert("L") if mask.exists() else None for mask in masks]


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(
            f"The photo {file} cannot be read ({error}): save it again or take it out."
        ) from error
