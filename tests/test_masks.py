"""Masks grow by true distances, soften outwards, and are made from plain backgrounds only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from concepts.masks import feather, grow, plain_background

masks = st.builds(
    lambda size, seed: Image.fromarray(
        np.random.default_rng(seed).choice([0, 0, 0, 90, 255], size).astype(np.uint8)
    ),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, 999),
)


def values(mask):
    return np.asarray(mask).astype(int)


@pytest.mark.parametrize("radius", [1, 2, 5, 9])
def test_a_point_grows_into_a_disc(radius):
    point = Image.new("L", (31, 31))
    point.putpixel((15, 12), 255)
    y, x = np.mgrid[:31, :31]
    disc = (x - 15) ** 2 + (y - 12) ** 2 <= radius**2
    assert (values(grow(point, radius)) == 255 * disc).all()


@given(masks, st.integers(0, 25))
def test_growing_is_the_largest_value_within_the_distance(mask, radius):
    grown, before = values(grow(mask, radius)), values(mask)
    y, x = np.mgrid[: before.shape[0], : before.shape[1]]
    for row, column in ((0, 0), (before.shape[0] // 2, before.shape[1] // 2)):
        near = (y - row) ** 2 + (x - column) ** 2 <= radius**2
        assert grown[row, column] == before[near].max()


@given(masks, st.integers(0, 12))
def test_a_feathered_mask_is_nowhere_weaker(mask, pixels):
    soft = feather(mask, pixels)
    assert soft.size == mask.size
    assert (values(soft) >= values(mask)).all()


def test_a_feathered_edge_falls_off_outside():
    mask = Image.new("L", (60, 60))
    mask.paste(255, (0, 0, 30, 60))
    row = values(feather(mask, 8))[30]
    assert (row[:30] == 255).all() and (np.diff(row) <= 0).all()
    assert 0 < row[33] < 255 and row[50] == 0


def scene(background, noise=3, size=(160, 120), box=(50, 30, 100, 90)):
    """A disc with a window of background colour in it."""
    image = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(image)
    draw.ellipse(box, fill=(180, 60, 30))
    draw.rectangle((68, 50, 80, 62), fill=background)
    speckle = np.random.default_rng(0).normal(0, noise, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(image) + speckle).clip(0, 255).astype(np.uint8))


def wanted(size=(160, 120), box=(50, 30, 100, 90)):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return values(mask) > 127


@pytest.mark.parametrize("background", ["white", "black", (90, 140, 200)])
@pytest.mark.parametrize("scale", [1, 4])
def test_what_stands_before_a_plain_background_is_found_with_its_holes_filled(background, scale):
    image = scene(background).resize((160 * scale, 120 * scale), Image.Resampling.BICUBIC)
    mask = plain_background(image)
    assert (mask.mode, mask.size) == ("L", image.size)
    got = values(mask.resize((160, 120))) > 127
    both, either = (got & wanted()).sum(), (got | wanted()).sum()
    assert both / either > 0.95


def test_a_subject_may_touch_the_border():
    box = (50, 60, 110, 160)
    got = values(plain_background(scene("white", box=box))) > 127
    assert (got & wanted(box=box)).sum() / (got | wanted(box=box)).sum() > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_no_mask_is_made_up_where_the_background_is_not_plain(seed):
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    assert plain_background(noise.resize((160, 120), Image.Resampling.BICUBIC)) is None


def test_no_mask_is_made_up_where_there_is_nothing():
    assert plain_background(Image.new("RGB", (50, 40), "white")) is None
    gradient = np.tile(np.linspace(0, 255, 160, dtype=np.uint8)[:, None, None], (1, 120, 3))
    assert plain_background(Image.fromarray(gradient)) is None


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["white", (1, 2, 3)]))
def test_the_smallest_pictures_are_no_trouble(width, height, colour):
    image = Image.new("RGB", (width, height), colour)
    image.putpixel((width // 2, height // 2), (120, 0, 0))
    mask = plain_background(image)
    assert mask is None or mask.size == image.size
