"""Contact sheets: labelled rows of pictures, as one image."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

_CELL, _MARGIN, _LABEL = 128, 6, 18


def sheet(rows: Mapping[str, Sequence[Image.Image]], most: int = 8) -> Image.Image:
    """A row of at most `most` pictures under each label; rows may differ in length."""
    columns = max((min(len(images), most) for images in rows.values()), default=1) or 1
    step = _CELL + _LABEL + _MARGIN
    picture = Image.new("RGB", (columns * (_CELL + _MARGIN), max(len(rows), 1) * step), "white")
    pen = ImageDraw.Draw(picture)
    for row, (label, images) in enumerate(rows.items()):
        pen.text((3, row * step + 3), label, fill="black")
        for column, image in enumerate(images[:most]):
            small = image.convert("RGB").resize((_CELL, _CELL), Image.Resampling.LANCZOS)
            picture.paste(small, (column * (_CELL + _MARGIN), row * step + _LABEL))
    return picture


def data_url(image: Image.Image) -> str:
    """The image as a JPEG that a page can hold in itself."""
    blob = io.BytesIO()
    image.convert("RGB").save(blob, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(blob.getvalue()).decode()}"
