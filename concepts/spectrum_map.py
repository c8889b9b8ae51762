"""A map of the spectrum: whose columns are whose and what is free, as text and as a picture.

One cell is one column, 64 to a line, so nothing is too small to be seen. In the picture every run carries its
owner's number, and its name where there is room; colours only help: there are seven, told apart by colour-blind
eyes too, and neighbours never share one. Solid means owned, an outline reserved, a half-height box a file that
the ledger does not know and that may lie over another's columns.
"""

from __future__ import annotations

import io
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from concepts.inventory import Columns, Listed
from concepts.listing import aligned
from spectral_diffusion.slices import Slice, free_runs

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

LINE = 64  # columns in a line of the map
SIGNS = string.ascii_lowercase + string.ascii_uppercase + string.digits
FREE, SHARED, MANY = ".", "!", "#"
# Okabe and Ito's palette without black, ordered so that neighbours differ for all kinds of colour blindness
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#F0E442", "#56B4E9")
PAPER, INK, FAINT = "#FFFFFF", "#1A1A1A", "#E8E8E8"
CELL, HEIGHT, GAP, MARGIN, GUTTER = 18, 34, 8, 24, 44  # pixels
_TEXT, _TITLE = 14, 18  # sizes of letters


@dataclass(frozen=True)
class Box:
    """One owner's run of columns in one line of the picture: where it is drawn and what is written in it."""

    owner: int  # its number on the map, from 0 on
    left: int
    top: int
    right: int
    bottom: int
    label: str


def width_shown(base: Columns) -> int:
    """The columns of the map: all of the base, or up to the last owner where nobody has told how many it has."""
    return max([base.width or 1, *(owner.slice.end for owner in base.owners)])


def summary(base: Columns) -> str:
    """`toybox (0123456789ab): 12 of 64 columns taken, 52 free, the longest free run is 12..63.`"""
    if base.width is None:
        return f"{base.title}: how many columns it has is told by the next training on it."
    free = free_runs([owner.slice for owner in base.owners], base.width)
    room = sum(run.rank for run in free)
    told = f"{base.title}: {base.width - room} of {base.width} columns taken, {room} free"
    if not free:
        return f"{told}."
    return f"{told}, the longest free run is {max(free, key=lambda run: run.rank)}."


def text_map(base: Columns) -> Iterator[str]:
    """The map of one base as lines: a summary, the columns, then what each sign means."""
    yield summary(base)
    signs = _signs(base)
    for start in range(0, len(signs), LINE):
        yield f"{start:>5} {signs[start : start + LINE]}"
    if base.owners:
        rows = [
            (f"      {sign(i)}", owner.name, str(owner.slice), owner.state) for i, owner in _numbered(base)
        ]
        yield from aligned(rows)
    if SHARED in signs:
        yield f"      {SHARED}  columns that more than one has"


def sign(number: int) -> str:
    """The letter of the owner of this number."""
    return SIGNS[number] if number < len(SIGNS) else MANY


def _numbered(base: Columns) -> Iterator[tuple[int, Listed]]:
    return enumerate(base.owners)


def _signs(base: Columns) -> str:
    signs = [FREE] * width_shown(base)
    for number, owner in _numbered(base):
        for column in owner.slice.columns:
            signs[column] = sign(number) if signs[column] == FREE else SHARED
    return "".join(signs)


def png(bases: Sequence[Columns]) -> bytes:
    """The picture of `draw_map` as a PNG file."""
    blob = io.BytesIO()
    draw_map(bases).save(blob, "PNG", optimize=True)
    return blob.getvalue()


def draw_map(bases: Sequence[Columns]) -> Image.Image:
    """The maps of all bases, one under the other, as an RGB picture."""
    from PIL import Image, ImageDraw

    width = 2 * MARGIN + GUTTER + LINE * CELL
    tops = [MARGIN]
    for base in bases:
        tops.append(tops[-1] + _height(base) + MARGIN)
    image = Image.new("RGB", (width, max(tops[-1], 2 * MARGIN)), PAPER)
    pen = ImageDraw.Draw(image)
    for base, top in zip(bases, tops, strict=False):
        _draw_base(pen, base, top)
    return image


def boxes(base: Columns, top: int) -> list[Box]:
    """Every owner's runs as they are drawn in a picture whose map of `base` begins `top` pixels down."""
    font = _font(_TEXT)
    found = []
    for number, owner in _numbered(base):
        for line, run in _by_line(owner.slice):
            left = MARGIN + GUTTER + run.start % LINE * CELL
            upper = top + 2 * _TITLE + line * (HEIGHT + GAP)
            if owner.state == "unlisted":
                upper += HEIGHT // 2
            room = run.rank * CELL
            label = _fitting_label(font, number, owner.name, room)
            lower = top + 2 * _TITLE + line * (HEIGHT + GAP) + HEIGHT
            found.append(Box(number, left, upper, left + room, lower, label))
    return found


def _by_line(owned: Slice) -> Iterator[tuple[int, Slice]]:
    """The parts of a slice in each line of the map."""
    for line, columns in groupby(owned.columns, key=lambda column: column // LINE):
        part = list(columns)
        yield line, Slice(part[0], len(part))


def _fitting_label(font: FreeTypeFont, number: int, name: str, room: int) -> str:
    """`3 rex` where that fits into `room` pixels, else the number alone; the legend has the name."""
    full = f"{number + 1} {name}"
    return full if font.getlength(full) <= room - 6 else str(number + 1)


def text_colour(background: str) -> str:
    """Ink or paper, whichever is easier to read on `background`."""
    return max((INK, PAPER), key=lambda letters: contrast(letters, background))


def contrast(one: str, two: str) -> float:
    """WCAG's contrast ratio of two colours `#RRGGBB`, 1 to 21; 4.5 is legible."""
    dark, light = sorted(map(_luminance, (one, two)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _font(size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)  # comes with pillow: the same on every machine


def _lines(base: Columns) -> int:
    return -(-width_shown(base) // LINE)


def _height(base: Columns) -> int:
    across = _legend_columns(base)
    legend = -(-len(base.owners) // across) * 2 * _TEXT if base.owners else 0
    return 2 * _TITLE + _lines(base) * (HEIGHT + GAP) + legend


def _legend_columns(base: Columns) -> int:
    widest = max((_font(_TEXT).getlength(_legend_line(owner)) for owner in base.owners), default=0)
    return max(1, int(LINE * CELL // (widest + 4 * _TEXT)))


def _legend_line(owner: Listed) -> str:
    return f"{owner.name}  {_drawn(str(owner.slice))}  {owner.state}"


def _drawn(text: str) -> str:
    """`0-3` for `0..3`, whose two dots look like one in print."""
    return text.replace("..", "-")


def _draw_base(pen: ImageDraw, base: Columns, top: int) -> None:
    pen.text((MARGIN, top), _drawn(summary(base)), INK, _font(_TITLE))
    font, last = _font(_TEXT), width_shown(base)
    for line in range(_lines(base)):
        upper, left = top + 2 * _TITLE + line * (HEIGHT + GAP), MARGIN + GUTTER
        pen.text((left - 8, upper + HEIGHT // 2), str(line * LINE), INK, font, anchor="rm")
        columns = min(LINE, last - line * LINE)
        pen.rectangle((left, upper, left + columns * CELL - 1, upper + HEIGHT - 1), FAINT)
    for box in boxes(base, top):
        owner = base.owners[box.owner]
        letters = _draw_swatch(pen, (box.left, box.top, box.right - 2, box.bottom - 1), box.owner, owner)
        middle = ((box.left + box.right - 2) / 2, (box.top + box.bottom) / 2)
        pen.text(middle, box.label, letters, font, anchor="mm")
    _draw_legend(pen, base, top + 2 * _TITLE + _lines(base) * (HEIGHT + GAP))


def _draw_swatch(pen: ImageDraw, edges: tuple[int, int, int, int], number: int, owner: Listed) -> str:
    """A box in the owner's colour and the style of its state; returns the colour to write on it."""
    colour = COLOURS[number % len(COLOURS)]
    if owner.state == "reserved":
        pen.rectangle(edges, PAPER, outline=colour, width=3)
        return INK
    pen.rectangle(edges, colour)
    return text_colour(colour)


def _draw_legend(pen: ImageDraw, base: Columns, top: int) -> None:
    across, font = _legend_columns(base), _font(_TEXT)
    for number, owner in _numbered(base):
        row, column = divmod(number, across)
        left = MARGIN + GUTTER + column * (LINE * CELL // across)
        upper = top + row * 2 * _TEXT
        letters = _draw_swatch(pen, (left, upper, left + 2 * _TEXT, upper + 20), number, owner)
        pen.text((left + _TEXT, upper + 10), str(number + 1), letters, font, anchor="mm")
        pen.text((left + 3 * _TEXT - 6, upper + 10), _legend_line(owner), INK, font, anchor="lm")
