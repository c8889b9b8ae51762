"""The spectrum: exact to fp32, canonical signs, and a cache that is shared, trusted only when whole."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spectral_diffusion import spectrum, triplets
from spectral_diffusion.errors import InputError
from spectral_diffusion.spectrum import load_spectrum
from spectral_diffusion.triplets import Triplets, top_triplets

WEIGHTS = {
    "block.to_q": torch.randn(24, 20, generator=torch.Generator().manual_seed(1)),
    "block.to_k": torch.randn(16, 40, generator=torch.Generator().manual_seed(2)),
    "conv": torch.randn(12, 6, 1, 1, generator=torch.Generator().manual_seed(3)),
}


def matrix(rows: int, columns: int, decay: float, seed: int) -> torch.Tensor:
    """A random matrix whose singular values fall from 3 by the factor `decay` each."""
    noise = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(noise, full_matrices=False)
    return (U * (3 * decay ** torch.arange(len(S), dtype=torch.float64))) @ Vh


def equal(one: Triplets, other: Triplets) -> bool:
    return all(map(torch.equal, one, other))


def refuse(*_: object) -> None:
    raise AssertionError("an SVD was computed although the cache had it")


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    k=st.integers(1, 48),
    decay=st.sampled_from([1.0, 0.97, 0.8, 0.3]),
    seed=st.integers(0, 99),
)
def test_triplets_are_exact_orthonormal_and_signed_for_any_shape_and_decay(rows, columns, k, decay, seed):
    weight = matrix(rows, columns, decay, seed).float()
    U, S, V = top_triplets(weight, k)
    width = min(rows, columns)
    assert S.shape == (min(k, width),) and all(t.dtype == torch.float32 for t in (U, S, V))
    exact = torch.linalg.svdvals(weight.double())[: len(S)]
    assert torch.allclose(S.double(), exact, rtol=2e-6, atol=1e-7 * float(exact[0]))
    assert (weight @ V - U * S).abs().max() <= 2e-6 * S[0]
    assert (U.T @ U - torch.eye(len(S))).abs().max() < 5e-6
    assert (V.T @ V - torch.eye(len(S))).abs().max() < 5e-6
    assert (U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all()


def test_vectors_agree_with_a_float64_svd_where_the_spectrum_has_gaps():
    weight = matrix(30, 22, 0.8, 5)
    exact = torch.linalg.svd(weight, full_matrices=False).U[:, :10]
    U = top_triplets(weight, 10).U.double()
    assert (exact * (exact * U).sum(0).sign() - U).abs().max() < 1e-7, "only the rounding to fp32 is left"


def steep(rows: int, columns: int) -> torch.Tensor:
    return matrix(rows, columns, 0.9, 3).float()


def flat(rows: int, columns: int) -> torch.Tensor:
    return matrix(rows, columns, 1.0, 4).float()


def noisy(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", [noisy, flat, steep], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shape", [(300, 260), (256, 320)], ids=str)
def test_wide_weights_are_as_exact_as_fp32_allows(kind, shape):
    weight = kind(*shape)
    U, S, V = (t.double() for t in top_triplets(weight, 40))
    exact = torch.linalg.svdvals(weight.double())[:40]
    assert torch.allclose(S, exact, rtol=1e-6)
    assert (weight.double() @ V - U * S).norm(dim=0).max() <= 2e-6 * S[0]
    assert (weight.double().T @ U - V * S).norm(dim=0).max() <= 2e-6 * S[0]
    for side in (U, V):
        assert (side.T @ side - torch.eye(40)).abs().max() < 1e-6
    assert equal(top_triplets(weight, 40), top_triplets(weight, 40))


def test_wide_weights_take_fp32_where_it_is_exact_and_fp64_where_it_is_not(monkeypatch):
    taken = []
    exactly = triplets._in_float64
    monkeypatch.setattr(triplets, "_in_float64", lambda *given: taken.append(1) or exactly(*given))
    top_triplets(noisy(300, 260), 8)
    assert not taken
    top_triplets(steep(300, 260), 60)
    assert taken


@pytest.mark.parametrize("weight", [torch.zeros(6, 4), torch.ones(5, 7)], ids=["zero", "rank one"])
def test_a_weight_of_lacking_rank_still_has_orthonormal_columns(weight):
    U, S, V = top_triplets(weight, 4)
    assert torch.allclose(U.T @ U, torch.eye(4), atol=1e-6) and torch.allclose(
        V.T @ V, torch.eye(4), atol=1e-6
    )
    assert torch.allclose((U * S) @ V.T, weight, atol=1e-5)


def test_signs_do_not_depend_on_the_signs_or_the_dtype_of_the_route():
    weight = matrix(20, 20, 0.9, 7)
    half = top_triplets(weight.float(), 6)
    double = top_triplets(weight, 6)
    mirrored = top_triplets(-weight.float(), 6)
    assert torch.allclose(half.U, double.U, atol=1e-5) and torch.allclose(half.V, double.V, atol=1e-5)
    assert torch.allclose(mirrored.U, half.U, atol=1e-5) and torch.allclose(mirrored.V, -half.V, atol=1e-5)


def test_a_convolution_is_its_matrix_and_other_shapes_are_refused():
    conv = WEIGHTS["conv"]
    assert equal(top_triplets(conv, 3), top_triplets(conv[..., 0, 0], 3))
    with pytest.raises(InputError, match="1x1"):
        top_triplets(torch.zeros(4, 4, 3, 3), 2)
    with pytest.raises(InputError, match="not finite"):
        top_triplets(torch.full((4, 4), torch.nan), 2)


def test_the_second_load_computes_nothing_and_is_equal(tmp_path, monkeypatch):
    steps = []
    first = load_spectrum(
        WEIGHTS, "abc", 8, tmp_path, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr(spectrum, "top_triplets", refuse)
    second = load_spectrum(WEIGHTS, "abc", 8, tmp_path)
    assert list(second) == list(WEIGHTS) and second.k == 8
    assert all(equal(first[name], second[name]) for name in WEIGHTS)
    assert len(first["conv"].S) == 6, "k is clipped to the width of the layer"


def test_a_larger_cache_serves_a_smaller_k_and_not_the_reverse(tmp_path, monkeypatch):
    large = load_spectrum(WEIGHTS, "abc", 8, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(spectrum, "top_triplets", refuse)
        small = load_spectrum(WEIGHTS, "abc", 3, tmp_path)
        with pytest.raises(AssertionError):
            load_spectrum(WEIGHTS, "abc", 9, tmp_path)
    assert small.k == 3 and torch.equal(small["block.to_q"].U, large["block.to_q"].U[:, :3])


def test_two_loads_at_once_compute_each_layer_once(tmp_path, monkeypatch):
    computed = []
    original = spectrum.top_triplets
    monkeypatch.setattr(spectrum, "top_triplets", lambda w, k: computed.append(k) or original(w, k))
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: load_spectrum(WEIGHTS, "abc", 4, tmp_path), range(2))
    assert len(computed) == len(WEIGHTS) and all(equal(one[name], other[name]) for name in WEIGHTS)


def test_another_base_or_another_set_of_layers_has_its_own_cache(tmp_path, monkeypatch):
    load_spectrum(WEIGHTS, "abc", 2, tmp_path)
    load_spectrum(WEIGHTS, "abd", 2, tmp_path)
    load_spectrum({"conv": WEIGHTS["conv"]}, "abc", 2, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    monkeypatch.setattr(spectrum, "top_triplets", refuse)
    load_spectrum(WEIGHTS, "abc", 2, tmp_path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def one_bit_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(bytes(data))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def header_of_another_base(path: Path) -> None:
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(load_file(path), path, metadata={**header, "fingerprint": "other"})


def not_finite_but_checksummed(path: Path) -> None:
    tensors = load_file(path)
    tensors["conv.S"][0] = torch.nan
    header = {"format": spectrum.CACHE_FORMAT, "fingerprint": "abc", "k": "4"}
    save_file(tensors, path, metadata={**header, "sha256": spectrum._checksum(tensors)})


def a_layer_missing_but_checksummed(path: Path) -> None:
    tensors = {k: v for k, v in load_file(path).items() if not k.startswith("conv.")}
    header = {"format": spectrum.CACHE_FORMAT, "fingerprint": "abc", "k": "4"}
    save_file(tensors, path, metadata={**header, "sha256": spectrum._checksum(tensors)})


DAMAGES = [
    truncated,
    one_bit_flipped,
    emptied,
    header_of_another_base,
    not_finite_but_checksummed,
    a_layer_missing_but_checksummed,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_cache_is_computed_again_with_a_warning(tmp_path, damage):
    good = load_spectrum(WEIGHTS, "abc", 4, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    damage(path)
    with pytest.warns(UserWarning, match="computed again"):
        again = load_spectrum(WEIGHTS, "abc", 4, tmp_path)
    assert all(equal(good[name], again[name]) for name in WEIGHTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_spectrum(WEIGHTS, "abc", 4, tmp_path)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spectrum, "save_file", full_disk)
    with pytest.raises(OSError, match="space"):
        load_spectrum(WEIGHTS, "abc", 2, tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".lock"]


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(spectrum.CACHE_VARIABLE, str(tmp_path / "mine"))
    load_spectrum(WEIGHTS, "abc", 2)
    assert list((tmp_path / "mine").rglob("*.safetensors"))


def test_slices_and_prefixes_select_columns_and_layers(tmp_path):
    whole = load_spectrum(WEIGHTS, "abc", 6, tmp_path)
    part = whole.slice([4, 1])
    assert part.k == 2 and torch.equal(part["conv"].V, whole["conv"].V[:, [4, 1]])
    assert list(whole.under("block")) == ["to_q", "to_k"]
    with pytest.raises(InputError, match="column 7"):
        whole.slice([7])


@pytest.mark.parametrize(("fingerprint", "k"), [("../x", 2), ("", 2), ("abc", 0)])
def test_unusable_requests_are_refused(tmp_path, fingerprint, k):
    with pytest.raises(InputError):
        load_spectrum(WEIGHTS, fingerprint, k, tmp_path)
