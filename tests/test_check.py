"""`check` shows what a training would see, says what is wrong with it, and leaves the folder alone."""

import zipfile

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from typer.testing import CliRunner

from concepts.__main__ import app
from concepts.check import ALIKE, BLURRED, blur, distance, examine, gist
from concepts.dataset import ReadOptions
from concepts.masks import plain_background
from concepts.sheet import contact_sheet, veiled
from spectral_diffusion.errors import InputError


def photo(seed=0, size=(96, 96)):
    """Shapes with sharp edges."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        left, top = rng.integers(0, size[0]), rng.integers(0, size[1])
        reach = rng.integers(4, size[0] // 3)
        draw.ellipse((left, top, left + reach, top + reach), fill=tuple(rng.integers(0, 256, 3)))
    return image


def warned(folder, **options):
    report = examine(folder, 64, "rex", "dog", **options)
    return {finding.name: finding.warnings for finding in report.findings}


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "photos"
    home.mkdir()
    for i in range(3):
        photo(i).save(home / f"{i}.png")
        (home / f"{i}.txt").write_text("<rex> asleep")
    return home


def test_good_photos_are_left_alone(folder):
    assert warned(folder) == {"0.png": [], "1.png": [], "2.png": []}


def test_what_is_wrong_with_a_photo_is_told(folder):
    photo(7, (44, 44)).save(folder / "small.png")
    photo(8).filter(ImageFilter.GaussianBlur(5)).save(folder / "soft.png")
    photo(0).resize((300, 300)).convert("RGB").save(folder / "twin.jpg", quality=40)
    photo(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    for name in ("small", "soft", "twin"):
        (folder / f"{name}.txt").write_text("<rex>")
    (folder / "1.txt").write_text("<bob>, " + "word " * 70)
    told = warned(folder)
    assert told["small.png"] == ["it is 44 × 44, smaller than 64: it is enlarged."]
    assert told["soft.png"] == ["it is blurred."]
    assert told["twin.jpg"] == ["it is nearly the same as 0.png: keep one."]
    assert told["mirrored.png"] == [
        "it has no caption: a template stands in.",
        "it is nearly the same as 1.png: keep one.",
    ]
    assert told["1.png"] == [
        "its caption names <bob>: a training of <rex> refuses it.",
        "its caption is long: only the first 75 tokens are read.",
    ]


def test_photos_without_any_caption_are_told_once(folder):
    for path in folder.glob("*.txt"):
        path.unlink()
    report = examine(folder, 64, "rex", "dog")
    assert not any(finding.warnings for finding in report.findings)
    assert sum("no captions" in note for note in report.notes) == 1


def test_a_subject_cut_by_the_crop_is_told(folder):
    image = Image.new("RGB", (166, 100), "white")
    image.paste(photo(3, (140, 60)), (10, 20))
    image.save(folder / "wide.png")
    (folder / "wide.txt").write_text("<rex>")
    (told,) = warned(folder)["wide.png"]
    assert "cuts off" in told and "use buckets" in told
    assert warned(folder, options=ReadOptions(buckets=True))["wide.png"] == []


def test_a_photo_that_cannot_be_used_does_not_hide_the_others(folder):
    (folder / "0.png").write_bytes(b"dear diary")
    (folder / "1.txt").write_bytes("Hündchen".encode("latin-1"))
    report = examine(folder, 64)
    broken, encoding, good = report.findings
    assert "0.png is not a picture" in broken.error and "1.txt is not UTF-8" in encoding.error
    assert good.error is None and good.example.caption == "<rex> asleep"
    assert len(report.errors) == 2


def test_the_name_is_taken_from_the_captions_if_they_agree(folder):
    assert examine(folder, 64).findings[0].example.caption == "<rex> asleep"
    (folder / "1.txt").write_text("<bob> awake")
    assert examine(folder, 64).findings[0].example.caption == "<concept>, <rex> asleep"


@pytest.mark.parametrize("radius", [4, 6, 8])
def test_blur_and_only_blur_is_measured(radius):
    sharp = photo(5, (256, 256)).resize((512, 512), Image.Resampling.LANCZOS)
    assert blur(sharp) < BLURRED < blur(sharp.filter(ImageFilter.GaussianBlur(2 * radius)))
    assert blur(Image.new("RGB", (64, 64), "white")) == 0


def test_copies_are_near_and_others_far():
    one, other = gist(photo(0)), gist(photo(1))
    assert distance(one, one) == distance(one, gist(photo(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT))) == 0
    assert distance(one, gist(photo(0).resize((60, 60)))) < ALIKE < distance(one, other)
    assert distance(one, other) == pytest.approx(distance(other, one))


def test_the_sheet_veils_what_the_mask_leaves_out():
    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (20, 20, 44, 44))
    mask = plain_background(image)
    shown = veiled(image, mask)
    assert shown.getpixel((32, 32)) == (0, 0, 0)
    assert shown.getpixel((2, 2)) not in [(255, 255, 255), (0, 0, 0)]
    assert veiled(image, None) is image


def test_the_sheet_frames_the_crop_and_has_a_cell_for_each_photo(folder):
    photo(3, (200, 100)).save(folder / "wide.png")
    (folder / "broken.png").write_bytes(b"x")
    report = examine(folder, 64)
    sheet = contact_sheet(report, columns=2)
    single = contact_sheet(report._replace(findings=report.findings[:1]))
    assert sheet.width < 2 * single.width and sheet.height > 2.5 * single.height
    frame = (0, 200, 83)
    assert frame in {colour for _, colour in single.getcolors(10**6)}


# the command


def run(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_command_prints_a_table_and_draws_the_sheet(folder, tmp_path):
    before = {path.name for path in folder.iterdir()}
    answer = run(folder, "--size", 64, "--class", "dog", "-o", tmp_path / "out" / "sheet.png")
    assert answer.exit_code == 0, answer.output
    assert "0.png" in answer.output and "96×96" in answer.output and "<rex> asleep" in answer.output
    assert Image.open(tmp_path / "out" / "sheet.png").width > 400
    assert {path.name for path in folder.iterdir()} == before


def test_the_command_reads_a_zip_and_puts_the_sheet_beside_the_caller(folder, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        for path in folder.iterdir():
            file.write(path, f"5_good dog/{path.name}")
    monkeypatch.chdir(tmp_path)
    answer = run("set.zip", "--size", 64)
    assert answer.exit_code == 0, answer.output
    assert "kohya folders" in answer.output and "×5" in answer.output and "'dog'" in answer.output
    assert (tmp_path / "set-check.png").is_file()


def test_the_command_fails_after_it_told_everything(folder, tmp_path):
    (folder / "0.png").write_bytes(b"x")
    answer = run(folder, "--size", 64, "-o", tmp_path / "s.png")
    assert answer.exit_code == 2
    assert "2.png" in answer.stdout and (tmp_path / "s.png").is_file()
    assert "0.png is not a picture" in answer.stderr and answer.stderr.count("\n") == 1


def test_the_sheet_never_becomes_a_photo(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert run(".", "--size", 64).exit_code == 0
    assert (folder.parent / "photos-check.png").is_file()
    answer = run(".", "-o", "sheet.png")
    assert answer.exit_code == 2 and "among the photos" in answer.stderr
    assert not (folder / "sheet.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["-o", "sheet.jpg"], ".png"), (["--masks", "./none"], "--class"), (["--name", "Rex"], "cannot name")],
)
def test_the_command_refuses_options_in_a_sentence(folder, arguments, said):
    answer = run(folder, *arguments)
    assert answer.exit_code == 2 and said in answer.stderr and answer.stderr.count("\n") == 1


def test_a_folder_without_photos_is_refused(tmp_path):
    with pytest.raises(InputError, match="no picture"):
        examine(tmp_path, 64)
