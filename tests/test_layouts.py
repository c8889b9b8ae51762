"""Every common layout of a training folder is recognised, and nothing in it is dropped silently."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from refusal import one_sentence

from concepts.layouts import find_layout
from spectral_diffusion.errors import InputError


def put(root, *names):
    """Files: pictures by their suffix, anything else a text that tells its own name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg"):
            Image.new("RGB", (8, 8)).save(path)
        else:
            path.write_text(f"text of {name}")
    return root


def table(folder, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def found(root):
    """[(picture, caption file or text, mask, repeats, words)] by paths in `root`."""

    def name(path):
        return path and path.relative_to(root).as_posix()

    rows = find_layout(root).sources
    return [(name(s.path), s.text or name(s.caption), name(s.mask), s.repeats, s.words) for s in rows]


def refused(root, *said):
    with one_sentence(*said, error=InputError):
        find_layout(root)


def test_a_plain_folder_with_sidecars(tmp_path):
    put(tmp_path, "b.png", "a.jpg", "a.txt", "b.caption", "mask/a.png", ".hidden.png")
    assert found(tmp_path) == [
        ("a.jpg", "a.txt", "mask/a.png", 1, None),
        ("b.png", "b.caption", None, 1, None),
    ]
    assert find_layout(tmp_path).kind == "plain folder"


@pytest.mark.parametrize("txt, caption, png", [("TXT", "CAPTION", "PNG"), ("Txt", "Caption", "Png")])
def test_companions_are_found_however_their_endings_are_written(tmp_path, txt, caption, png):
    put(tmp_path, "0.png", f"0.{txt}", "1.png", f"1.{caption}", "2.png")
    for name in (f"mask/0.{png}", f"2-masklabel.{png}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 255).save(tmp_path / name, "PNG")
    assert found(tmp_path) == [
        ("0.png", f"0.{txt}", f"mask/0.{png}", 1, None),
        ("1.png", f"1.{caption}", None, 1, None),
        ("2.png", None, f"2-masklabel.{png}", 1, None),
    ]


@pytest.mark.parametrize("home", [".", "dog project"])
def test_a_project_of_kohya_is_read_from_img_and_its_class_is_told(tmp_path, home):
    put(tmp_path / home, "img/10_sks dog/a.png", "img/10_sks dog/a.txt", "reg/1_dog/b.png", "log/x/events.out",
        "model/last.safetensors")  # fmt: skip
    layout = find_layout(tmp_path)
    assert [(s.path.name, s.repeats, s.words) for s in layout.sources] == [("a.png", 10, "sks dog")]
    assert layout.class_word == "dog"
    (note,) = layout.notes
    assert note.startswith("reg/ holds pictures of the class") and "class_photos" in note
    (kept,) = find_layout(tmp_path / home / "reg").sources
    assert kept.path.name == "b.png"


def test_masks_of_onetrainer_are_masks_and_no_photos(tmp_path):
    put(tmp_path, "a.jpg", "a-masklabel.png")
    assert found(tmp_path) == [("a.jpg", None, "a-masklabel.png", 1, None)]


@pytest.mark.parametrize("names", ["image caption mask", "Images captions MASKS"])
def test_the_folders_of_mix_of_show(tmp_path, names):
    image, caption, mask = names.split()
    put(tmp_path, f"{image}/1.jpg", f"{caption}/1.txt", f"{mask}/1.png")
    row = (f"{image}/1.jpg", f"{caption}/1.txt", f"{mask}/1.png", 1, None)
    assert found(tmp_path) == [row]
    assert find_layout(tmp_path / image).sources == find_layout(tmp_path).sources


def test_the_folders_of_kohya(tmp_path):
    put(tmp_path, "10_sks dog/a.png", "10_sks dog/a.txt", "3_dog/b.png", "0_dog/c.png")
    assert found(tmp_path) == [
        ("10_sks dog/a.png", "10_sks dog/a.txt", None, 10, "sks dog"),
        ("3_dog/b.png", None, None, 3, "dog"),
    ]
    layout = find_layout(tmp_path)
    assert layout.class_word == "dog"
    assert any("0_dog" in note for note in layout.notes)


def test_classes_that_differ_name_none(tmp_path):
    put(tmp_path, "10_dog/a.png", "3_cat/b.png")
    assert find_layout(tmp_path).class_word is None


def test_the_table_of_hugging_face(tmp_path):
    put(tmp_path, "train/a.png", "train/sub/b.png", "train/c.png", "train/c.txt", "train/extra.png")
    rows = [{"file_name": "sub/b.png", "text": " a  <TOK> "}, "", {"file_name": "a.png", "text": None}]
    table(tmp_path / "train", *rows, {"file_name": "c.png"}, {"file_name": "sub/b.png", "text": "again"})
    assert found(tmp_path) == [
        ("train/sub/b.png", "a <TOK>", None, 1, None),
        ("train/a.png", None, None, 1, None),
        ("train/c.png", "train/c.txt", None, 1, None),
        ("train/sub/b.png", "again", None, 1, None),
    ]
    assert find_layout(tmp_path).notes == ["extra.png is ignored: metadata.jsonl does not list it."]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", "is not JSON"),
        ("[1]", 'no "file_name"'),
        ({"text": "x"}, 'no "file_name"'),
        ({"file_name": 7}, 'no "file_name"'),
        ({"file_name": "gone.png"}, "gone.png, which is no picture there"),
        ({"file_name": "a.txt"}, "a.txt, which is no picture there"),
        ({"file_name": "../a.png"}, "own folder"),
        ({"file_name": "/a.png"}, "own folder"),
        ({"file_name": "a\0.png"}, "own folder"),
        ({"file_name": "a.png", "text": ["x"]}, "is no text"),
        ({"file_name": "a.png", "caption": {}}, '"caption" that is no text'),
    ],
)
def test_a_broken_line_of_the_table_is_told_by_its_number(tmp_path, line, said):
    put(tmp_path, "a.png", "a.txt")
    table(tmp_path, {"file_name": "a.png"}, line)
    refused(tmp_path, "metadata.jsonl line 2", said)


def test_a_table_that_is_empty_or_not_utf8_is_refused(tmp_path):
    put(tmp_path, "a.png")
    table(tmp_path)
    refused(tmp_path, "metadata.jsonl lists no picture")
    (tmp_path / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "Hündchen"}'.encode("latin-1"))
    refused(tmp_path, "metadata.jsonl is not UTF-8")


@given(st.text(max_size=60))
def test_any_line_is_read_or_refused_by_its_number(tmp_path_factory, line):
    folder = put(tmp_path_factory.mktemp("table"), "a.png")
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "a.png"}}\n{line}', encoding="utf-8", newline="")
    try:
        assert all(source.path == folder / "a.png" for source in find_layout(folder).sources)
    except InputError as error:
        assert "metadata.jsonl line" in str(error)


def test_folders_that_only_wrap_are_gone_through_and_circles_end(tmp_path):
    put(tmp_path / "deep", "x/y/10_dog/a.png")
    assert found(tmp_path / "deep") == [("x/y/10_dog/a.png", None, None, 10, "dog")]
    (tmp_path / "circle").mkdir()
    (tmp_path / "circle" / "again").symlink_to(tmp_path / "circle", target_is_directory=True)
    refused(tmp_path / "circle", "no picture")


def test_what_is_left_aside_is_told(tmp_path):
    put(tmp_path, "a.png", "old/b.png", "c.txt", "mask/d.png", "e.heic", "mask/a.png", "caption/a.txt")
    assert find_layout(tmp_path).notes == [
        "e.heic is ignored: only PNG, JPEG and WebP are read.",
        "old/ is not read: its 1 pictures are beside those in use.",
        f"{tmp_path.name}/c.txt belongs to no picture.",
        "mask/d.png belongs to no picture.",
    ]


def test_a_folder_without_pictures_is_refused(tmp_path):
    refused(tmp_path, "no picture")
    refused(put(tmp_path, "a.gif"), "only a.gif")
    refused(tmp_path / "a.gif", "is not a folder")
