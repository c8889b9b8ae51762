"""The map shows every column of every owner, can be read, and can be told apart by colour-blind eyes."""

import io
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from concepts import spectrum_map as maps
from concepts.inventory import Columns, Listed
from spectral_diffusion.slices import Slice

FINGERPRINT = "ab" * 32


def columns(*slices, width=320, states=(), name="concept_{}"):
    owners = [
        Listed(name.format(i), (states or ["done"] * len(slices))[i], owned, FINGERPRINT, "toybox")
        for i, owned in enumerate(slices)
    ]
    return Columns(FINGERPRINT, "toybox", width, tuple(owners))


@st.composite
def spectra(draw, most=40):
    """A base of up to 400 columns and its owners, none overlapping, by column."""
    edges = sorted(draw(st.sets(st.integers(0, 400), min_size=0, max_size=most + 1)))
    slices = [Slice(a, b - a) for a, b in pairwise(edges) if draw(st.booleans())]
    states = [draw(st.sampled_from(["done", "reserved", "stopped"])) for _ in slices]
    width = max([draw(st.integers(1, 400)), *(owned.end for owned in slices)])
    return columns(*slices, width=width, states=states)


def cell(column):
    """The pixels of a column's box in the picture of one base: left, top."""
    line, place = divmod(column, maps.LINE)
    left = maps.MARGIN + maps.GUTTER + place * maps.CELL
    return left, maps.MARGIN + 2 * maps._TITLE + line * (maps.HEIGHT + maps.GAP)


def test_the_text_map_in_full():
    base = columns(Slice(0, 4), Slice(4, 2), Slice(66, 3), width=80, states=["done", "reserved", "done"])
    assert list(maps.text_map(base)) == [
        "toybox (abababababab): 9 of 80 columns taken, 71 free, the longest free run is 6..65.",
        "    0 aaaabb" + "." * 58,
        "   64 ..ccc" + "." * 11,
        "      a  concept_0  0..3    done",
        "      b  concept_1  4..5    reserved",
        "      c  concept_2  66..68  done",
    ]


@settings(max_examples=50, deadline=None)
@given(spectra(most=60))
def test_the_text_map_shows_every_column_once(base):
    lines = [line for line in maps.text_map(base) if line[:5].strip().isdigit()]
    shown = "".join(line[6:] for line in lines)
    owners = {c: maps.sign(i) for i, owner in enumerate(base.owners) for c in owner.slice.columns}
    assert shown == "".join(owners.get(column, maps.FREE) for column in range(base.width))


def test_columns_with_two_owners_and_a_base_of_unknown_width_are_shown():
    base = columns(Slice(0, 4), Slice(3, 2), width=None)
    summary, line, *_, last = maps.text_map(base)
    assert last == "      !  columns that more than one has"
    assert line == "    0 aaa!b" and "how many columns it has is told by the next training" in summary


@settings(max_examples=15, deadline=None)
@given(spectra())
def test_the_picture_shows_every_column_in_its_owners_colour(base):
    image = maps.draw_map([base])
    shown = {c: i for i, owner in enumerate(base.owners) for c in owner.slice.columns}
    for column in range(base.width):
        left, top = cell(column)
        colour = maps.COLOURS[shown[column] % len(maps.COLOURS)] if column in shown else maps.FAINT
        # the upper edge has the colour, whatever the state, and no letter reaches it
        assert image.getpixel((left + 3, top + 1)) == ImageColor.getrgb(colour), column


@settings(max_examples=25, deadline=None)
@given(spectra())
def test_labels_fit_their_boxes_and_boxes_neither_overlap_nor_leave_the_picture(base):
    image, font = maps.draw_map([base]), maps._font(maps._TEXT)
    boxes = maps.boxes(base, maps.MARGIN)
    assert {box.owner for box in boxes} == set(range(len(base.owners))), "each has at least one box"
    for box in boxes:
        assert 0 <= box.left < box.right <= image.width and 0 <= box.top < box.bottom <= image.height
        assert font.getlength(box.label) <= box.right - box.left
        assert box.label.split()[0] == str(box.owner + 1)
    for one, two in combinations(boxes, 2):
        assert one.right <= two.left or two.right <= one.left or one.top != two.top


def test_forty_concepts_of_the_longest_names_are_named_in_a_legend_that_fits():
    base = columns(*(Slice(8 * i, 8) for i in range(40)), name="a_very_long_name_of_a_concept_{:0>2}")
    image, font = maps.draw_map([base]), maps._font(maps._TEXT)
    across = maps._legend_columns(base)
    widest = max(font.getlength(maps._legend_line(owner)) for owner in base.owners)
    assert across * (widest + 3 * maps._TEXT) <= maps.LINE * maps.CELL and image.height < 1500
    bottom = maps._height(base) + maps.MARGIN
    assert image.height >= bottom
    ink = np.asarray(image.convert("L"))[-maps.MARGIN :]
    assert ink.min() == 255, "nothing is cut off at the lower edge"


def test_two_bases_stand_one_under_the_other():
    one, two = columns(Slice(0, 4), width=64), columns(Slice(4, 4), width=64)
    both = np.asarray(maps.draw_map([one, two]))
    alone = np.asarray(maps.draw_map([one]))
    assert (both[: len(alone)] == alone).all() and len(both) > len(alone) + 50


def test_a_file_that_the_ledger_does_not_know_covers_only_half_of_the_owners_columns():
    image = maps.draw_map([columns(Slice(0, 4), Slice(2, 2), states=["done", "unlisted"])])
    left, top = cell(2)
    assert image.getpixel((left + 3, top + 1)) == ImageColor.getrgb(maps.COLOURS[0])
    assert image.getpixel((left + 3, top + maps.HEIGHT - 3)) == ImageColor.getrgb(maps.COLOURS[1])


def test_the_file_is_a_png_and_the_same_each_time():
    base = columns(Slice(0, 4))
    assert maps.png([base]) == maps.png([base])
    with Image.open(io.BytesIO(maps.png([base]))) as image:
        assert image.format == "PNG" and image.mode == "RGB"


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}


def lab(colour, blindness):
    """CIE L*a*b* (D65) of `#RRGGBB` as seen with one kind of colour blindness."""
    rgb = np.array(ImageColor.getrgb(colour)) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(BLINDNESS[blindness]) @ linear, 0, 1)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x, y, z = (np.array(to_xyz) @ linear) / [0.95047, 1, 1.08883]
    f = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_neighbours_are_told_apart_by_colour_blind_eyes(blindness):
    for one, two in pairwise([*maps.COLOURS, maps.COLOURS[0]]):
        distance = np.linalg.norm(lab(one, blindness) - lab(two, blindness))
        assert distance > 20, f"{one} beside {two}: {distance:.0f}"


@pytest.mark.parametrize("colour", maps.COLOURS)
def test_letters_are_legible_on_every_colour(colour):
    assert maps.contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert maps.contrast(maps.text_colour(colour), colour) >= 4.5
