"""A concept's photos and masks as they lie in their folder, to measure likeness against.

Reads what `python -m concepts train` reads of a plain folder: pictures, and masks of the same name in `mask/`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from spectral_diffusion.errors import InputError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")


def read_photos(folder: Path | str) -> tuple[list[Image.Image], list[Image.Image | None]]:
    """RGB pictures in the order of their names, and per picture its mask (L) or None.

    Raises InputError for a folder without pictures, or a picture that cannot be read.
    """
    files = _files(Path(folder))
    images = [_open(photo).convert("RGB") for photo, _ in files]
    return images, [mask and _open(mask).convert("L") for _, mask in files]


def digest(folder: Path | str) -> str:
    """SHA-256 of what `read_photos` reads, whatever the files are called. Raises as it does but for bad pictures."""
    found = hashlib.sha256()
    for photo, mask in _files(Path(folder)):
        for file in (photo, mask):
            content = file.read_bytes() if file else b""
            found.update(len(content).to_bytes(8) + content)
    return found.hexdigest()


def _files(folder: Path) -> list[tuple[Path, Path | None]]:
    """Every photo with its mask, in the order of their names."""
    if not folder.is_dir():
        raise InputError(f"There is no folder of photos {folder}.")
    photos = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not photos:
        raise InputError(f"{folder} holds no photo: PNG, JPEG or WebP.")
    masks = [folder / "mask" / f"{photo.stem}.png" for photo in photos]
    return [(photo, mask if mask.exists() else None) for photo, mask in zip(photos, masks, strict=True)]


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(
            f"The photo {file} cannot be read ({error}): save it again or take it out."
        ) from error
