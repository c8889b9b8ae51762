"""Regions painted on the page: colours become masks and back, and nothing else is taken for a painting."""

import base64
import io
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_pages_form import FIXED, drawn

from pages import paint
from pages.commands import Given, generate_command
from pages.form import form_of, request_of
from spectral_diffusion.errors import InputError
from spectral_diffusion.regions import parse_region


def as_value(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def painted(**boxes):
    """A canvas with a box in each of these colours, in pixels."""
    image = Image.new("RGBA", (paint.SIDE, paint.SIDE))
    for colour, box in boxes.items():
        ImageDraw.Draw(image).rectangle(box, fill=(*paint.COLOURS[colour], 255))
    return image


def pixels(mask):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(mask))).convert("L")) > 127


def test_every_colour_is_a_mask_of_its_own():
    found = paint.masks(as_value(painted(orange=(0, 0, 99, 255), blue=(128, 0, 255, 255))))
    assert list(found) == ["orange", "blue"]
    assert pixels(found["orange"]).sum() == 100 * 256 and pixels(found["blue"]).sum() == 128 * 256


def test_soft_edges_belong_to_the_nearest_colour_or_to_none():
    image = painted(green=(0, 0, 9, 9))
    image.putpixel((10, 0), (0, 150, 120, 200))  # nearly green
    image.putpixel((11, 0), (*paint.COLOURS["green"], 100))  # nearly nothing
    (mask,) = paint.masks(as_value(image)).values()
    assert pixels(mask).sum() == 101


def test_masks_are_shown_as_they_were_painted():
    found = paint.masks(as_value(painted(blue=(0, 0, 50, 50), purple=(100, 100, 200, 250))))
    shown = paint.masks(paint.painting(paint.coloured(found.values())))
    assert list(shown) == ["orange", "blue"]  # masks have no colour of their own: the first ones
    for one, other in zip(found.values(), shown.values(), strict=True):
        assert (pixels(one) == pixels(other)).all()
    assert paint.painting({}) == "" and paint.masks("") == paint.masks(None) == {}


@pytest.mark.parametrize(
    "value",
    [
        7, {"path": "/etc/passwd"}, "/etc/passwd", "data:image/svg+xml;base64,PHN2Zy8+", "data:image/png;base64,%%%",
        "data:image/png;base64," + base64.b64encode(b"\x89PNG no more").decode(),
        as_value(Image.new("RGB", (4, 4)), "JPEG"), as_value(Image.new("RGBA", (paint.SIDE + 1, 4))),
        "data:image/png;base64," + "A" * 2**21,
    ],
)  # fmt: skip
def test_what_is_no_painting_is_refused_in_one_sentence(value):
    with pytest.raises(InputError, match="painting cannot be read") as refusal:
        paint.masks(value)
    assert "\n" not in str(refusal.value)


def test_a_colour_without_paint_is_told():
    value = as_value(painted(orange=(0, 0, 9, 9)))
    with pytest.raises(InputError, match="Nothing is painted in blue"):
        request_of(FIXED._replace(regions="blue: a <rex>", painted=value), {})


def test_a_picture_gives_its_painted_regions_back(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    value = as_value(painted(blue=(0, 0, 99, 255)))
    form = FIXED._replace(regions="0.5,0,1,1: a <mia>\nblue: a <rex>", painted=value)
    found = form_of(drawn(form, tmp_path))
    assert found.regions == "0.5,0,1,1: a <mia>\norange: a <rex>"
    regions = [request_of(one, {}).regions for one in (form, found)]
    assert [(r.box, r.prompt) for r in regions[0]] == [(r.box, r.prompt) for r in regions[1]]
    assert (regions[0][1].coverage(64, 64) == regions[1][1].coverage(64, 64)).all()


def test_the_command_line_names_a_file_with_the_mask(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    value = as_value(painted(green=(0, 0, 99, 255)))
    request = request_of(FIXED._replace(regions="green: a <rex>", painted=value), {})
    words = shlex.split(generate_command(Path("duo.safetensors"), Given("toybox"), request, tmp_path))
    (region,) = [word.removeprefix("--region=") for word in words if word.startswith("--region=")]
    parsed = parse_region(region, request.regions[0].feather)
    assert (
        parsed.prompt == "a <rex>" and (parsed.coverage(64, 64) == request.regions[0].coverage(64, 64)).all()
    )
