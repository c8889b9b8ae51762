"""Labelled sheets: a batch's grid as one picture with X above, Y beside and Z as the title."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP = 6
_TEXT = 15  # pixels
_LONGEST = 60  # characters of a label
_SIDE = 4096  # pixels of a sheet's longer side, about


def grid_sheet(
    cells: Mapping[tuple[str, str], Image.Image], xs: Sequence[str], ys: Sequence[str], title: str = ""
) -> Image.Image:
    """Pictures by (x, y) label in rows and columns; a missing one stays blank. Labels '' take no room."""
    size = _cell(list(cells.values()), max(len(xs), len(ys)))
    font = ImageFont.load_default(_TEXT)
    left = _GAP + max((_width(font, y) + _GAP for y in ys if y), default=0)
    titled = (_TEXT + _GAP) * bool(title)
    top = _GAP + titled + max((len(_folded(font, x, size[0])) for x in xs), default=0) * (_TEXT + 2)
    width = max(left + len(xs) * (size[0] + _GAP), _width(font, title) + 2 * _GAP)
    sheet = Image.new("RGB", (width, top + len(ys) * (size[1] + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 2), _short(title), "black", font)
    for i, x in enumerate(xs):
        column = left + i * (size[0] + _GAP)
        lines = _folded(font, x, size[0])
        for k, line in enumerate(lines):
            draw.text((column, top - (len(lines) - k) * (_TEXT + 2)), line, "black", font)
        for j, y in enumerate(ys):
            row = top + j * (size[1] + _GAP)
            if (image := cells.get((x, y))) is not None:
                sheet.paste(image.resize(size) if image.size != size else image, (column, row))
            else:
                draw.rectangle((column, row, column + size[0] - 1, row + size[1] - 1), outline="gray")
    for j, y in enumerate(ys):
        draw.text((_GAP, top + j * (size[1] + _GAP)), _short(y), "black", font)
    return sheet


def contact_sheet(images: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Pictures in reading order in a near square, each under its label."""
    across = max(1, round(len(images) ** 0.5 + 0.49))
    side = max(32, min(160, _SIDE // across))
    font, high = ImageFont.load_default(11), side + 14 + _GAP
    down = -(-len(images) // across)
    sheet = Image.new("RGB", (across * (side + _GAP) + _GAP, down * high + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        column, row = _GAP + i % across * (side + _GAP), _GAP + i // across * high
        small = image.copy()
        small.thumbnail((side, side))
        draw.text((column, row), _fitting(font, label, side), "black", font)
        sheet.paste(small, (column, row + 14))
    return sheet


def _cell(images: Sequence[Image.Image], across: int) -> tuple[int, int]:
    """The size of a cell: the largest picture's, less where the sheet would become too large."""
    width = max((image.width for image in images), default=64)
    height = max((image.height for image in images), default=64)
    scale = min(1.0, _SIDE / (max(width, height) * across))
    return max(16, int(width * scale)), max(16, int(height * scale))


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"


def _width(font: ImageFont.ImageFont, label: str) -> int:
    return int(font.getlength(_short(label))) + 1


def _folded(font: ImageFont.ImageFont, label: str, width: int) -> list[str]:
    """A label in lines of at most `width` pixels, cut where even one word does not fit."""
    lines: list[str] = []
    for word in _short(label).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(_fitting(font, word, width))
    return lines


def _fitting(font: ImageFont.ImageFont, text: str, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
