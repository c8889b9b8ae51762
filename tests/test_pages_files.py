"""Uploads: names without effect, what is taken and what is refused, and copies that are served."""

import zipfile
from pathlib import Path

import pytest
from conftest import pictures
from hypothesis import given
from hypothesis import strategies as st

from pages import files
from pages.files import safe_name, served, take_photos
from spectral_diffusion.errors import InputError


@given(st.text(min_size=1, max_size=200))
def test_a_safe_name_is_a_plain_file_of_its_folder(name):
    safe = safe_name(name)
    path = Path("/folder") / safe
    assert path.parent == Path("/folder") and path.name == safe
    assert not safe.startswith((".", "-", " ")) and "\0" not in safe.partition(".")[0]


@pytest.mark.parametrize("name", ["../../x.png", "..\\..\\x.png", "/etc/x.png", "a/b/x.PNG"])
def test_folders_in_a_name_are_dropped(name):
    assert safe_name(name) == "x.png"


@pytest.fixture
def uploaded(tmp_path):
    folder = tmp_path / "uploaded"
    folder.mkdir()
    for i, image in enumerate(pictures()):
        image.save(folder / f"{i}.png")
    (folder / "0.txt").write_text("a <rex>")
    return folder


def test_photos_and_captions_are_taken_under_their_names(uploaded, tmp_path):
    take_photos([str(path) for path in uploaded.iterdir()], tmp_path / "photos")
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["0.png", "0.txt", "1.png"]


def test_nothing_is_written_over_anything(uploaded, tmp_path):
    for _ in range(2):
        take_photos([str(uploaded / "0.png")], tmp_path / "photos")
    found = {path.name: path.read_bytes() for path in (tmp_path / "photos").iterdir()}
    assert set(found) == {"0.png", "0-2.png"} and len(set(found.values())) == 1


def test_a_zip_keeps_its_folders(uploaded, tmp_path):
    with zipfile.ZipFile(uploaded / "all.zip", "w") as archive:
        archive.write(uploaded / "0.png", "set/0.png")
        archive.write(uploaded / "1.png", "set/mask/0.png")
    take_photos([str(uploaded / "all.zip")], tmp_path / "photos")
    found = sorted(
        p.relative_to(tmp_path / "photos").as_posix() for p in (tmp_path / "photos").rglob("*.png")
    )
    assert found == ["set/0.png", "set/mask/0.png"]


def test_a_zip_that_climbs_out_is_refused(uploaded, tmp_path):
    with zipfile.ZipFile(uploaded / "bad.zip", "w") as archive:
        archive.write(uploaded / "0.png", "../../climbed.png")
    with pytest.raises(InputError):
        take_photos([str(uploaded / "bad.zip")], tmp_path / "photos")
    assert not list(tmp_path.rglob("climbed.png"))


def test_what_no_training_reads_is_refused_before_anything_is_copied(uploaded, tmp_path):
    (uploaded / "x.exe").write_bytes(b"MZ")
    with pytest.raises(InputError, match=r"x\.exe is no photo"):
        take_photos([str(uploaded / "0.png"), str(uploaded / "x.exe")], tmp_path / "photos")
    assert not (tmp_path / "photos").exists()


def test_too_many_files_are_refused(uploaded, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_FILES", 1)
    with pytest.raises(InputError, match="more than 1 files"):
        take_photos([str(uploaded / "0.png"), str(uploaded / "1.png")], tmp_path / "photos")


def test_a_served_copy_is_the_same_bytes_in_the_uploads(uploaded, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    copy = Path(served(uploaded / "0.png"))
    assert copy.is_relative_to(tmp_path / "served") and copy.name == "0.png"
    assert copy.read_bytes() == (uploaded / "0.png").read_bytes()
    assert served(uploaded / "0.png") == str(copy)
