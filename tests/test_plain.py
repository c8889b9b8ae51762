"""Files for other programs are plain safetensors, the same bytes each time, whole or absent."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spectral_diffusion import plain
from spectral_diffusion.errors import InputError
from spectral_diffusion.model_file import read_layout
from spectral_diffusion.plain import autov2, autov3, save_plain, sha256_of, write_plain

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4).half(), "c": torch.tensor(8.0)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_written_is_read_back_by_safetensors(tmp_path, dtype):
    save_plain(tmp_path / "x.safetensors", TENSORS, dtype, {"title": "dïng"})
    got = load_file(tmp_path / "x.safetensors")
    assert got.keys() == TENSORS.keys()
    assert all(got[key].dtype == dtype and got[key].equal(TENSORS[key].to(dtype)) for key in TENSORS)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata()["title"] == "dïng"
    assert read_layout(tmp_path / "x.safetensors").tensors.keys() == TENSORS.keys()


def test_order_and_process_do_not_change_a_byte(tmp_path):
    for name, tensors in (("1", TENSORS), ("2", dict(reversed(TENSORS.items())))):
        save_plain(tmp_path / name, tensors, torch.float16, dict.fromkeys(sorted("qwe", key=hash), "x"))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.dictionaries(st.text("ab.é", min_size=1), st.lists(st.integers(0, 4), max_size=3), min_size=1)
)
def test_any_shapes_and_names_are_read_back(tmp_path_factory, shapes):
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    draw = torch.Generator().manual_seed(0)
    tensors = {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}
    save_plain(path, tensors, torch.float32, {})
    got = load_file(path)
    assert got.keys() == tensors.keys() and all(got[key].equal(tensors[key]) for key in tensors)


def test_one_tensor_at_a_time_is_asked_for(tmp_path):
    asked = []

    def read(name):
        asked.append(name)
        return TENSORS[name]

    shapes = {key: tuple(tensor.shape) for key, tensor in TENSORS.items()}
    write_plain(tmp_path / "x", shapes, torch.float32, read, {})
    assert asked == sorted(TENSORS)


@pytest.mark.parametrize("bad", [torch.tensor([float("nan")]), torch.tensor([1e9])])
def test_a_number_that_half_precision_has_not_leaves_no_file(tmp_path, bad):
    with pytest.raises(InputError, match="z holds a number that is not finite"):
        write_plain(tmp_path / "x", {"z": (1,)}, torch.float16, lambda name: bad, {})
    assert not list(tmp_path.iterdir())


def test_the_hashes_are_those_of_a1111(tmp_path):
    """AutoV2: of the whole file. AutoV3: of what follows the header, so that metadata do not change it."""
    hashes = []
    for i, metadata in enumerate([None, {"ss_note": "edited"}]):
        save_file({"b": TENSORS["b"].clone()}, tmp_path / str(i), metadata)
        content = (tmp_path / str(i)).read_bytes()
        assert autov2(tmp_path / str(i)) == hashlib.sha256(content).hexdigest()[:10]
        hashes.append((autov2(tmp_path / str(i)), autov3(tmp_path / str(i))))
    data = hashlib.sha256(TENSORS["b"].numpy().tobytes()).hexdigest()[:12]
    assert [v3 for _, v3 in hashes] == [data, data]
    assert hashes[0][0] != hashes[1][0]


def test_a_whole_files_hash_is_kept_until_the_file_changes(tmp_path, monkeypatch):
    file = tmp_path / "base.safetensors"
    file.write_bytes(b"first")
    first = sha256_of(file)
    assert first == hashlib.sha256(b"first").hexdigest() and autov2(file) == first[:10]
    with monkeypatch.context() as patch:
        patch.setattr(plain, "_sha256", lambda path, start: pytest.fail("read again"))
        assert sha256_of(file) == first
    file.write_bytes(b"another")
    assert sha256_of(file) == hashlib.sha256(b"another").hexdigest()
