"""Regions of a picture: where each lies, what it shows, and how much of each pixel belongs to whom.

A region is a box or a painted mask, with its own prompt, negative prompt and concepts. Its concepts are
those its prompt names, unless they are given. A concept that some region has acts in its regions only:
its weight change is applied inside, and its region's text alone is read by an encoder that carries it. All
other loaded concepts act everywhere.

Where regions overlap, their texts share the pixels in proportion to their masks and their concepts' weight
changes add up, each by its own mask; what no region covers is drawn from the request's own prompt.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from spectral_diffusion.errors import InputError
from spectral_diffusion.words import named

Box = tuple[float, float, float, float]

_HALVES: dict[str, Box] = {
    "left": (0, 0, 0.5, 1),
    "right": (0.5, 0, 1, 1),
    "top": (0, 0, 1, 0.5),
    "bottom": (0, 0.5, 1, 1),
    "whole": (0, 0, 1, 1),
}
_BAND = re.compile(r"(row|column) ([1-9]\d?)/([1-9]\d?)")
_MASK_SIDE = 2048  # pixels of a painted mask's longer side, at most
_PLACES = (
    f"{', '.join(_HALVES)}, 'row 1/3', 'column 2/3', 'left,top,right,bottom' as fractions, or a mask's file"
)


@dataclass(frozen=True)
class Region:
    """One region. `box`: left, top, right, bottom as fractions of the picture, from its upper left corner;
    `mask`: a PNG in base64, white inside; one of the two. `negative` None: the request's. `feather`: the width
    of the soft edge as a fraction of the picture's shorter side, none at the picture's own border."""

    prompt: str
    box: Box | None = None
    mask: str | None = None
    negative: str | None = None
    concepts: tuple[str, ...] | None = None
    feather: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not isinstance(self.negative, str | None):
            raise InputError(f"A region's prompts are texts, not {self.prompt!r} and {self.negative!r}.")
        if (self.box is None) == (self.mask is None):
            raise InputError(f"The region {self.prompt!r} needs either a box or a mask.")
        if self.box is not None:
            object.__setattr__(self, "box", _checked(self.box))
        else:
            _decoded(self.mask)
        if not isinstance(self.feather, int | float) or not 0 <= self.feather <= 0.5:
            raise InputError(f"The feather of a region must be 0 to 0.5, not {self.feather}.")
        found = named(self.prompt) if self.concepts is None else self.concepts
        if isinstance(found, str) or not all(isinstance(name, str) for name in found):
            raise InputError(f"The concepts of a region are a list of names, not {found!r}.")
        object.__setattr__(self, "concepts", tuple(dict.fromkeys(found)))

    @classmethod
    def of(cls, table: Mapping[str, Any], folder: Path | str = ".") -> Region:
        """A region from plain data: the fields of a Region, or `where` (see `place`) instead of box and mask."""
        known = {field.name for field in fields(cls)} | {"where"}
        if not isinstance(table, Mapping) or not set(table) <= known or "prompt" not in table:
            raise InputError(
                f"A region is a table with 'prompt' and any of {', '.join(sorted(known))}: {table}."
            )
        rest = {key: value for key, value in table.items() if key != "where"}
        return cls(**rest, **(place(table["where"], folder) if "where" in table else {}))

    def coverage(self, width: int, height: int) -> Tensor:
        """How much of each pixel is inside: (height, width), 0 to 1, fp32."""
        if self.box is not None:
            left, top, right, bottom = self.box
            inside = torch.zeros(height, width)
            columns = slice(round(left * width), round(right * width))
            inside[round(top * height) : round(bottom * height), columns] = 1
        else:
            painted = _decoded(self.mask).resize((width, height), Image.Resampling.BOX)
            inside = torch.frombuffer(bytearray(painted.tobytes()), dtype=torch.uint8).float().div(255)
            inside = inside.view(height, width)
        return _blurred(inside, math.ceil(self.feather * min(width, height)))


def place(where: str, folder: Path | str = ".") -> dict[str, Any]:
    """`{"box": …}` or `{"mask": …}` for a place in words: a half, a row or column, four fractions, a file."""
    where = str(where).strip()
    if where in _HALVES:
        return {"box": _HALVES[where]}
    if match := _BAND.fullmatch(where):
        number, count = int(match[2]), int(match[3])
        if number > count:
            raise InputError(f"There is no {where}: count from 1/{count} to {count}/{count}.")
        start, end = (number - 1) / count, number / count
        return {"box": (0, start, 1, end) if match[1] == "row" else (start, 0, end, 1)}
    try:
        return {"box": tuple(float(number) for number in where.split(","))}
    except ValueError:
        return {"mask": _painted(Path(folder) / where)}


def parse_region(text: str, feather: float = 0.0, folder: Path | str = ".") -> Region:
    """`left: a photo of <rex>` -> Region. Raises InputError for anything else, telling the places there are."""
    where, colon, prompt = text.partition(":")
    if not colon or not prompt.strip():
        raise InputError(f"The region {text!r} is not 'place: prompt'; places are {_PLACES}.")
    return Region(prompt.strip(), feather=feather, **place(where, folder))


def shares(regions: Sequence[Region], width: int, height: int) -> tuple[Tensor, Tensor]:
    """Masks (regions, height, width) and the texts' shares (1 + regions, height, width) of each pixel.

    Shares add up to 1; the first is that of the request's own prompt.
    """
    masks = torch.stack([region.coverage(width, height) for region in regions])
    total = masks.sum(0, keepdim=True)
    return masks, torch.cat([(1 - total).clamp(min=0), masks / total.clamp(min=1)])


def _checked(box: Sequence[float]) -> Box:
    try:
        left, top, right, bottom = (float(number) for number in box)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"A box is left, top, right, bottom as fractions of the picture, not {box}."
        ) from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError(f"A box is left < right and top < bottom, each 0 to 1, not {tuple(box)}.")
    return left, top, right, bottom


def _decoded(mask: str) -> Image.Image:
    """The painted mask, grey; what is transparent is outside."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(mask, validate=True)), formats=("PNG",)) as image:
            if max(image.size) > _MASK_SIDE:
                raise InputError(f"A region's mask has at most {_MASK_SIDE} pixels a side, not {image.size}.")
            return _grey(image)
    except (binascii.Error, TypeError, ValueError, OSError, SyntaxError) as error:
        raise InputError(f"A region's mask is no PNG in base64 ({error}): paint it again.") from error


def _grey(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.composite(rgba.convert("L"), Image.new("L", rgba.size), rgba.getchannel("A"))


def _painted(file: Path) -> str:
    """A mask's file as a small PNG in base64."""
    if not file.is_file():
        raise InputError(f"There is no place or mask {file.name!r} for a region; places are {_PLACES}.")
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
            grey = _grey(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} cannot be read as a mask ({error}): save it as PNG.") from error
    grey.thumbnail((_MASK_SIDE, _MASK_SIDE))
    buffer = io.BytesIO()
    grey.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _blurred(mask: Tensor, width: int) -> Tensor:
    """A soft edge `width` pixels wide, by two running means along each axis; the border is continued outwards."""
    reach = width // 4
    if not reach:
        return mask
    for axis in (0, 1, 0, 1):
        size, pad = [1, 1], [0, 0, 0, 0]
        size[axis] = 2 * reach + 1
        pad[2 - 2 * axis] = pad[3 - 2 * axis] = reach
        mask = F.avg_pool2d(F.pad(mask[None, None], pad, "replicate"), size, stride=1)[0, 0]
    return mask.clamp(0, 1)
