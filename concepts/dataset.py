"""A folder of photos as training examples: checked, upright, RGB, square, captioned.

Layouts: a plain folder of PNG, JPEG and WebP pictures, each with an optional caption of the same stem
(`.txt` or `.caption`, UTF-8; the first line that is not empty counts) and an optional mask of the same stem
in a folder `mask/` or `masks/`; or Mix-of-Show's `image/ caption/ mask/`. White in a mask is the concept.

A caption holds `<name>` where the concept stands; `<TOK>` is turned into it, else the class word with its
article is. A picture without a caption gets one from `CAPTIONS`.

Nothing is decoded before its header is checked, and every refusal names the file. Colour profiles are not
converted; only the first picture of an animation is read.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

from spectral_diffusion.errors import InputError
from spectral_diffusion.ledger import check_name

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
ACCEPTED = "PNG, JPEG and WebP"
CAPTION_SUFFIXES = (".txt", ".caption")
CAPTION_FOLDERS = ("caption", "captions")
MASK_FOLDERS = ("mask", "masks")
IMAGE_FOLDERS = ("image", "images")
MAX_PIXELS = 120_000_000
MAX_SIDES = 8  # a picture more than this many times longer than wide would be cropped to a sliver
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I")
PLACEHOLDER = "<TOK>"
CAPTIONS = (
    "a photo of {}",
    "a picture of {}",
    "a close-up photo of {}",
    "a good photo of {}",
    "a cropped photo of {}",
    "a bright photo of {}",
    "a photo of one {}",
    "a rendering of {}",
    "a depiction of {}",
    "a nice picture of {}",
)


@dataclass(frozen=True)
class Example:
    """One training example: `image` RGB and `mask` L (255 = concept), both size × size."""

    image: Image.Image
    caption: str
    mask: Image.Image | None
    path: Path


class Photos(NamedTuple):
    """What a training folder gave: the examples, sorted by file name, and warnings to show."""

    examples: list[Example]
    warnings: list[str]


def read_folder(folder: Path | str, name: str, size: int, class_word: str | None = None) -> Photos:
    """The photos of `folder` as examples of the concept `name`, `size` × `size` pixels.

    Raises InputError for a folder without usable pictures and for any picture, caption or mask that cannot
    be read: a training on less than what was given would go unnoticed.
    """
    check_name(name)
    pictures, ignored = find_pictures(Path(folder))
    examples = []
    notes = [f"{path.name} is ignored: only {ACCEPTED} are read." for path in ignored]
    for number, path in enumerate(pictures):
        mask_path = _same_stem(path, _homes(path, MASK_FOLDERS), (".png",))
        image, mask, native = read_picture(path, mask_path, size)
        caption = read_caption(path, name, class_word)
        examples.append(
            Example(image, caption or CAPTIONS[number % len(CAPTIONS)].format(f"<{name}>"), mask, path)
        )
        if min(native) < size:
            notes.append(f"{path.name} is {native[0]} × {native[1]}, smaller than {size}: it is enlarged.")
    if len(examples) == 1:
        notes.append(
            f"{folder} has one picture only: the concept may learn its background too; five are better."
        )
    return Photos(examples, notes)


def find_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures of a training folder and the files in it that are neither picture nor caption."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the folder that holds the photos.")
    inner = next((folder / sub for sub in IMAGE_FOLDERS if (folder / sub).is_dir()), None)
    pictures, ignored = _sorted_out(folder)
    if inner and not pictures:
        pictures, ignored = _sorted_out(inner)
    if not pictures:
        found = f"only {', '.join(path.name for path in ignored[:3])}" if ignored else "no picture"
        raise InputError(f"{folder} has {found}: put a few photos there ({ACCEPTED} are read).")
    return pictures, ignored


def _sorted_out(folder: Path) -> tuple[list[Path], list[Path]]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in FORMATS]
    return pictures, [path for path in files if path.suffix.lower() not in {*FORMATS, *CAPTION_SUFFIXES}]


def read_caption(picture: Path, name: str, class_word: str | None = None) -> str | None:
    """The caption beside `picture` with `<name>` in it, or None if there is none or it is empty."""
    path = _same_stem(picture, [picture.parent, *_homes(picture, CAPTION_FOLDERS)], CAPTION_SUFFIXES)
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: save the caption again as UTF-8.") from error
    text = next((" ".join(line.split()) for line in lines if line.strip()), None)
    return text and with_name(text, name, class_word)


def with_name(caption: str, name: str, class_word: str | None = None) -> str:
    """`caption` naming the concept: for `<TOK>`, else for the first class word, else in front."""
    concept = f"<{name}>"
    caption = caption.replace(PLACEHOLDER, concept)
    if concept in caption:
        return caption
    if class_word:
        class_phrase = rf"\b(?:(?:an?|the)\s+)?{re.escape(class_word)}\b"
        caption, found = re.subn(class_phrase, concept, caption, count=1, flags=re.IGNORECASE)
        if found:
            return caption
    return f"{concept}, {caption}"


def read_picture(
    path: Path, mask_path: Path | None, size: int
) -> tuple[Image.Image, Image.Image | None, tuple[int, int]]:
    """The picture (RGB) and its mask (L) cropped to a square of `size`, and its own (width, height).

    The crop is the largest square, around the mask's centre if there is a mask. A transparent picture is laid
    on white, and its alpha is the mask unless there is a mask file.
    """
    with _opened(path) as image:
        native = image.size
        _decode(image, size)
        upright = ImageOps.exif_transpose(image)
        rgb, alpha = _rgb_and_alpha(upright)
    mask = alpha if mask_path is None else _read_mask(mask_path, rgb.size)
    if mask is not None and mask.getbbox() is None:
        raise InputError(f"The mask of {path} is empty: paint the concept white, or remove the mask.")
    box = _square(rgb.size, mask.getbbox() if mask else None)
    square = rgb.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return square, mask and mask.resize((size, size), Image.Resampling.BILINEAR, box=box), native


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
        raise InputError(f"{path} is {size[0]} × {size[1]}, too narrow to crop a square from.")


def _decode(image: Image.Image, size: int) -> None:
    """Decode in place. Large JPEGs come out smaller, at least twice `size`, which is many times faster."""
    image.draft(None, (2 * size, 2 * size))
    image.load()


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


def _read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """The mask (L) scaled to the picture's `size`; InputError if it has another shape."""
    with _opened(path) as image:
        image.load()
        rgb, _ = _rgb_and_alpha(ImageOps.exif_transpose(image))
    mask = rgb.convert("L")
    if abs(mask.width * size[1] - mask.height * size[0]) > 0.02 * mask.width * size[1]:
        raise InputError(f"{path} is {mask.width} × {mask.height}, another shape than its picture.")
    return mask.resize(size, Image.Resampling.BILINEAR)


def _square(size: tuple[int, int], focus: tuple[int, int, int, int] | None) -> tuple[int, int, int, int]:
    """The largest square (left, top, right, bottom) in `size`, as near to the centre of `focus` as can be."""
    side = min(size)
    left, top, right, bottom = focus or (0, 0, *size)
    x = min(max((left + right - side) // 2, 0), size[0] - side)
    y = min(max((top + bottom - side) // 2, 0), size[1] - side)
    return x, y, x + side, y + side


def _homes(picture: Path, folders: tuple[str, ...]) -> list[Path]:
    """Where companions of `picture` lie: in folders beside it or, for `image/`, beside its own folder."""
    homes = [picture.parent / folder for folder in folders]
    if picture.parent.name in IMAGE_FOLDERS:
        homes += [picture.parent.parent / folder for folder in folders]
    return homes


def _same_stem(picture: Path, homes: list[Path], suffixes: tuple[str, ...]) -> Path | None:
    candidates = (home / f"{picture.stem}{suffix}" for home in homes for suffix in suffixes)
    return next((path for path in candidates if path.is_file()), None)
