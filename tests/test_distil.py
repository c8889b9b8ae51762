"""A fused model is taught what its concepts say alone, and stays adjustable; the base is left as it was."""

from dataclasses import replace

import pytest
import torch
from conftest import random_concept
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion import answers
from fusion.answers import ask, gather_answers
from fusion.distil import Course, balanced, distil
from fusion.fuse import fuse, summary
from spectral_diffusion.errors import BaseMismatch, InputError
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.words import layerwise

QUICK = Course(steps=25, drawings=1, batch=6, rate=5e-3)


@pytest.fixture(scope="module")
def parts(base):
    return [Fused.of(random_concept(base, n, 3 * i, seed=i)) for i, n in enumerate(("rex", "mia"))]


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_balanced_factors_have_the_same_product_and_sides_of_one_size(out, width, rank, dead):
    draw = torch.Generator().manual_seed(out * 100 + width)
    columns = min(rank, out, width)
    p, q = 50 * torch.randn(out, columns, generator=draw), torch.randn(width, columns, generator=draw) / 50
    if dead:
        p[:, 0] = 0
    left, right = balanced(p, q)
    assert left.shape == p.shape and right.shape == q.shape
    assert torch.allclose(left @ right.T, p @ q.T, atol=1e-5 * float((p @ q.T).abs().max()) + 1e-9)
    assert torch.allclose(left.norm(dim=0), right.norm(dim=0), rtol=1e-3, atol=1e-6)


def test_an_answer_is_what_the_concept_alone_says_with_its_prompt_and_without(base, pristine, parts):
    asked = ask(base, parts[0], ["a photo of <rex>"], seed=3)
    assert len(asked) == 2 * answers.STEPS and set(asked.prompts) == {"a photo of <rex-1> <rex-2>", ""}
    unet = base.pipeline.unet
    with applied(base, parts[0]) as words, torch.no_grad(), layerwise(unet, words.layers):
        for i in (0, 1, 7):
            text = words.encode(base.pipeline.text_encoder, [asked.prompts[i]])
            said = unet(asked.noisy[i : i + 1], asked.timesteps[i : i + 1], text).sample[0]
            assert torch.allclose(said, asked.said[i], atol=1e-4)


def test_answers_are_asked_once_for_each_concept_base_and_number(
    base, pristine, parts, tmp_path, monkeypatch
):
    first = gather_answers(base, parts, 1, tmp_path)
    assert set(first) == {"rex", "mia", None}
    monkeypatch.setattr(answers, "ask", None)  # whoever asks now fails
    again = gather_answers(base, [parts[1].with_strengths({"mia": 0.5}), parts[0]], 1, tmp_path)
    for name, one in first.items():
        assert again[name].prompts == one.prompts and again[name].said.equal(one.said)
    with pytest.raises(TypeError):
        gather_answers(base, parts, 2, tmp_path)
    with pytest.raises(BaseMismatch):
        gather_answers(base, [replace(parts[0], base_fingerprint="other")], 1, tmp_path)


def test_a_fusion_comes_nearer_to_its_concepts_alone(base, pristine, parts):
    start = fuse(parts, {"mia": 0.5}, method="sum")
    seen = []
    found = distil(base, parts, start, QUICK, lambda *at: seen.append(at))
    assert found.after < 0.8 * found.before
    assert found.fused.members == start.members  # strengths, too, though taught at 1
    assert seen[-1] == ("teaching them together", 25, 25)
    for member, layers in start.factors.items():
        for key, (p, q) in layers.items():
            assert [x.shape for x in found.fused.factors[member][key]] == [p.shape, q.shape]


def test_twice_taught_is_twice_the_same_and_words_are_taught_as_well(base, pristine, parts):
    start = fuse(parts, method="sum")
    one, two = (distil(base, parts, start, replace(QUICK, steps=2)).fused for _ in range(2))
    layer = start.layers()[5]
    assert one.delta(layer).equal(two.delta(layer)) and not one.delta(layer).equal(start.delta(layer))
    assert one.words["<mia-1>"].equal(two.words["<mia-1>"])
    assert not one.words["<mia-1>"].equal(start.words["<mia-1>"])


def test_a_rate_that_ruins_the_fusion_is_told_and_the_base_is_as_it_was(base, pristine, parts):
    start = fuse(parts, method="sum")
    with pytest.raises(InputError, match="give a smaller rate, such as 2e"):
        distil(base, parts, start, replace(QUICK, steps=3, rate=1e4))


def test_without_rates_nothing_changes_but_rounding(base, pristine, parts):
    start = fuse(parts, method="sum")
    still = distil(base, parts, start, replace(QUICK, steps=2, rate=0.0, word_rate=0.0))
    assert still.after == still.before
    for layer in start.layers()[::7]:
        size = float(start.delta(layer).abs().max())
        assert torch.allclose(still.fused.delta(layer), start.delta(layer), atol=1e-5 * size)
    assert all(row.equal(start.words[token]) for token, row in still.fused.words.items())


def test_projections_and_layerwise_words_are_taught_as_well(base, pristine, parts):
    draw = torch.Generator().manual_seed(8)
    key = next(key for key in base.adaptable if key.endswith("proj_in"))
    out, width = base.adaptable[key].weight.shape[:2]
    p, q = torch.randn(out, 2, generator=draw), torch.randn(width, 2, generator=draw)
    words = {token: torch.randn(16, row.shape[1], generator=draw) for token, row in parts[0].words.items()}
    layers = {**parts[0].factors["rex"], key: (p, q)}
    part = replace(parts[0], factors={"rex": layers}, words=words)
    start = fuse([part, parts[1]], method="sum")
    taught = distil(base, [part, parts[1]], start, replace(QUICK, steps=3)).fused
    assert len(taught.words["<rex-1>"]) == 16 and not taught.delta(key).equal(start.delta(key))


def test_what_teaching_brought_is_kept_and_told(base, pristine, parts, tmp_path):
    told = []
    options = {"steps": 2, "drawings": 1}
    fused = fuse(
        parts, method="distilled", options=options, base=base, progress=lambda *at: told.append(at[0])
    )
    fused.save(tmp_path / "duo.safetensors")
    assert dict.fromkeys(told).keys() == {
        "recording what the layers read", "asking each concept", "teaching them together"
    }  # fmt: skip
    assert (
        "Taught: the error beside each concept alone went from"
        in summary(Fused.load(tmp_path / "duo.safetensors"))[-1]
    )
