"""A base is the concept's own, the same in another precision, or another: then only --portable takes it."""

from dataclasses import replace

import pytest
import torch
from command_line import run
from conftest import WIDTH, random_concept

from fusion.fuse import fuse
from spectral_diffusion import fused as fused_module
from spectral_diffusion.base import fingerprint, load_base
from spectral_diffusion.cast import suited
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import BaseMismatch
from spectral_diffusion.fused import Fused, applied
from spectral_diffusion.portable import is_rounding


def spectral_concept(base, name, start, form, size=0.01):
    """A concept on the base's real singular vectors, with small random numbers."""
    concept = random_concept(base, name, start, form, seed=start, rank=3)
    layers = {}
    for key, numbers in concept.layers.items():
        U, S, V = torch.linalg.svd(base.layers[key].weight.detach().flatten(1), full_matrices=False)
        chosen = slice(start, start + 3)
        layers[key] = {
            "U": U[:, chosen],
            "S": S[chosen],
            "V": V[chosen].T,
            **{k: size * numbers[k] for k in "ABC"},
        }
    return Concept(**{**vars(concept), "layers": layers}).rounded()


@pytest.fixture(scope="module")
def files(base):
    """By form; at the top of the spectrum and near its end."""
    made = {
        (form, start): Fused.of(spectral_concept(base, "rex", start, form))
        for form in ("additive", "rotational")
        for start in (0, WIDTH - 4)
    }
    made["both", 0] = fuse(
        [spectral_concept(base, "rex", 0, "additive"), spectral_concept(base, "mia", 3, "rotational")]
    )
    return made


@pytest.fixture
def altered_base(base_folder):
    """The tiny base after `change(weight)` on every adapted layer."""

    def run(change):
        base = load_base(str(base_folder))
        for layer in base.layers.values():
            layer.weight.data = change(layer.weight.data)
        return base

    return run


CASES = [("additive", 0), ("additive", WIDTH - 4), ("rotational", 0), ("rotational", WIDTH - 4), ("both", 0)]


@pytest.mark.parametrize("case", CASES)
def test_precisions_of_one_base_are_recognised(files, base, altered_base, case):
    file = files[case]
    assert file.relation(base) == "same"
    assert file.relation(altered_base(lambda w: w.half().float())) == "same"
    rounded = altered_base(lambda w: w.bfloat16().float())
    assert rounded.fingerprint != base.fingerprint
    assert file.relation(rounded) == "rounded"
    assert file.relation(altered_base(lambda w: w.half().bfloat16().float())) == "rounded"
    with applied(rounded, file):
        pass


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("much", [0.02, 1.0])
def test_another_base_is_another_even_if_it_is_near(files, altered_base, case, much):
    draw = torch.Generator().manual_seed(0)
    other = altered_base(lambda w: w + much * w.std() * torch.randn(w.shape, generator=draw))
    assert files[case].relation(other) == "other"
    with pytest.raises(BaseMismatch, match="--base"), applied(other, files[case]):
        raise AssertionError("not reached")


@pytest.mark.parametrize("form", ["additive", "rotational"])
def test_a_portable_file_acts_on_another_base_as_a_plain_lora(files, altered_base, form):
    other, file = altered_base(lambda w: w.flip(0)), files[form, 0]
    layer = file.layers()[5]
    before = other.layers[layer].weight.clone()
    pristine = fingerprint({key: module.weight for key, module in other.layers.items()})
    with applied(other, file.on_any_base().with_strengths({"rex": 0.5})):
        change = other.layers[layer].weight - before
        assert other.fingerprint == pristine
    assert torch.allclose(change, 0.5 * file.delta(layer), atol=1e-6)
    assert other.layers[layer].weight.equal(before)


def test_portable_is_a_choice_of_the_moment_not_of_the_file(files, tmp_path):
    files["both", 0].on_any_base().save(tmp_path / "x.safetensors")
    assert not Fused.load(tmp_path / "x.safetensors").portable


def test_a_base_of_another_size_is_refused_in_any_case(files, base, altered_base):
    small = altered_base(lambda w: w[:-1])
    for file in (files["additive", 0], files["additive", 0].on_any_base()):
        with pytest.raises(BaseMismatch), applied(small, file):
            raise AssertionError("not reached")


def test_no_layers_are_no_proof():
    assert not is_rounding([])


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("case", CASES)
def test_a_fusion_that_changes_one_side_is_recognised_by_the_other(files, altered_base, case, side):
    draw = torch.Generator().manual_seed(3)

    def changed(p, q):
        one = p if side == "outputs" else q
        mixed = torch.randn(len(one), len(one), generator=draw) @ one / len(one) ** 0.5
        return (mixed, q) if side == "outputs" else (p, mixed)

    factors = {n: {k: changed(*pq) for k, pq in layers.items()} for n, layers in files[case].factors.items()}
    file = replace(files[case], factors=factors)
    assert file.relation(altered_base(lambda w: w.bfloat16().float())) == "rounded"
    assert (
        file.relation(altered_base(lambda w: w + 0.02 * w.std() * torch.randn(w.shape, generator=draw)))
        == "other"
    )


def test_the_weights_are_compared_once_for_a_base_and_not_for_what_may_act_anywhere(
    files, altered_base, monkeypatch
):
    asked = []
    monkeypatch.setattr(fused_module, "is_rounding", lambda layers: asked.append(1) or False)
    other, file = altered_base(lambda w: w.flip(1)), files["additive", 0]
    for one in (file, file.with_strengths({"rex": 0.5}), file.on_any_base()):
        assert one.relation(other) == "other"
    assert suited(file, other, portable=True).portable
    with applied(other, file.on_any_base()):
        pass
    assert len(asked) == 1
    files["rotational", 0].on_any_base().check_base(other)
    assert len(asked) == 1
    assert files["rotational", 0].relation(other) == "other" and len(asked) == 2


def test_the_command_says_that_a_base_is_the_same_in_another_precision(files, base, altered_base, tmp_path):
    rounded = altered_base(lambda w: w.bfloat16().float())
    rounded.pipeline.save_pretrained(tmp_path / "rounded")
    files["both", 0].save(tmp_path / "duo.safetensors")
    how = ("generate", tmp_path / "duo.safetensors", "a <rex>", "--steps", 1, "-o", tmp_path / "out")
    result = run("spectral_diffusion", *how, "--base", tmp_path / "rounded")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "note: rounded is tiny in another precision" in result.stderr
