"""The contact sheet of a check: each picture with its crop framed, the crop under its mask, caption, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

from PIL import Image, ImageDraw, ImageFont

from concepts.check import Finding, Report

_PANEL, _GAP, _LINE, _TEXT_LINES, _MARGIN = 220, 8, 17, 6, 16
_CELL = (2 * _PANEL + _GAP, _PANEL + _GAP + _TEXT_LINES * _LINE)
_PAPER, _EMPTY, _INK, _SOFT, _BAD, _FRAME = "white", "#eeeeee", "black", "#666666", "#b00020", "#00c853"
_VEIL, _VEIL_SHARE = (190, 0, 60), 0.55  # over what is outside of the mask


def contact_sheet(report: Report, columns: int | None = None) -> Image.Image:
    """RGB picture of all findings in rows of `columns`; if left out, three or about as many as there are rows."""
    columns = min(columns or max(3, isqrt(len(report.findings))), len(report.findings))
    rows = -(-len(report.findings) // columns)
    step = (_CELL[0] + _MARGIN, _CELL[1] + _MARGIN)
    sheet = Image.new("RGB", (columns * step[0] + _MARGIN, rows * step[1] + _MARGIN), _PAPER)
    for i, finding in enumerate(report.findings):
        cell = _cell(finding)
        sheet.paste(cell, (_MARGIN + i % columns * step[0], _MARGIN + i // columns * step[1]))
    return sheet


def veiled(image: Image.Image, mask: Image.Image | None) -> Image.Image:
    """`image` with a veil over what its mask leaves out; without a mask as it is."""
    if mask is None:
        return image
    veil = Image.blend(image, Image.new("RGB", image.size, _VEIL), _VEIL_SHARE)
    return Image.composite(image, veil, mask)


def _cell(finding: Finding) -> Image.Image:
    cell = Image.new("RGB", _CELL, _PAPER)
    draw = ImageDraw.Draw(cell)
    example = finding.example
    for left in (0, _PANEL + _GAP):
        draw.rectangle((left, 0, left + _PANEL - 1, _PANEL - 1), fill=_EMPTY)
    if example:
        _paste(cell, _framed(finding), 0)
        _paste(cell, veiled(example.image, example.mask), _PANEL + _GAP)
    lines = [(finding.name, _INK)]
    if example:
        width, height = example.native
        mask = f", mask: {example.mask_from}" if example.mask_from else ""
        lines[0] = (f"{finding.name}, {width} x {height}{mask}", _INK)
        lines.append((example.caption, _INK if example.given else _SOFT))
    # Pillow's own font has no ×
    lines += [
        (text.replace(" × ", " x "), _BAD) for text in (finding.error and [finding.error]) or finding.warnings
    ]
    _write(draw, lines)
    return cell


def _framed(finding: Finding) -> Image.Image:
    """The whole picture with its crop framed."""
    whole, example = finding.whole.copy(), finding.example
    scale = whole.width / example.native[0], whole.height / example.native[1]
    left, top, right, bottom = (side * scale[i % 2] for i, side in enumerate(example.box))
    line = max(2, whole.width // 80)
    ImageDraw.Draw(whole).rectangle((left, top, right - 1, bottom - 1), outline=_FRAME, width=line)
    return whole


def _paste(cell: Image.Image, image: Image.Image, left: int) -> None:
    scale = _PANEL / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    cell.paste(image, (left + (_PANEL - image.width) // 2, (_PANEL - image.height) // 2))


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[tuple[str, str]]) -> None:
    """Wrapped lines below the panels; what does not fit is cut off: the table has it all."""
    font = ImageFont.load_default(13)
    wrapped = [(part, ink) for text, ink in lines for part in _wrapped(text, font)]
    for i, (text, ink) in enumerate(wrapped[:_TEXT_LINES]):
        draw.text((0, _PANEL + _GAP + i * _LINE), text, fill=ink, font=font)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > _CELL[0]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
