"""The benchmarks compare like with like: the same work on every side, nothing left behind, what is written is read."""

import copy
import json
import sys

import pytest
import torch
from torch import nn

from benchmarks import __main__ as entry
from benchmarks import adapter, files, gradient, growth, record, spectrum, step
from benchmarks.sd15 import Model, Step
from benchmarks.sides import SIDES, adapt, layers, strip
from spectral_diffusion.base import load_base
from spectral_diffusion.triplets import top_triplets

SIZES = [(12, 12, 5), (16, 12, 3)]


def test_every_benchmark_is_listed_with_what_it_does(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    entry.main()
    told = capsys.readouterr().out
    for name in ("adapter", "step", "memory", "spectrum", "files", "gradient", "growth", "full_size"):
        assert f"  {name} " in told
    assert all(about.endswith((".", ":")) or len(about) > 20 for about in entry.listed().values())
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit, match="no benchmark 'speed'"):
        entry.main()


@pytest.mark.parametrize("side", SIDES)
def test_every_side_starts_as_the_frozen_model_and_is_taken_off_again(side):
    torch.manual_seed(0)
    model = nn.ModuleList(adapter.Layer(out, width) for out, width, _ in SIZES)
    before, x = copy.deepcopy(model.state_dict()), torch.randn(1, 5, 12)
    plain = [layer(x).detach() for layer in model]
    numbers = adapt(model, side, 2)
    assert bool(numbers) == (side != "frozen")
    if side != "rebuilt":  # of random U, S, V, which are no SVD of the weight
        assert all(torch.equal(layer(x), answer) for layer, answer in zip(model, plain, strict=True))
    strip(model)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(after[key].equal(before[key]) for key in before)


def test_the_dense_weight_and_our_adapter_learn_the_same_from_the_same_step():
    grads = []
    for side in ("additive", "dense"):
        torch.manual_seed(0)
        model = nn.ModuleList(adapter.Layer(out, width) for out, width, _ in SIZES[:1])
        numbers = adapt(model, side, 2)
        x = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(1))
        model[0](x).square().sum().backward()
        grads.append([p.grad for p in numbers])
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(*grads, strict=True))


def test_the_layers_are_those_of_stable_diffusion():
    assert len(adapter.sizes()) == 176 and len(adapter.one_of_each()) == 8
    assert sum(spectrum.shapes().values()) == 176


def test_a_pass_of_all_sides_is_timed_in_turn():
    found = adapter.measured(list(SIDES), 2, SIZES, rounds=2)
    assert {len(each) for each in found.values()} == {2} and min(min(each) for each in found.values()) > 0
    told = adapter.summary(found)
    assert set(told["ours / lora"]) == {"additive", "rotational"} and "rebuilt / ours" in told


def test_turns_alternate_and_the_ratio_is_the_median_over_rounds():
    order = []
    record.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert record.ratio({"a": [2, 2, 9], "b": [1, 2, 3]}, "a", "b") == 2


@pytest.mark.parametrize("side", SIDES)
def test_a_whole_step_trains_every_side_and_only_its_numbers(base, side):
    parts = (copy.deepcopy(part) for part in (base.pipeline.unet, base.pipeline.text_encoder))
    model = Model(*parts)
    before = [copy.deepcopy(part.state_dict()) for part in model]
    run = Step(model, side, latents=8, rank=2, vocabulary=60)
    first = [number.detach().clone() for number in run.numbers]
    assert run() > 0
    moved = [not number.equal(old) for number, old in zip(run.numbers, first, strict=True)]
    assert all(number.grad is None for number in run.numbers)
    assert any(moved) == (side != "frozen")
    for part, old in zip(model, before, strict=True):
        strip(part)
        assert all(tensor.equal(old[key]) for key, tensor in part.state_dict().items())
        assert layers(part)


def test_rounds_of_an_earlier_run_are_kept_if_they_answer_the_same_question(tmp_path):
    asked = {"latents": 64}
    record.write(tmp_path / "x.json", {"asked": asked, "rounds": {"lora": [1.0]}})
    assert step.earlier(tmp_path / "x.json", asked) == {"lora": [1.0]}
    assert step.earlier(tmp_path / "x.json", {"latents": 8}) == {}
    assert step.summary({"lora": [1.0], "additive": [1.1]})["ratios"] == {"additive / lora": 1.1}
    assert json.loads((tmp_path / "x.json").read_text())["machine"]["clock"] in record.CLOCKS


def test_the_spectrum_is_compared_with_the_svd_and_its_faults_are_those_of_fp32():
    told = spectrum.compared({(20, 16): 3, (16, 16): 2}, [2, 4], rounds=1)
    assert told["seconds by size"]["20x16"]["layers"] == 3 and set(told["svd / ours"]) == {"k=2", "k=4"}
    assert set(spectrum.cached({(20, 16): 2}, [3])["k=3"]) == {"first", "cached", "bytes"}
    weight = spectrum.random_weight((40, 30))
    good = spectrum.faults(weight, top_triplets(weight, 4))
    assert good["residual"] < 1e-6 and good["orthonormality"] < 1e-6
    wrong = top_triplets(weight, 4)
    assert spectrum.faults(weight, wrong._replace(S=1.01 * wrong.S))["residual"] > 1e-3


def test_files_are_made_read_and_measured_by_both_sides(base, base_folder, pristine, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RANK", 2)
    clock = files.Clock()
    fused = files.ours(base, tmp_path, clock)
    assert fused.names == list(files.NAMES)
    assert {"three fused", "baked", "taken off", "exported as peft"} <= set(clock.spent)
    files.theirs(load_base(str(base_folder)), fused, tmp_path, clock)
    assert clock.spent["diffusers: fuse_lora"] > 0
    assert files.size(tmp_path / "trio-peft") > 0 and files.size(tmp_path / "trio.safetensors") > 0


@pytest.mark.parametrize("inputs", [40, 3], ids=["many inputs", "few inputs"])
def test_gradient_fusion_is_solved_by_both_sides_and_no_worse_in_closed_form(inputs):
    told = gradient.run({"small": gradient.Layer(6, 12, inputs, 200)})["layers"]["small"]
    assert told["closed_residual"] >= 0
    assert told["closed_residual"] <= told["lbfgs_residual"] * 1.001 + 1e-5 and told["lbfgs_residual"] < 0.9
    assert min(told["closed_seconds"], told["lbfgs_seconds"]) >= 0 and told["speedup"] > 0


def test_gradient_fusion_is_written_where_the_others_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gradient, "LAYERS", {"small": gradient.Layer(4, 6, 9, 3)})
    monkeypatch.setattr(gradient, "QUICK", ("small",))
    monkeypatch.setattr(sys, "argv", ["gradient", "--quick"])
    gradient.main()
    assert list(json.loads((tmp_path / "outputs/benchmarks/gradient.json").read_text())["layers"]) == [
        "small"
    ]


def test_growth_with_the_number_of_concepts(base, pristine):
    told = growth.by_count(base, [1, 3], rank=2)
    assert told["3 concepts"]["bytes"] > told["1 concepts"]["bytes"]


def test_full_size_tells_how_long_rounding_and_the_model_hash_take(base, pristine, tmp_path):
    from benchmarks.full_size import random_concept, told
    from spectral_diffusion.fused import Fused
    from spectral_diffusion.plain import autov2

    (file := tmp_path / "base.safetensors").write_bytes(b"weights")
    record = told(base, Fused.of(random_concept(base)), file)
    assert record["Model hash"] == autov2(file) and 0 < record["merge_error, fp16"] < 1
    assert record["merge_error, fp16, s"] >= 0 and record["Model hash, s"] >= 0
