"""Whatever people put into a folder becomes upright RGB squares with a caption, or one sentence naming it."""

import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from photo_files import BLUE, RED, UPRIGHT, halves, mask_on_the_right, near, one, read, refused
from PIL import Image

from concepts import pictures
from concepts.captions import TEMPLATES
from concepts.dataset import DETAIL, ReadOptions
from spectral_diffusion.errors import InputError


def test_a_plain_folder_gives_sorted_square_rgb_examples(tmp_path):
    for name in ("b.png", "a.jpg", "c.WEBP"):
        halves().save(tmp_path / name)
    examples, notes = read(tmp_path)
    assert [example.path.name for example in examples] == ["a.jpg", "b.png", "c.WEBP"]
    assert all((e.image.mode, e.image.size, e.mask) == ("RGB", (32, 32), None) for e in examples)
    assert [e.caption for e in examples] == [text.format("<rex>") for text in TEMPLATES["object"][:3]]
    assert notes == []


def test_one_picture_is_allowed_with_a_warning(tmp_path):
    halves().save(tmp_path / "a.png")
    examples, notes = read(tmp_path)
    assert len(examples) == 1
    assert "one picture only" in notes[0]


def test_small_and_ignored_files_are_told(tmp_path):
    halves().save(tmp_path / "a.png")
    halves(20, 10).save(tmp_path / "b.png")
    (tmp_path / "c.heic").write_bytes(b"x")
    _, notes = read(tmp_path)
    assert notes == [
        "c.heic is ignored: only PNG, JPEG and WebP are read.",
        "b.png is 20 × 10, smaller than 32: it is enlarged.",
    ]


def test_an_empty_folder_is_refused(tmp_path):
    refused(tmp_path, str(tmp_path), "no picture", "PNG, JPEG and WebP")


def test_a_folder_of_other_files_is_refused_with_what_is_accepted(tmp_path):
    halves().save(tmp_path / "a.gif")
    refused(tmp_path, "only a.gif", "PNG, JPEG and WebP")


@pytest.mark.parametrize("name", ["missing", "file.png"])
def test_what_is_no_folder_is_refused(tmp_path, name):
    (tmp_path / "file.png").write_bytes(b"")
    refused(tmp_path / name, "is not a folder")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_truncated_picture_is_refused_by_name(tmp_path, name):
    content = io.BytesIO()
    Image.effect_noise((200, 200), 90).convert("RGB").save(content, pictures.FORMATS[name[1:]])
    (tmp_path / name).write_bytes(content.getvalue()[: len(content.getvalue()) // 2])
    refused(tmp_path, name, "truncated or damaged")


@pytest.mark.parametrize("content", [b"dear diary", b"", b"<html>", b"\x00" * 400])
def test_a_text_named_jpg_is_refused_by_name(tmp_path, content):
    halves().save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(content)
    refused(tmp_path, "b.jpg is not a picture")


def test_a_gif_named_png_is_refused(tmp_path):
    halves().save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    refused(tmp_path, "a.png is not a picture")


def test_a_twenty_megapixel_photo_turned_by_exif_is_upright_and_quick(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = UPRIGHT
    halves(5472, 3648).save(tmp_path / "a.jpg", exif=exif)
    begin = time.perf_counter()
    image = one(tmp_path, size=128).image
    assert time.perf_counter() - begin < 5
    assert near(image.getpixel((64, 10)), RED) and near(image.getpixel((64, 118)), BLUE)


@pytest.mark.parametrize("size", [(20_000, 7_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, size):
    content = io.BytesIO()
    Image.new("1", (8, 8)).save(content, "PNG")
    head = content.getvalue()
    import struct
    import zlib

    chunk = b"IHDR" + struct.pack(">IIBBBBB", *size, 1, 0, 0, 0, 0)
    bomb = head[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + head[33:]
    (tmp_path / "bomb.png").write_bytes(bomb)
    refused(tmp_path, "bomb.png", "120 megapixels")


def test_a_strip_is_refused(tmp_path):
    halves(900, 100).save(tmp_path / "a.png")
    refused(tmp_path, "a.png is 900 × 100", "too narrow")


@pytest.mark.parametrize(
    ("mode", "name"),
    [("CMYK", "a.jpg"), ("L", "a.jpg"), ("L", "a.png"), ("P", "a.png"), ("1", "a.png"), ("RGBA", "a.webp")],
)
def test_every_colour_mode_becomes_rgb(tmp_path, mode, name):
    halves(mode=mode).save(tmp_path / name)
    image = one(tmp_path).image
    expected = halves(mode=mode).convert("RGB")
    assert image.mode == "RGB"
    for x, source in ((4, 14), (28, 66)):
        if mode != "1":  # dithered
            assert near(image.getpixel((x, 16)), expected.getpixel((source, 30)), by=20)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.new("I;16", (40, 40), 0x8000).save(tmp_path / "a.png")
    assert one(tmp_path).image.getpixel((16, 16)) == (127, 127, 127)


@pytest.mark.parametrize("given", [".", "image"])
def test_the_layout_of_mix_of_show_is_read(tmp_path, given):
    for part in ("image", "caption", "mask"):
        (tmp_path / part).mkdir()
    halves().save(tmp_path / "image" / "1.jpg")
    (tmp_path / "caption" / "1.txt").write_text("a <TOK> on the beach\na second caption\n")
    mask_on_the_right().save(tmp_path / "mask" / "1.png")
    example = one(tmp_path / given)
    assert example.caption == "a <rex> on the beach"
    assert example.mask.getpixel((30, 16)) == 255


@pytest.mark.parametrize("suffix", [".txt", ".caption"])
@pytest.mark.parametrize(
    "text", ["<TOK> asleep", "\ufeff\r\n  <rex>   asleep\r\n", "the dog asleep", "A  Dog asleep"]
)
def test_captions_name_the_concept(tmp_path, suffix, text):
    halves().save(tmp_path / "a.png")
    (tmp_path / f"a{suffix}").write_text(text, encoding="utf-8")
    assert one(tmp_path, class_word="dog").caption == "<rex> asleep"


def test_an_empty_caption_counts_as_none(tmp_path):
    halves().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\n \n")
    assert one(tmp_path).caption == TEMPLATES["object"][0].format("<rex>")


def test_a_caption_that_is_not_utf8_is_refused_by_name(tmp_path):
    halves().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("ein Hündchen".encode("latin-1"))
    refused(tmp_path, "a.txt is not UTF-8")


def test_missing_captions_are_refused_when_they_are_needed(tmp_path):
    halves().save(tmp_path / "a.png")
    halves().save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("<rex>")
    with pytest.raises(InputError, match=r"b\.png has no caption: write b\.txt"):
        read(tmp_path, options=ReadOptions(need_captions=True))
    examples, notes = read(tmp_path)
    assert [example.given for example in examples] == [True, False]
    assert notes == ["1 of 2 pictures have no caption: b.png."]


@pytest.mark.parametrize("kind", ["style", "person"])
def test_templates_are_of_the_asked_kind(tmp_path, kind):
    halves().save(tmp_path / "a.png")
    assert one(tmp_path, options=ReadOptions(kind=kind)).caption == TEMPLATES[kind][0].format("<rex>")


def test_repeats_and_words_of_kohya_reach_the_example(tmp_path):
    folder = tmp_path / "7_sks dog"
    folder.mkdir()
    halves().save(folder / "a.png")
    (folder / "a.txt").write_text("photo of sks dog, grass")
    assert (one(tmp_path).repeats, one(tmp_path).caption) == (7, "photo of <rex>, grass")


@pytest.mark.parametrize("size", [(900, 600), (600, 900), (640, 640)])
def test_buckets_keep_a_photo_near_its_shape(tmp_path, size):
    halves(*size).save(tmp_path / "a.jpg")
    example = one(tmp_path, size=128, options=ReadOptions(buckets=True))
    assert example.image.size == {900: (160, 96), 600: (96, 160), 640: (128, 128)}[size[0]]
    left, top, right, bottom = example.box
    assert (right - left) * (bottom - top) > 0.88 * size[0] * size[1]


def test_detail_has_more_pixels_where_the_file_has_them(tmp_path):
    halves(40, 40).save(tmp_path / "a.png")
    halves(39, 80).save(tmp_path / "b.png")
    with_detail, without = read(tmp_path).examples
    assert with_detail.detail.size == (round(32 * DETAIL),) * 2
    assert without.detail is None


def test_the_crop_is_told_in_pixels_of_the_upright_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = UPRIGHT
    halves(3000, 1000).save(tmp_path / "a.jpg", exif=exif)
    example = one(tmp_path)
    assert example.native == (1000, 3000)
    assert example.box == (0, 1000, 1000, 2000)


def test_the_same_stem_twice_and_every_photo_on_its_own(tmp_path):
    halves().save(tmp_path / "a.png")
    halves().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "a.jpg")
    jpeg, png = read(tmp_path).examples
    assert near(jpeg.image.getpixel((4, 16)), BLUE) and near(png.image.getpixel((4, 16)), RED)


@pytest.mark.parametrize("option", ["grow", "feather"])
def test_options_that_make_no_sense_are_refused(option):
    with pytest.raises(InputError, match=option):
        ReadOptions(**{option: -1})
    with pytest.raises(InputError, match="kind"):
        ReadOptions(kind="cat")


@given(st.tuples(*[st.integers(1, 300)] * 2), st.tuples(*[st.integers(0, 300)] * 4))
def test_the_crop_is_the_largest_square_and_inside(size, focus):
    left, top, right, bottom = pictures.crop_box(size, (1, 1), focus)
    assert right - left == bottom - top == min(size)
    assert left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1]
