"""Small photos and masks as files, and folders of them read as training examples."""

from PIL import Image, ImageDraw
from refusal import one_sentence

from concepts.dataset import read_folder
from spectral_diffusion.errors import InputError

RED, BLUE = (200, 30, 30), (30, 30, 200)
UPRIGHT = 6  # EXIF: rotate by 90° clockwise to show


def halves(width=80, height=60, mode="RGB"):
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    ImageDraw.Draw(image).rectangle((width // 2, 0, width, height), fill=BLUE)
    return image.quantize(8) if mode == "P" else image.convert(mode)


def read(folder, size=32, **options):
    return read_folder(folder, "rex", size, **options)


def one(folder, **options):
    (example,), _ = read(folder, **options)
    return example


def near(pixel, colour, by=12):
    return all(abs(a - b) <= by for a, b in zip(pixel, colour, strict=True))


def refused(folder, *said):
    with one_sentence(*said, error=InputError):
        read(folder)


def mask_on_the_right(size=(80, 60)):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((size[0] * 3 // 4, 0, *size), fill=255)
    return mask
