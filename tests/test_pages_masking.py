"""Masks painted over photos on the page: shown as training has them, kept beside the photo, used by it."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import pictures
from PIL import Image, ImageDraw
from refusal import one_sentence
from test_pages_paint import as_value, painted

from concepts.dataset import read_folder
from pages import paint
from pages.masking import Masking, write_mask

BOX = (64, 64, 191, 191)  # of the canvas: the middle quarter


@pytest.fixture
def photos(tmp_path):
    """Two square photos; the second is upright and has a mask."""
    folder = tmp_path / "photos"
    (folder / "mask").mkdir(parents=True)
    pictures()[0].save(folder / "a.png")
    Image.new("RGB", (60, 90), "navy").save(folder / "b.jpg")
    mask = Image.new("L", (60, 90))
    mask.paste(255, (0, 0, 60, 45))
    mask.save(folder / "mask" / "b.png")
    return folder


def inside(example):
    return np.asarray(example.mask) > 127


def test_what_is_painted_is_the_mask_that_training_uses(photos):
    said = write_mask(photos, 0, as_value(painted(orange=BOX)))
    assert "a.png" in said
    example, _ = read_folder(photos, "rex", 64).examples
    assert example.mask_from == "file"
    assert inside(example)[20:44, 20:44].all() and not inside(example)[:14].any()


def test_a_mask_is_shown_over_its_photo_and_comes_back_as_it_was(photos):
    shown = Masking.shown(photos, 1, False)
    assert shown["photo"].startswith("data:image/jpeg;base64,")
    mask = paint.photo_mask(shown["value"])
    assert mask.size == (round(60 * 256 / 90), 256) and mask.getbbox()[3] == pytest.approx(128, abs=2)
    before = inside(read_folder(photos, "rex", 64).examples[1])
    write_mask(photos, 1, shown["value"])
    assert (inside(read_folder(photos, "rex", 64).examples[1]) != before).mean() < 0.02


def test_a_mask_of_the_plain_background_can_be_corrected(photos):
    assert Masking.shown(photos, 0, False)["value"] == ""
    made = paint.photo_mask(Masking.shown(photos, 0, True)["value"])
    disc = Image.new("L", made.size)
    ImageDraw.Draw(disc).ellipse((48, 48, 160, 176), fill=255)
    assert (np.asarray(made) != np.asarray(disc)).mean() < 0.05


def test_no_paint_is_no_mask(photos):
    assert "no painted mask" in write_mask(photos, 1, "")
    assert read_folder(photos, "rex", 64).examples[1].mask is None
    assert "no painted mask" in write_mask(photos, 1, as_value(painted()))


def test_a_mask_that_is_no_png_is_replaced(photos):
    (photos / "mask" / "b.png").unlink()
    Image.new("L", (60, 90), 255).save(photos / "mask" / "b.jpg")
    write_mask(photos, 1, as_value(painted(orange=BOX)))
    assert [path.name for path in (photos / "mask").iterdir()] == ["b.png"]


@pytest.mark.parametrize("number", [-1, 2, 10**9, "0", True, 0.0, {"path": "/etc"}])
def test_a_foreign_photo_is_refused(photos, number):
    for act in (lambda: write_mask(photos, number, ""), lambda: Masking.shown(photos, number, False)):
        with one_sentence("no such photo"):
            act()


def test_a_photo_has_to_be_chosen(photos):
    with one_sentence("Choose the photo"):
        write_mask(photos, None, "")
    with one_sentence("painting cannot be read"):
        write_mask(photos, 0, "data:image/png;base64,AAAA")
    assert Masking.shown(photos, None, False)["photo"] == ""
    assert Masking.chosen(SimpleNamespace(index=1), [0, 4]) == 4
    with one_sentence("no such photo"):
        Masking.chosen(SimpleNamespace(index=2), [0, 4])


def test_the_page_keeps_it_for_the_training_and_shows_the_photo_veiled(studio, photos):
    from pages.teach import Teach

    page = Teach(studio)
    id_, before, _, _, _, choice, numbers, _ = page.take([str(photos / "a.png")], "", "spot", "dog", False)
    assert choice["choices"] == [("a.png", 0)] and numbers == [0] and "no mask" in before[0][1]
    value = as_value(painted(orange=BOX))
    _, gallery, *_, choice, _, said = page.save_mask(0, value, id_, "spot", "dog", False)
    assert "mask: file" in gallery[0][1] and choice["value"] == 0 and "you painted" in said
    assert page.show_mask(id_, 0, False)["value"].startswith("data:image/png")
    assert (page.jobs.photos(id_) / "mask" / "a.png").is_file()
    with one_sentence("Drop five or more photos"):
        page.save_mask(0, value, "", "spot", "dog", False)
