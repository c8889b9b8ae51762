"""A fused file is the base plus the sum of its members' changes, exactly; taking it off leaves the base."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import random_concept, same, weights_of

from fusion.fuse import fuse
from spectral_diffusion.blocks import blocks_of
from spectral_diffusion.errors import BaseMismatch, DamagedFile, InputError, SliceTaken
from spectral_diffusion.fused import Fused, applied, content_hash, load_any, parse_strengths
from spectral_diffusion.generate import Request, generate


@pytest.fixture(scope="module")
def trio(base):
    forms = ("additive", "rotational", "additive")
    names = ("rex", "mia", "nox")
    return [random_concept(base, n, 3 * i, f, i) for i, (n, f) in enumerate(zip(names, forms, strict=True))]


def dense(concept, layer):
    """The weight change by the formulas of the paper, in fp64."""
    U, S, V, A, B, C = (concept.layers[layer][letter].double() for letter in "USVABC")
    if concept.form == "additive":
        return (U + A) @ torch.diag(S + C) @ (V + B).T - U @ torch.diag(S) @ V.T

    def cayley(X):
        K, one = (X - X.T) / 2, torch.eye(len(X), dtype=X.dtype)
        return (one - K) @ torch.linalg.inv(one + K)

    return U @ (cayley(A) @ torch.diag(S * (1 + C)) @ cayley(B).T - torch.diag(S)) @ V.T


def baked(base, fused):
    """The base's adapted weights while `fused` is applied."""
    with applied(base, fused):
        return {key: layer.weight.clone() for key, layer in base.layers.items()}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_fused_weight_is_the_base_plus_the_sum_in_any_order(base, pristine, trio, order):
    strengths = {"rex": 0.5, "mia": 1.0, "nox": 1.25}
    got = baked(base, fuse([trio[i] for i in order], strengths))
    assert same(got, baked(base, fuse(trio, strengths)))
    for layer in list(base.layers)[::17]:
        change = sum(strengths[c.name] * dense(c, layer) for c in trio)
        wanted = base.layers[layer].weight.double() + change.reshape(base.layers[layer].weight.shape)
        assert torch.allclose(got[layer].double(), wanted, atol=3e-7)


def test_the_change_is_linear_in_the_strength(trio):
    one = Fused.of(trio[0])
    layer = one.layers()[0]
    assert not one.with_strengths({"rex": 0}).delta(layer).any()
    assert one.with_strengths({"rex": 0.5}).delta(layer).equal(0.5 * one.delta(layer))
    assert torch.allclose(
        one.with_strengths({"rex": 3}).delta(layer), 3 * one.delta(layer), rtol=1e-5, atol=1e-7
    )


def test_strength_zero_of_all_is_the_base_bit_for_bit(base, trio):
    fused = fuse(trio, {"rex": 0, "mia": 0, "nox": 0})
    assert same(baked(base, fused), {key: layer.weight for key, layer in base.layers.items()})


@pytest.mark.parametrize("gone", ["rex", "mia", "nox"])
def test_without_a_member_the_rest_is_as_if_it_had_never_been_there(base, pristine, trio, gone):
    rest = fuse(trio).without(gone)
    alone = fuse([concept for concept in trio if concept.name != gone])
    assert rest.names == alone.names
    assert same(baked(base, rest), baked(base, alone))
    assert same(dict(rest.words), dict(alone.words))


def test_without_everything_is_the_bare_base(base, trio):
    nothing = Fused.of(trio[0]).without("rex")
    assert same(baked(base, nothing), {key: layer.weight for key, layer in base.layers.items()})


def test_a_fused_file_gives_back_the_same_bits(base, trio, tmp_path):
    fused = fuse(trio, {"mia": 0.7})
    fused.save(tmp_path / "1.safetensors")
    loaded = Fused.load(tmp_path / "1.safetensors")
    assert loaded.members == fused.members
    assert same(baked(base, fused), baked(base, loaded))
    assert same(dict(fused.words), dict(loaded.words))
    loaded.save(tmp_path / "2.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_a_concept_called_word_is_a_concept_like_any_other(base, tmp_path):
    fuse([random_concept(base, "word", 0), random_concept(base, "words", 3)]).save(tmp_path / "w.safetensors")
    loaded = Fused.load(tmp_path / "w.safetensors")
    assert list(loaded.words) == ["<word-1>", "<word-2>", "<words-1>", "<words-2>"]
    assert loaded.layers() == sorted(base.layers)


def test_a_fusion_of_one_draws_what_the_concept_draws(base, pristine, taught, tmp_path):
    fuse([taught.rex]).save(tmp_path / "one.safetensors")
    request = Request("a photo of <rex>", steps=2, seed=3)
    files = (taught.trained["rex"].path, tmp_path / "one.safetensors")
    alone, fused = (generate(base, request, load_any(file))[0] for file in files)
    assert alone.image.tobytes() == fused.image.tobytes()
    assert alone.made_with == fused.made_with
    bare = generate(base, replace(request, prompt="a photo of a dog"))[0]
    assert bare.image.tobytes() != alone.image.tobytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_base_is_restored_bit_for_bit_even_if_the_block_raises(base, pristine, trio, error):
    before = weights_of(base)
    with pytest.raises(error), applied(base, fuse(trio)):
        assert not same(weights_of(base), before)
        raise error
    assert same(weights_of(base), before)


def test_the_base_stays_if_a_change_cannot_be_baked(base, pristine, trio):
    fused = fuse(trio)
    layer = fused.layers()[40]
    p, q = fused.factors["rex"][layer]
    broken = replace(fused, factors={**fused.factors, "rex": {**fused.factors["rex"], layer: (p[:-1], q)}})
    with pytest.raises(DamagedFile, match="does not fit tiny"), applied(base, broken):
        raise AssertionError("never entered")


def test_a_fusion_of_another_base_is_refused_by_name(base, trio):
    other = replace(Fused.of(trio[0]), base_fingerprint="cd" * 32, base_name="chill")
    with (
        pytest.raises(BaseMismatch, match=r"over base chill \(cdcdcdcdcdcd\), not tiny"),
        applied(base, other),
    ):
        raise AssertionError("never entered")


@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf])
def test_a_strength_is_a_number_from_zero_on(trio, strength):
    with pytest.raises(InputError, match="strength of rex must be a number from 0 on"):
        Fused.of(trio[0]).with_strengths({"rex": strength})


def test_a_strength_of_a_stranger_lists_the_members(trio):
    with pytest.raises(InputError, match="bob is not in this fused file; it has rex, mia, nox"):
        fuse(trio).with_strengths({"bob": 1})
    with pytest.raises(InputError, match="bob is not in this fused file"):
        fuse(trio).without("bob")


@pytest.mark.parametrize("pair", ["rex", "rex=", "=1", "rex=x", "rex=1=2", "rex:1", " =1"])
def test_a_malformed_strength_is_refused_with_an_example(pair):
    with pytest.raises(InputError, match="is not name=number, such as rex"):
        parse_strengths([pair])


def test_a_strength_given_twice_is_refused():
    with pytest.raises(InputError, match="--strength is given twice for rex: say it once"):
        parse_strengths(["rex=0.8", "mia=1", "rex=0.7"])


def test_strengths_are_read():
    assert parse_strengths(["rex=0.8", "mia=1"]) == {"rex": 0.8, "mia": 1.0}


def test_the_content_hash_follows_the_numbers_not_their_order(trio):
    one = trio[0]
    turned = replace(one, layers=dict(reversed(one.layers.items())))
    assert content_hash(turned) == content_hash(one)
    layer = min(one.layers)
    changed = {**one.layers, layer: {**one.layers[layer], "C": one.layers[layer]["C"] + 1e-6}}
    assert content_hash(replace(one, layers=changed)) != content_hash(one)


# adjusting: every change is exact, and undone without a trace


def test_a_block_has_a_strength_of_its_own(base, pristine, trio):
    plain = fuse(trio)
    shaped = plain.with_blocks("mia", {"up.1": 0.5, "attn2": 0.0, "text": 2})
    for layer in base.layers:
        factor = {"up.1": 0.5}.get((*blocks_of(layer), "")[1], 1.0)
        factor *= 0.0 if "attn2" in layer else 2.0 if layer.startswith("text") else 1.0
        assert shaped.delta(layer).equal(plain.with_strengths({"mia": factor}).delta(layer))
    assert same(baked(base, shaped.with_blocks("mia", {})), baked(base, plain))


@pytest.mark.parametrize("blocks, said", [
    ({"up.9": 1}, "mia has no block 'up.9'; it has attn1, attn2, down"),
    ({"mid": -1}, "strength of mia in mid must be a number from 0 on, not -1.0"),
    ({"mid": math.nan}, "not nan"),
])  # fmt: skip
def test_a_wrong_block_is_told(trio, blocks, said):
    with pytest.raises(InputError, match=said):
        fuse(trio).with_blocks("mia", blocks)


@pytest.mark.parametrize("name", ["rex", "mia", "nox"])
def test_switched_off_is_as_if_dropped_and_on_again_is_as_before(base, pristine, trio, name):
    fused = fuse(trio, {"mia": 0.6})
    off = fused.switched(name, False)
    assert same(baked(base, off), baked(base, fused.without(name)))
    assert off.switched(name, True) == fused and off.names == fused.names


def test_a_member_is_added_as_if_it_had_been_there_from_the_start(base, pristine, trio):
    grown = fuse(trio[:2], {"rex": 0.5}).with_member(Fused.of(trio[2]))
    at_once = fuse(trio, {"rex": 0.5})
    assert same(baked(base, grown), baked(base, at_once))
    assert grown.members == at_once.members and same(dict(grown.words), dict(at_once.words))
    assert same(baked(base, grown.without("nox")), baked(base, fuse(trio[:2], {"rex": 0.5})))


def test_what_cannot_be_added_is_refused(base, trio):
    duo = fuse(trio[:2])
    with pytest.raises(InputError, match="rex is in this fused file already"):
        duo.with_member(Fused.of(trio[0]))
    with pytest.raises(SliceTaken, match=r"mia \(columns 3..5\) and bob \(columns 4..6\) overlap"):
        duo.with_member(Fused.of(random_concept(base, "bob", 4)))
    stranger = replace(Fused.of(trio[2]), base_fingerprint="cd" * 32, base_name="chill")
    with pytest.raises(BaseMismatch, match="nox was made over base chill, not over tiny"):
        duo.with_member(stranger)


def test_what_does_not_fit_is_not_added(base, trio):
    layer = min(trio[2].layers)
    factors = Fused.of(trio[2]).factors["nox"]
    p, q = factors[layer]
    grown = replace(Fused.of(trio[2]), factors={"nox": {**factors, layer: (torch.cat([p, p]), q)}})
    with pytest.raises(BaseMismatch, match=f"rex and nox do not fit each other in layer {layer}"):
        fuse(trio[:2]).with_member(grown)


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_members_keep_their_columns_through_a_merge(base, trio, tmp_path, method):
    fused = fuse(trio[:2], method=method)
    assert [str(member.slice) for member in fused.members] == ["0..2", "3..5"]
    with pytest.raises(SliceTaken, match=r"mia \(columns 3..5\) and bob \(columns 4..6\) overlap"):
        fused.with_member(Fused.of(random_concept(base, "bob", 4)))
    fused.save(tmp_path / "x.safetensors")
    assert Fused.load(tmp_path / "x.safetensors").members == fused.members


def test_adjustments_survive_the_file(base, trio, tmp_path):
    fused = fuse(trio, {"rex": 0.5}).with_blocks("mia", {"up.1": 0.25}).switched("nox", False)
    fused.save(tmp_path / "f.safetensors")
    loaded = Fused.load(tmp_path / "f.safetensors")
    assert (loaded.members, loaded.norm_cap, loaded.made) == (fused.members, fused.norm_cap, fused.made)
    assert same(baked(base, loaded), baked(base, fused))
