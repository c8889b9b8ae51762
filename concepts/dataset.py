"""A folder or zip of photos as training examples: checked, upright, RGB, cropped, captioned, masked.

Layouts are found by `concepts.layouts`. A caption holds `<name>` where the concept stands, see
`captions.with_name`; a picture without one gets a template. White in a mask is the concept; a mask comes
from a file, else from the picture's alpha, else from `ReadOptions.make_mask`.

Every refusal names the file: a training on less than what was given would go unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from concepts import captions
from concepts.archive import unpacked
from concepts.buckets import nearest
from concepts.layouts import Source, find_layout
from concepts.masks import feather, grow, plain_background
from concepts.pictures import Box, Picture, crop_box, read_mask, read_picture
from spectral_diffusion.errors import InputError
from spectral_diffusion.ledger import check_name

DETAIL = 1.25  # crops are jittered within this many times the size, so that none has to be enlarged
TALL = 0.2  # share of the height that a crop may cut off untold where nothing tells the subject
LOST = 0.005  # share of the subject that a crop may cut off untold: the tip of an ear is more
_ROUNDING = 0.01  # of the area: not worth looking for what it cut off

MakeMask = Callable[[Image.Image], Image.Image | None]


@dataclass(frozen=True)
class Example:
    """One training example: `image` RGB and `mask` L (255 = concept), both of the shape asked for.

    `detail` is the same crop with up to `DETAIL` times the pixels, where the file has them. `given`: the
    caption is the user's own. `native` is the picture's upright (width, height), `box` the crop in it and
    `lost` the share of the subject outside of the crop, None where neither mask nor background tells it.
    """

    image: Image.Image
    caption: str
    mask: Image.Image | None
    path: Path
    repeats: int = 1
    given: bool = True
    mask_from: str | None = None
    native: tuple[int, int] | None = None
    box: Box | None = None
    lost: float | None = 0.0
    detail: Image.Image | None = None


class Photos(NamedTuple):
    """What a training folder gave: the examples, sorted by file name, and warnings to show."""

    examples: list[Example]
    warnings: list[str]


@dataclass(frozen=True)
class ReadOptions:
    """How pictures are read.

    `buckets` keeps each photo near its own shape instead of a square. `make_mask` (see `masks` and
    `segmenter`) is asked for pictures without a mask and answers None where it cannot make one. `grow` and
    `feather` are in pixels of the example. `need_captions` refuses pictures without one.
    """

    buckets: bool = False
    make_mask: MakeMask | None = None
    grow: int = 0
    feather: int = 0
    kind: captions.Kind = "object"
    need_captions: bool = False

    def __post_init__(self) -> None:
        captions.CaptionRules(self.kind)  # refuses an unknown kind
        for option in ("grow", "feather"):
            if getattr(self, option) < 0:
                raise InputError(f"{option} must be at least 0 pixels, not {getattr(self, option)}.")


AS_GIVEN = ReadOptions()


def read_folder(
    folder: Path | str,
    name: str,
    size: int,
    class_word: str | None = None,
    options: ReadOptions = AS_GIVEN,
) -> Photos:
    """The photos of `folder`, which may be a zip, as examples of the concept `name`.

    Each is `size` × `size` pixels, or of one of `buckets(size)`. Raises InputError for a folder without
    usable pictures and for any picture, caption or mask that cannot be read.
    """
    check_name(name)
    with unpacked(folder) as root:
        layout = find_layout(root)
        examples = []
        for number, source in enumerate(layout.sources):
            example = read_example(source, number, name, size, class_word or layout.class_word, options)
            examples.append(replace(example, path=Path(folder) / source.path.relative_to(root)))
    notes = [*layout.notes]
    for example in examples:
        notes += troubles(example, options)
    return Photos(examples, notes + _of_all(Path(folder), examples))


def read_example(
    source: Source,
    number: int,
    name: str,
    size: int,
    class_word: str | None = None,
    options: ReadOptions = AS_GIVEN,
) -> Example:
    """One picture of a layout, its caption and its mask. `number` picks the template where it has no caption."""
    picture = read_picture(source.path, pixels_for(size))
    return example_of(picture, source, number, name, size, class_word, options)


def pixels_for(size: int) -> int:
    """How many pixels the short side of a decoded picture should have: half are in reserve for the crop."""
    return 2 * size


def example_of(
    picture: Picture,
    source: Source,
    number: int,
    name: str,
    size: int,
    class_word: str | None = None,
    options: ReadOptions = AS_GIVEN,
) -> Example:
    """As `read_example`, of a picture that is decoded already."""
    rgb, native = picture.rgb, picture.native
    mask, mask_from = mask_of(source, rgb, picture.alpha, options)
    shape = nearest(native, size) if options.buckets else (size, size)
    box = crop_box(rgb.size, shape, mask.getbbox() if mask else None)
    image = _cut(rgb, box, shape)
    cut_mask = mask and _grown(mask.resize(shape, Image.Resampling.BILINEAR, box=box), options)
    text = caption_of(source, name, class_word, options.kind)
    if text is None and options.need_captions:
        raise InputError(f"{source.path} has no caption: write {source.path.stem}.txt beside it.")
    return Example(
        image=image,
        caption=text or captions.template(options.kind, name, number),
        mask=cut_mask,
        path=source.path,
        repeats=source.repeats,
        given=text is not None,
        mask_from=mask_from,
        native=native,
        box=_scaled(box, min(native[0] / rgb.width, native[1] / rgb.height)),
        lost=_lost(rgb, mask, box),
        detail=_detail(rgb, box, shape),
    )


def caption_of(
    source: Source, name: str, class_word: str | None = None, kind: captions.Kind = "object"
) -> str | None:
    """The caption given for a picture, naming the concept, or None."""
    text = given_text(source)
    return captions.with_name(text, name, class_word, source.words, kind) if text else None


def given_text(source: Source) -> str | None:
    """The caption as it was written for a picture, or None. Raises InputError if it is not UTF-8."""
    return source.text or (captions.read_caption(source.caption) if source.caption else None)


def troubles(example: Example, options: ReadOptions) -> list[str]:
    """Sentences about one example that is usable and may still disappoint."""
    name, (width, height), notes = example.path.name, example.native, []
    if min(width, height) < min(example.image.size):
        notes.append(f"{name} is {width} × {height}, smaller than {min(example.image.size)}: it is enlarged.")
    if example.lost is None and (note := _head_cut(example)):
        notes.append(f"{name}: {note}")
    elif example.lost and example.lost > LOST:
        notes.append(
            f"{name}: the crop cuts off {example.lost:.0%} of the subject: use buckets, or crop it yourself."
        )
    if options.make_mask and example.mask is None:
        notes.append(f"{name}: no mask could be made, all of the picture counts.")
    return notes


def _head_cut(example: Example) -> str | None:
    """A sentence for a portrait whose crop may leave the face out."""
    (_, top, _, bottom), height = example.box, example.native[1]
    if 1 - (bottom - top) / height <= TALL:
        return None
    return (
        f"the crop cuts off the top {top / height:.0%} and the bottom {1 - bottom / height:.0%}: "
        "where a face is there, use buckets, or crop it yourself."
    )


def _of_all(folder: Path, examples: Sequence[Example]) -> list[str]:
    """Sentences about the set."""
    notes = []
    if len(examples) == 1:
        notes.append(
            f"{folder} has one picture only: the concept may learn its background too; five are better."
        )
    for what, bare in (
        ("caption", [example.path.name for example in examples if not example.given]),
        ("mask", [example.path.name for example in examples if example.mask is None]),
    ):
        if 0 < len(bare) < len(examples):
            notes.append(f"{len(bare)} of {len(examples)} pictures have no {what}: {_listed(bare)}.")
    return notes


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def mask_of(
    source: Source, rgb: Image.Image, alpha: Image.Image | None, options: ReadOptions
) -> tuple[Image.Image | None, str | None]:
    """The mask in the size of `rgb`, and where it is from."""
    if source.mask:
        return read_mask(source.mask, rgb.size), "file"
    if alpha is not None:
        if alpha.getextrema()[1] == 0:
            raise InputError(f"{source.path} is empty: all of it is transparent; replace or remove it.")
        return alpha, "alpha"
    made = options.make_mask(rgb) if options.make_mask else None
    return (made, "made") if made and made.getbbox() else (None, None)


def _grown(mask: Image.Image, options: ReadOptions) -> Image.Image:
    return feather(grow(mask, options.grow), options.feather)


def _cut(rgb: Image.Image, box: Box, shape: tuple[int, int]) -> Image.Image:
    return rgb.resize(shape, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def _detail(rgb: Image.Image, box: Box, shape: tuple[int, int]) -> Image.Image | None:
    wide = round(shape[0] * DETAIL), round(shape[1] * DETAIL)
    enough = box[2] - box[0] >= wide[0] and box[3] - box[1] >= wide[1]
    return _cut(rgb, box, wide) if enough else None


def _scaled(box: Box, scale: float) -> Box:
    left, top, right, bottom = (side * scale for side in box)
    # sides first: rounding the corners would make a square look oblong
    width, height = round(right - left), round(bottom - top)
    return round(left), round(top), round(left) + width, round(top) + height


def _lost(rgb: Image.Image, mask: Image.Image | None, box: Box) -> float | None:
    """Share of the subject outside of `box`; without a mask a plain background tells it, else None."""
    cropped = (box[2] - box[0]) * (box[3] - box[1]) < (1 - _ROUNDING) * rgb.width * rgb.height
    if not cropped:
        return 0.0
    mask = mask or plain_background(rgb)
    return 1 - _weight(mask.crop(box)) / _weight(mask) if mask else None


def _weight(mask: Image.Image) -> int:
    return sum(value * count for value, count in enumerate(mask.histogram()))
