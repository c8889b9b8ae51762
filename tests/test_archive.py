"""A zip gives its photos and nothing else: no bomb, no link, no file outside of its folder, no leftovers."""

import io
import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from refusal import one_sentence

from concepts import archive
from concepts.archive import unpacked
from concepts.dataset import read_folder
from spectral_diffusion.errors import InputError


def png(size=(64, 48), colour="red"):
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


def zipped(path, files, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    home = tmp_path / "temporary"
    home.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    yield home
    assert not [*home.iterdir()], "what was unpacked is left behind"


def refused(path, *said):
    with one_sentence(path, *said, error=InputError) as refusal, unpacked(path):
        pass
    assert "temporary" not in str(refusal.value)


def test_a_folder_is_itself(tmp_path):
    with unpacked(tmp_path) as folder:
        assert folder == tmp_path


def test_a_zip_is_a_folder_while_it_is_read_and_gone_afterwards(tmp_path):
    path = zipped(tmp_path / "p.zip", {"in/a.png": png(), "in/a.txt": "x", "in/": ""})
    with unpacked(path) as folder:
        assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == [
            "in/a.png",
            "in/a.txt",
        ]
    assert not folder.exists()


def test_only_what_a_training_folder_holds_is_unpacked(tmp_path):
    junk = {"a.png": png(), "run.sh": "rm", "__MACOSX/a.png": "x", ".x/b.png": "x", "inner.zip": "x"}
    with unpacked(zipped(tmp_path / "p.zip", junk)) as folder:
        assert [p.name for p in folder.rglob("*")] == ["a.png"]


def test_photos_in_a_zip_are_examples_named_by_the_zip(tmp_path):
    files = {f"set/10_sks dog/{name}.png": png(colour=name) for name in ("red", "blue")}
    path = zipped(tmp_path / "p.zip", {**files, "set/10_sks dog/red.txt": "sks dog asleep"})
    examples, _ = read_folder(path, "rex", 32)
    assert [(e.path, e.repeats) for e in examples] == [
        (path / "set/10_sks dog/blue.png", 10),
        (path / "set/10_sks dog/red.png", 10),
    ]
    assert examples[1].caption == "<rex> asleep"


def test_a_broken_photo_in_a_zip_is_told_as_part_of_the_zip(tmp_path):
    path = zipped(tmp_path / "p.zip", {"a.png": b"dear diary"})
    with pytest.raises(InputError, match=r"p\.zip/a\.png is not a picture"):
        read_folder(path, "rex", 32)


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/a.png", "C:\\a.png", "..\\a.png", "a\n.png"])
def test_names_that_lead_outside_are_refused(tmp_path, name):
    refused(zipped(tmp_path / "p.zip", {"b.png": png(), name: png()}), "outside of its folder")


def test_a_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    refused(tmp_path / "p.zip", "link a.png")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = zipped(tmp_path / "p.zip", {"a.png": bytes(8 * 2**20)}, compresslevel=9)
    assert path.stat().st_size < 20_000
    refused(path, "a.png", "8 MB")


def test_too_many_and_too_much_are_refused(tmp_path, monkeypatch):
    path = zipped(tmp_path / "p.zip", {f"{i}.txt": "x" * 100 for i in range(6)})
    monkeypatch.setattr(archive, "MAX_FILES", 5)
    refused(path, "6 files")
    monkeypatch.setattr(archive, "MAX_FILES", 6)
    monkeypatch.setattr(archive, "MAX_BYTES", 599)
    refused(path, "would unpack to")


def test_a_listing_that_lies_about_the_size_unpacks_no_more_than_it_says(tmp_path):
    path = zipped(tmp_path / "p.zip", {"a.txt": "x" * 5000})
    content = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        struct.pack_into("<I", content, content.index(magic) + offset, 10)
    path.write_bytes(content)
    refused(path, "damaged")


@pytest.mark.parametrize("content", [b"", b"dear diary", b"PK\x03\x04" + b"\0" * 60])
def test_what_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "p.zip").write_bytes(content)
    refused(tmp_path / "p.zip", "no zip or is damaged")


def test_a_locked_zip_is_refused(tmp_path):
    path = zipped(tmp_path / "p.zip", {"a.png": png()})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    refused(path, "password")


def test_a_zip_with_a_nameless_file_is_refused(tmp_path):
    path = zipped(tmp_path / "p.zip", {"a.png": png()})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 46] = 0  # names end at a zero
    path.write_bytes(content)
    refused(path, "has no name")


@pytest.mark.parametrize("name", ["missing", "missing.zip", "photos.rar"])
def test_what_is_neither_folder_nor_zip_is_refused(tmp_path, name):
    (tmp_path / "photos.rar").write_bytes(b"Rar!")
    refused(tmp_path / name, "is not a folder or a zip")


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_a_damaged_zip_is_read_or_refused_with_a_sentence(at, noise):
    content = bytearray(_GOOD)
    at %= len(content)
    content[at : at + len(noise)] = noise
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.zip"
        path.write_bytes(content)
        try:
            with unpacked(path) as unpacked_folder:
                inside = [*unpacked_folder.rglob("*")]
            assert all(unpacked_folder in p.parents for p in inside)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


with tempfile.TemporaryDirectory() as _folder:
    _GOOD = zipped(
        Path(_folder) / "p.zip", {"a/a.png": png(), "a/a.txt": "x" * 300, "b.txt": "y"}
    ).read_bytes()
