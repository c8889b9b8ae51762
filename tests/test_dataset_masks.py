"""Masks of photos: from files, from transparency, made; grown, softened, and followed by the crop."""

import pytest
from photo_files import BLUE, RED, halves, mask_on_the_right, near, one, read, refused
from PIL import Image, ImageDraw

from concepts.dataset import ReadOptions


def test_a_transparent_png_lies_on_white_and_its_alpha_is_the_mask(tmp_path):
    image = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((20, 20, 39, 39), fill=(*RED, 255))
    image.save(tmp_path / "a.png")
    example = one(tmp_path, size=60)
    assert example.image.getpixel((2, 2)) == (255, 255, 255)
    assert example.image.getpixel((30, 30)) == RED
    assert (example.mask.mode, example.mask.size) == ("L", (60, 60))
    assert (example.mask.getpixel((2, 2)), example.mask.getpixel((30, 30))) == (0, 255)


def test_a_palette_with_transparency_is_masked_too(tmp_path):
    image = halves(60, 60, "P")
    image.info["transparency"] = image.getpixel((50, 30))
    image.save(tmp_path / "a.png", transparency=image.getpixel((50, 30)))
    example = one(tmp_path, size=60)
    assert example.image.getpixel((50, 30)) == (255, 255, 255)
    assert (example.mask.getpixel((10, 30)), example.mask.getpixel((50, 30))) == (255, 0)


def test_opaque_alpha_is_no_mask_and_full_transparency_is_refused(tmp_path):
    halves(mode="RGBA").save(tmp_path / "a.png")
    assert one(tmp_path).mask is None
    Image.new("RGBA", (40, 40), (9, 9, 9, 0)).save(tmp_path / "a.png")
    refused(tmp_path, "a.png", "empty")


@pytest.mark.parametrize("where", ["mask", "masks"])
def test_a_mask_beside_the_picture_pulls_the_crop(tmp_path, where):
    halves(90, 30).save(tmp_path / "a.jpg")
    assert near(one(tmp_path).image.getpixel((4, 16)), RED, by=40)
    (tmp_path / where).mkdir()
    mask_on_the_right((90, 30)).save(tmp_path / where / "a.png")
    example = one(tmp_path)
    assert near(example.image.getpixel((4, 16)), BLUE, by=40)
    assert (example.mask.getpixel((2, 16)), example.mask.getpixel((30, 16))) == (0, 255)


def test_a_mask_of_another_size_is_scaled_and_of_another_shape_refused(tmp_path):
    halves(800, 600).save(tmp_path / "a.png")
    (tmp_path / "mask").mkdir()
    mask_on_the_right((80, 60)).save(tmp_path / "mask" / "a.png")
    assert one(tmp_path).mask.getpixel((30, 16)) == 255
    mask_on_the_right((60, 80)).save(tmp_path / "mask" / "a.png")
    refused(tmp_path, "mask", "a.png is 60 × 80", "another shape")
    Image.new("L", (80, 60)).save(tmp_path / "mask" / "a.png")
    refused(tmp_path, "a.png", "empty")


def right_half(mode, white, black=0):
    mask = Image.new(mode, (80, 60), black)
    mask.paste(white, (40, 0, 80, 60))
    return mask


def voc():
    mask = right_half("P", 1)
    mask.putpalette([0, 0, 0, 128, 0, 0])
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        right_half("L", 1),
        right_half("1", 1),
        right_half("I;16", 1),
        right_half("I;16", 65535),
        voc(),
        right_half("RGBA", (255, 255, 255, 255), (255, 255, 255, 0)),
        right_half("RGBA", (255, 255, 255, 255), (0, 0, 0, 0)),
        right_half("RGBA", (0, 0, 0, 255), (0, 0, 0, 0)),
        right_half("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),
        right_half("LA", (255, 255), (255, 0)),
    ],
)
def test_a_mask_is_read_in_whatever_way_it_says_inside(tmp_path, mask):
    halves(80, 60).save(tmp_path / "a.png")
    (tmp_path / "mask").mkdir()
    mask.save(tmp_path / "mask" / "a.png")
    read_back = one(tmp_path, size=60, options=ReadOptions(buckets=False)).mask
    assert (read_back.getextrema(), read_back.getpixel((55, 30))) == ((0, 255), 255)


@pytest.mark.parametrize(("size", "told"), [((60, 90), True), ((90, 60), False), ((60, 70), False)])
def test_a_portrait_whose_top_is_cut_off_is_told(tmp_path, size, told):
    for name in ("a.png", "b.png"):  # noise: nothing tells the subject
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / name)
    notes = read(tmp_path).warnings
    assert [("the crop cuts off the top 17% and the bottom 17%" in note) for note in notes] == [
        told
    ] * 2 * told
    assert not read(tmp_path, options=ReadOptions(buckets=True)).warnings


@pytest.mark.parametrize(("at", "told"), [((0, 20), "cuts off 50%"), ((60, 80), None)])
def test_a_subject_that_the_crop_cuts_is_told(tmp_path, at, told):
    image = Image.new("RGB", (160, 40), "white")
    image.paste(RED, (at[0], 10, at[1], 30))
    image.paste(RED, (80, 10, 100, 30))
    image.save(tmp_path / "a.png")  # no mask: the background tells the subject
    image.save(tmp_path / "b.png")
    notes = read(tmp_path).warnings
    assert [told in note for note in notes] == [True, True] if told else notes == []


def test_masks_are_made_where_they_can_be_and_told_where_not(tmp_path):
    halves(mode="RGBA").save(tmp_path / "a.png")
    halves().save(tmp_path / "b.png")

    def make(image):
        return mask_on_the_right(image.size) if image.getpixel((0, 0))[0] > 150 else None

    Image.new("RGB", (40, 40), BLUE).save(tmp_path / "c.png")
    examples, notes = read(tmp_path, options=ReadOptions(make_mask=make))
    assert [e.mask_from for e in examples] == ["made", "made", None]
    assert examples[0].mask.getpixel((30, 16)) == 255
    assert notes == [
        "c.png: no mask could be made, all of the picture counts.",
        "1 of 3 pictures have no mask: c.png.",
    ]


def test_masks_grow_and_soften_in_pixels_of_the_example(tmp_path):
    halves(80, 80).save(tmp_path / "a.png")
    (tmp_path / "mask").mkdir()
    mask = Image.new("L", (80, 80))
    mask.paste(255, (0, 0, 40, 80))
    mask.save(tmp_path / "mask" / "a.png")

    def row(**options):
        mask = one(tmp_path, size=40, options=ReadOptions(**options)).mask
        return [mask.getpixel((x, 20)) for x in range(40)]

    assert row()[18] == 255 and row()[22] == 0
    assert row(grow=6)[24] == 255 and row(grow=6)[28] == 0
    assert 0 < row(grow=6, feather=6)[28] < 255
