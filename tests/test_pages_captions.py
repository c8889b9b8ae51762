"""Captions on the page Teach: only what the user changed is written."""

from PIL import Image

from pages.lesson import caption_rows, write_captions


def test_captions_shown_before_there_was_a_name_are_no_change(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    (tmp_path / "1.txt").write_text("a photo of <dot> on the grass\n")
    shown = caption_rows(tmp_path, "", "")
    assert shown == [["1.png", "<concept>, a photo of <dot> on the grass"]]
    write_captions(tmp_path, "dot", "dog", shown)
    assert (tmp_path / "1.txt").read_text() == "a photo of <dot> on the grass\n"
