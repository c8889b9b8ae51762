"""What is painted on the page: a picture of a few flat colours, each one region's mask; or the mask of a photo.

On the page it is a PNG as a data URL, which is what the canvas takes and gives.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spectral_diffusion.errors import InputError
from spectral_diffusion.files import atomic_write

# of Okabe and Ito's palette, told apart without seeing all colours
COLOURS = {"orange": (230, 159, 0), "blue": (0, 114, 178), "green": (0, 158, 115), "purple": (204, 121, 167)}
SIDE = 256  # pixels of the canvas; a picture of any shape is covered by all of it
_HEAD = "data:image/png;base64,"
_MOST = 2**20  # letters of a painted picture
_WHOLLY = [255 * (grey >= 128) for grey in range(256)]  # strokes have soft edges


def masks(painted: Any) -> dict[str, str]:
    """Colour -> mask, a PNG in base64 that is white where that colour was painted; unused colours are left out.

    Raises InputError for what is no picture of this canvas.
    """
    if not painted:
        return {}
    pixels = np.asarray(_decoded(painted))
    flat, inside = pixels[..., :3].astype(int), pixels[..., 3] >= 128
    # the nearest colour: strokes have soft edges
    palette = np.array(list(COLOURS.values()))
    nearest = ((flat[..., None, :] - palette) ** 2).sum(-1).argmin(-1)
    found = {name: inside & (nearest == i) for i, name in enumerate(COLOURS)}
    return {name: _encoded(Image.fromarray(mask)) for name, mask in found.items() if mask.any()}


def coloured(given: Iterable[str]) -> dict[str, str]:
    """Mask -> colour for masks of a picture's regions, as many as there are colours."""
    return dict(zip(dict.fromkeys(given), COLOURS, strict=False))


def painting(colours: Mapping[str, str]) -> str:
    """The canvas's value that shows these masks (mask -> colour); empty for none."""
    if not colours:
        return ""
    picture = Image.new("RGBA", (SIDE, SIDE))
    for mask, colour in colours.items():
        with Image.open(io.BytesIO(base64.b64decode(mask)), formats=("PNG",)) as image:
            inside = image.convert("L").resize((SIDE, SIDE)).point(_WHOLLY)
        picture.paste((*COLOURS[colour], 255), mask=inside)
    return _HEAD + _encoded(picture)


def photo_mask(painted: Any) -> Image.Image | None:
    """Whatever is painted, in any colour, white in an L picture; None if nothing is.

    Raises InputError for what is no picture of this canvas.
    """
    if not painted:
        return None
    mask = _decoded(painted).getchannel("A").point(_WHOLLY)
    return mask if mask.getbbox() else None


def mask_painting(mask: Image.Image | None) -> str:
    """The canvas's value that shows the mask of a photo, to be corrected; empty for none."""
    if mask is None:
        return ""
    picture = Image.new("RGBA", mask.size)
    picture.paste((*COLOURS["orange"], 255), mask=mask.point(_WHOLLY))
    return _HEAD + _encoded(picture)


def photo_ground(photo: Image.Image) -> str:
    """A photo for the canvas to lie under the paint."""
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def mask_file(mask: str, folder: Path) -> Path:
    """A mask as a file of `folder`, for a command line; equal masks share one."""
    path = folder / f"{hashlib.sha256(mask.encode()).hexdigest()[:12]}.png"
    if not path.exists():
        with atomic_write(path) as file:
            file.write(base64.b64decode(mask))
    return path


def _decoded(painted: Any) -> Image.Image:
    try:
        if not isinstance(painted, str) or not painted.startswith(_HEAD) or len(painted) > _MOST:
            raise ValueError("it is no PNG")
        content = base64.b64decode(painted.removeprefix(_HEAD), validate=True)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if max(image.size) > SIDE:
                raise ValueError(f"it is {image.size[0]} pixels wide")
            return image.convert("RGBA")
    except (binascii.Error, ValueError, OSError, SyntaxError) as error:
        raise InputError(f"The painting cannot be read ({error}): clear it, and paint again.") from error


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
