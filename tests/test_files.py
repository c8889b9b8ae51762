"""A file of ours is whole or absent, the same bytes each time, and refused with one sentence otherwise."""

import json
import subprocess
import sys
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from spectral_diffusion.errors import DamagedFile, InputError, SpectralError, errors_to_exit_code
from spectral_diffusion.files import (
    HEADER_KEY,
    atomic_folder,
    atomic_write,
    check_shapes,
    finite,
    load_tensors,
    read_header,
    save_tensors,
)
from spectral_diffusion.foreign import refuse_foreign

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}
SHAPES = {"a": (2, 3), "b": (4,)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "thing.safetensors"
    save_tensors(path, TENSORS, {"name": "dïng", "n": 3}, kind="thing")
    return path


def load(path):
    return load_tensors(path, kind="thing", expected=lambda header: SHAPES)


def test_what_is_written_is_read_back(path):
    tensors, header = load(path)
    assert header == {"name": "dïng", "n": 3} == read_header(path, kind="thing")
    assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)
    assert [tensors[key].dtype for key in "ab"] == [torch.float32, torch.float16]


def test_the_same_content_is_the_same_bytes_in_every_process(path, tmp_path):
    code = (
        "import torch, sys; from spectral_diffusion.files import save_tensors;"
        "save_tensors(sys.argv[1], {'a': torch.arange(6.).reshape(2, 3), 'b': torch.ones(4).half()},"
        " {'n': 3, 'name': 'dïng'}, kind='thing', metadata=dict.fromkeys('qwertyuiop', 'x'))"
    )
    copies = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for copy in copies:
        subprocess.run([sys.executable, "-c", code, str(copy)], check=True)
    assert copies[0].read_bytes() == copies[1].read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path):
    before = path.read_bytes()
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_write_makes_its_folder_with_ordinary_permissions(tmp_path):
    path = tmp_path / "new" / "folder" / "x.txt"
    with atomic_write(path) as file:
        file.write(b"x")
    (plain := tmp_path / "plain.txt").write_bytes(b"x")
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_folder_is_whole_or_absent_and_never_replaces_another(tmp_path):
    with atomic_folder(tmp_path / "new" / "folder") as folder:
        (folder / "x").write_text("x")
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "x").read_text() == "x"
    with pytest.raises(InputError, match="exists already"), atomic_folder(tmp_path / "new" / "folder"):
        raise AssertionError("not reached")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "half") as folder:
        (folder / "x").write_text("x")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(tmp_path, number):
    bad = {"a": torch.tensor([1.0, number])}
    with pytest.raises(InputError, match="a holds a number that is not finite"):
        save_tensors(tmp_path / "x.safetensors", bad, {}, kind="thing")
    assert not list(tmp_path.iterdir())
    save_file(bad, tmp_path / "x.safetensors", {HEADER_KEY: '{"kind": "thing", "version": 1}'})
    with pytest.raises(DamagedFile, match="a holds a number that is not finite"):
        load_tensors(tmp_path / "x.safetensors", kind="thing")


@given(
    size=st.integers(0, 300),
    bad=st.one_of(st.none(), st.sampled_from([float("nan"), float("inf"), -float("inf")])),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    data=st.data(),
)
def test_finite_finds_one_bad_number_anywhere(size, bad, dtype, data):
    tensor = torch.linspace(-5, 5, size).to(dtype)
    if bad is not None and size:
        tensor[data.draw(st.integers(0, size - 1))] = bad
    assert finite(tensor) is bool(tensor.isfinite().all())


PICKLE = b"\x80\x02}q\x00."
FOREIGN = {
    "x.pt": (PICKLE, "named like a pickle"),
    "x.ckpt": (PICKLE, "named like a pickle"),
    "x.bin": (b"anything", "named like a pickle"),
    "x.safetensors": (PICKLE, "is a pickle"),
    "page.safetensors": (b"\n <!DOCTYPE html><html>404</html>", "HTML page"),
    "html.safetensors": (b"<HTML>", "HTML page"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "text.safetensors": (b"a text that is certainly no tensor file" * 9, "not a safetensors file"),
    "empty.safetensors": (b"", "is empty"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_kinds_are_named_for_what_they_are(tmp_path, name):
    content, reason = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpectralError, match=reason) as refusal:
        load(tmp_path / name)
    assert name in str(refusal.value)


def test_a_torch_checkpoint_is_not_opened_under_any_name(tmp_path):
    torch.save(TENSORS, tmp_path / "x.safetensors")
    assert zipfile.is_zipfile(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="zip or pickle"):
        load(tmp_path / "x.safetensors")


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        load(tmp_path / "no.safetensors")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "x.safetensors"
    save_tensors(path, TENSORS, {}, kind="thing")
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DamagedFile):
        load(path)


def rewritten(path, tensors=TENSORS, header=None, **metadata):
    text = {} if header is None else {HEADER_KEY: header if isinstance(header, str) else json.dumps(header)}
    save_file(tensors, path, {**text, **metadata} or None)


GOOD = {"kind": "thing", "version": 1}
HEADERS = {
    "absent": (None, "not made by spectral-diffusion"),
    "not JSON": ("{", "header is not JSON"),
    "no object": ("[1]", "not a JSON object"),
    "deep": ("[" * 100_000, "header is not JSON"),
    "other kind": ({**GOOD, "kind": "concept"}, "is a concept file, not a thing file"),
    "no version": ({"kind": "thing"}, "format version None"),
    "later version": ({**GOOD, "version": 2}, "format version 2; this program reads version 1"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_wrong_header_is_refused(path, case):
    header, reason = HEADERS[case]
    rewritten(path, header=header)
    with pytest.raises(SpectralError, match=reason):
        load(path)
    with pytest.raises(SpectralError, match=reason):
        read_header(path, kind="thing")


CONTENTS = {
    "a is missing": {"b": TENSORS["b"]},
    "c is unexpected": {**TENSORS, "c": torch.zeros(1)},
    r"a is \[3, 2\], expected \[2, 3\]": {**TENSORS, "a": torch.zeros(3, 2)},
}


@pytest.mark.parametrize("reason", CONTENTS)
def test_missing_extra_and_misshapen_tensors_are_refused(path, reason):
    rewritten(path, CONTENTS[reason], GOOD)
    with pytest.raises(DamagedFile, match=reason):
        load(path)


def test_a_header_that_makes_no_sense_is_damage_not_a_crash(path):
    with pytest.raises(DamagedFile, match="header makes no sense"):
        load_tensors(path, kind="thing", expected=lambda header: {"a": header["shape"]})


def test_many_missing_names_stay_one_short_sentence():
    with pytest.raises(DamagedFile, match=r"k0, k1, k2 and 7 more are missing\."):
        check_shapes("x", {}, {f"k{i}": (1,) for i in range(10)})


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("no photo."), 2, "error: no photo.\n"),
        (OSError(28, "No space left on device"), 2, "error: The disk is full"),
        (KeyboardInterrupt(), 130, "error: interrupted.\n"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(capsys, error, code, said):
    with pytest.raises(SystemExit) as stop, errors_to_exit_code():
        raise error
    assert stop.value.code == code
    assert capsys.readouterr().err.startswith(said)


def test_our_own_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), errors_to_exit_code():
        _ = 1 / 0


@pytest.mark.parametrize("second", (2, 3, 4, 5))
def test_a_header_whose_length_reads_like_the_start_of_a_pickle_is_no_pickle(tmp_path, second):
    path, length = tmp_path / "x.safetensors", 0x80 + 0x100 * second
    empty = len(json.dumps({"__metadata__": {"x": ""}}, separators=(",", ":")))
    save_file({}, path, {"x": "a" * (length - empty)})
    assert path.read_bytes()[:2] == bytes([0x80, second])
    refuse_foreign(path)
