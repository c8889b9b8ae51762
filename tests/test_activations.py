"""What layers read in real runs is what is recorded, once per concept, base and recording."""

from dataclasses import replace

import pytest
import torch
from conftest import random_concept
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion import recorded
from fusion.recorded import gather
from spectral_diffusion import activations
from spectral_diffusion.activations import Meter, Recording, record, watched
from spectral_diffusion.errors import BaseMismatch, InputError
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.request import Request
from spectral_diffusion.words import Words, cross_attention_layers

QUICK = Recording(steps=1, seeds=(0,))


@pytest.fixture(scope="module")
def trio(base):
    return [random_concept(base, n, 3 * i, "rotational", i) for i, n in enumerate(("rex", "mia", "nox"))]


def test_a_meter_takes_the_mean_over_all_inputs_of_either_layout():
    meter, x = Meter(), torch.arange(24.0).reshape(2, 3, 4)
    meter.add("a", x[:1])
    meter.add("a", x[1:].permute(0, 2, 1)[..., None])  # as a 1x1 convolution reads it
    rows = x.reshape(6, 4)
    assert torch.allclose(meter.moments()["a"], rows.T @ rows / 6)


def test_what_a_real_run_feeds_each_layer_is_what_is_recorded(base, pristine, trio):
    moments = record(base, Fused.of(trio[0]), ["<rex>"], QUICK)
    assert moments.keys() == base.layers.keys()
    for key, m in moments.items():
        assert m.shape == (base.layers[key].weight.shape[1],) * 2 and m.dtype == torch.float32
        assert torch.allclose(m, m.T, atol=1e-4 * float(m.abs().max())) and float(m.trace()) > 0
    again = record(base, Fused.of(trio[0]), ["<rex>"], QUICK)
    assert all(again[key].equal(m) for key, m in moments.items())


def test_keys_and_values_read_the_encoded_words_of_the_concept(base, pristine, taught):
    how = Recording(prompts=("{}",), steps=1, seeds=(0,), cross_tokens="concept")
    for concept in (taught.rex, taught.mia):  # single words, layer-wise words
        fused = Fused.of(concept)
        moments = record(base, fused, [f"<{concept.name}>"], how)
        with applied(base, fused) as words, torch.no_grad():
            hidden = words.encode(base.pipeline.text_encoder, [f"<{concept.name}-1> <{concept.name}-2>"])
        keys = {id(layer): key for key, layer in base.layers.items()}
        for i, attention in enumerate(cross_attention_layers(base.pipeline.unet)):
            rows = hidden.chunk(words.layers, dim=1)[i if words.layers > 1 else 0][0, 1:3]
            got = moments[keys[id(attention.to_v)]]
            assert torch.allclose(got, rows.T @ rows / 2, atol=1e-5)


def test_which_tokens_count_is_a_choice(base, taught):
    words = Words(Fused.of(taught.rex).words, base.pipeline.tokenizer)
    counted = {
        which: activations._counted(words, "a photo of <rex-1> <rex-2> here", which).nonzero()[:, 0].tolist()
        for which in activations.TOKENS
    }
    assert counted == {"concept": [4, 5], "after": list(range(4, 77)), "all": list(range(77))}
    assert activations._counted(words, "a photo", "concept").all()


def test_a_recording_comes_back_from_plain_data():
    assert Recording.of(Recording(steps=3, seeds=(5,)).facts()) == Recording(steps=3, seeds=(5,))
    assert Recording.of({}) == Recording() and Recording.of({"guidance": 3}).guidance == 3


@pytest.mark.parametrize(
    "option", [{"text_tokens": "some"}, {"cross_tokens": ""}, {"prompts": ()}, {"seeds": ()}]
)
def test_an_impossible_recording_is_refused(option):
    with pytest.raises(InputError):
        Recording(**option)


def test_watching_ends_even_if_the_run_fails(base, pristine):
    with pytest.raises(RuntimeError), watched(base.layers, lambda layer, x: None):
        raise RuntimeError


def test_moments_are_recorded_once_and_a_damaged_cache_is_made_again(
    base, pristine, trio, tmp_path, monkeypatch
):
    parts = [Fused.of(concept, 0.3) for concept in trio[:2]]
    first = gather(base, parts, QUICK, tmp_path)
    assert first.own.keys() == {"rex", "mia"} and len(list(tmp_path.iterdir())) == 3
    made = []
    real = recorded.record
    monkeypatch.setattr(recorded, "record", lambda *a: made.append(a[2]) or real(*a))
    second = gather(base, parts, QUICK, tmp_path)
    assert not made
    assert all(second.own["rex"][key].equal(m) for key, m in first.own["rex"].items())
    next(tmp_path.glob("mia-*")).write_bytes(b"oops")
    third = gather(base, parts, QUICK, tmp_path)
    assert made == [["<mia>"]]
    assert all(third.own["mia"][key].equal(m) for key, m in first.own["mia"].items())
    assert gather(base, [parts[0].with_strengths({"rex": 1})], QUICK, tmp_path).own["rex"].keys()
    assert made[1:] == []  # a strength is no other concept, and the classes are the same


def test_inputs_are_recorded_on_the_concepts_own_base_only(base, trio, tmp_path):
    other = replace(Fused.of(trio[0]), base_fingerprint="cd" * 32)
    with pytest.raises(BaseMismatch):
        gather(base, [other], QUICK, tmp_path)


WILD = st.none() | st.booleans() | st.integers() | st.floats() | st.text("{}x!:0[", max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({}, optional={
    "prompts": WILD | st.lists(WILD, max_size=2),
    "seeds": WILD | st.lists(WILD, max_size=2),
    **dict.fromkeys(("steps", "guidance", "text_tokens", "cross_tokens"), WILD),
}))  # fmt: skip
def test_a_recording_that_is_accepted_can_be_drawn(table):
    try:
        how = Recording.of(table)
    except InputError as error:
        assert "\n" not in str(error)
        return
    for prompt in how.prompts:
        told_of = prompt.format("<rex>")
        assert "<rex>" in told_of
        for seed in how.seeds:
            Request(told_of, seed=seed, steps=how.steps, guidance=how.guidance)
    assert Recording.of(how.facts()) == how
