"""Every method gives an adjustable fused file; least-squares ones solve the problem they state."""

import warnings
from dataclasses import replace

import peft.utils.merge_utils as peft_merges
import pytest
import torch
from conftest import random_concept
from hypothesis import given, settings
from hypothesis import strategies as st
from refusal import one_sentence
from small_concept import make_concept

from fusion import filters, merges
from fusion.filters import Weights, filter_layer, lbfgs, misfit
from fusion.fuse import fuse
from fusion.methods import METHODS
from fusion.recorded import Recorded, gather
from spectral_diffusion.activations import Recording
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused

QUICK = Recording(steps=1, seeds=(0,))


@pytest.fixture(scope="module")
def trio(base):
    """Rotations in disjoint slices, so that every method can combine them."""
    return [random_concept(base, n, 3 * i, "rotational", i) for i, n in enumerate(("rex", "mia", "nox"))]


@pytest.fixture(scope="module")
def recorded(base, trio):
    """Random moments: positive definite, different for each concept."""

    def moments(seed):
        draw = torch.Generator().manual_seed(seed)
        rows = {k: torch.randn(40, layer.weight.shape[1], generator=draw) for k, layer in base.layers.items()}
        return {key: x.T @ x / len(x) for key, x in rows.items()}

    return Recorded({concept.name: moments(i) for i, concept in enumerate(trio)}, moments(9))


def orthonormal(concept):
    """The concept with columns that are what singular vectors are: orthonormal, and of no other slice."""
    layers = {}
    for key, numbers in concept.layers.items():
        sides = {}
        for letter in "UV":
            draw = torch.Generator().manual_seed(len(numbers[letter]))
            basis = torch.linalg.qr(torch.randn(len(numbers[letter]), 32, generator=draw)).Q
            sides[letter] = basis[:, concept.slice.start : concept.slice.end].contiguous()
        layers[key] = {**numbers, **sides}
    return replace(concept, layers=layers)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_fused_file_of_all_concepts_still_adjustable(
    base, pristine, trio, recorded, tmp_path, method
):
    concepts = [orthonormal(concept) for concept in trio]
    options = {"steps": 2, "drawings": 1} if method == "distilled" else {}
    how = {"base": base} if method == "distilled" else {}
    fused = fuse(concepts, {"mia": 0.5}, method, options=options, recorded=recorded, **how)
    fused.save(tmp_path / "trio.safetensors")
    loaded = Fused.load(tmp_path / "trio.safetensors")
    assert loaded.members == fused.members and loaded.names == ["rex", "mia", "nox"]
    wanted = {"method": method, "options": {**METHODS[method].options, **options}}
    if METHODS[method].needs_inputs:
        wanted["recording"] = Recording().facts()
    if method == "distilled":
        wanted["measured"] = fused.made["measured"]
    assert loaded.made == wanted
    layer = fused.layers()[7]
    free = loaded.with_norm_cap(None)
    parts = [free.without(one).without(two) for one, two in (("mia", "nox"), ("rex", "nox"), ("rex", "mia"))]
    assert torch.allclose(free.delta(layer), sum(part.delta(layer) for part in parts), atol=1e-5)
    assert not free.with_strengths(dict.fromkeys(free.names, 0)).delta(layer).any()


@pytest.mark.parametrize("method", METHODS)
def test_one_concept_alone_is_what_it_is(trio, base, method):
    alone, fused = Fused.of(trio[0]), fuse(trio[:1], method=method, base=base)
    assert all(fused.delta(layer).equal(alone.delta(layer)) for layer in alone.layers())


def test_every_method_says_whose_it_is_in_one_line():
    for method in METHODS.values():
        assert method.whose in ("the paper's", "ours", "others'")
        assert method.says and "\n" not in method.says


@pytest.mark.parametrize(
    "method, options, said",
    [
        ("spectral", {"density": 0.5}, "spectral has no option 'density'; it has none"),
        ("filtered", {"neutrel": 1}, "filtered has no option 'neutrel'; it has own, others, neutral, ridge"),
        ("filtered", {"neutral": "much"}, "neutral of the method filtered must be a number, not 'much'"),
        ("filtered", {"neutral": -1.0}, "neutral must be a number from 0 on, not -1.0"),
        ("filtered", {"ridge": 0}, "own and ridge must be above 0"),
        ("filtered", {"own": float("nan")}, "own must be a number from 0 on, not nan"),
        ("ties", {"density": 0}, "density must be above 0 and at most 1, not 0"),
        ("dare", {"density": 1.5}, "density must be above 0 and at most 1, not 1.5"),
        ("dare", {"seed": 0.5}, "seed must be a whole number from 0 on"),
        ("svd", {"rank": 1.5}, "rank must be a whole number from 1 on"),
        ("distilled", {"steps": 0}, "steps must be a whole number from 1 on, not 0"),
        ("distilled", {"batch": 2.5}, "batch must be a whole number from 2 on, not 2.5"),
        ("distilled", {"rate": float("nan")}, "rate must be a number from 0 on, not nan"),
        ("distilled", {"seed": 10**30}, "seed must be below 4294967296, not 1000000"),
        ("filtered", {"own": 10**400}, "own of the method filtered is too large a number"),
        ("distilled", {"neutral": 1}, "neutral must be at least 0 and below 1, not 1"),
    ],
)
def test_a_wrong_option_is_told(trio, recorded, method, options, said):
    with pytest.raises(InputError, match=said):
        fuse(trio, method=method, options=options, recorded=recorded)


def test_methods_that_need_inputs_say_so(trio, recorded):
    with pytest.raises(InputError, match="The method filtered works on the base itself: give the base"):
        fuse(trio, method="filtered")
    with pytest.raises(InputError, match="The inputs of mia are not recorded"):
        fuse(trio, method="filtered", recorded=replace(recorded, own={"rex": recorded.own["rex"]}))


def test_orthogonal_refuses_concepts_that_read_the_same(trio):
    same = replace(trio[1], layers=trio[0].layers)
    with pytest.raises(InputError, match=r"rex and mia were not trained on orthogonal inputs \(overlap 1,"):
        fuse([trio[0], same], method="orthogonal")


def test_orthogonal_refuses_random_loras_and_takes_those_of_one_basis():
    """Random spaces of r in n dimensions share r / n: a bound that is not relative to it lets them pass."""

    def lora(name, Q):
        layers = {"unet.mid_block.to_q": {"P": torch.randn(8, 4), "Q": Q}}
        return make_concept(form="lora", name=name, rank=4, slice=None, rows=1, layers=layers)

    for width in (64, 320, 1280):
        draw = torch.Generator().manual_seed(width)
        random = [torch.randn(width, 4, generator=draw) for _ in range(2)]
        pair = [lora(name, Q) for name, Q in zip(("rex", "mia"), random, strict=True)]
        with one_sentence("rex and mia were not trained on orthogonal inputs", f"have {4 / width:.2g}"):
            fuse(pair, method="orthogonal")
        basis = torch.linalg.qr(torch.cat(random, dim=1)).Q.half().float()  # as a file keeps it
        apart = [lora("rex", basis[:, :4]), lora("mia", basis[:, 4:])]
        assert fuse(apart, method="orthogonal").names == ["rex", "mia"]


# least squares: inputs X (in, samples), so that the moment is X X^T / samples


def problem(seed, concepts=3, out=4, width=6, rank=2, samples=30):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    names = ["rex", "mia", "nox", "dot"][:concepts]
    factors = {name: (normal(out, rank), normal(width, rank)) for name in names}
    inputs = {name: normal(width, width) @ normal(width, samples) for name in names}
    neutral = normal(width, samples)
    return factors, inputs, neutral


def moment(x):
    return x @ x.T / x.shape[1]


def solve(factors, inputs, neutral, weights):
    return filter_layer(factors, {n: moment(x) for n, x in inputs.items()}, moment(neutral), weights)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 3), st.floats(0.1, 3), st.floats(0.1, 3))
def test_the_filter_is_the_least_squares_solution(seed, own, others, neutral):
    """Against a dense solve of the stacked problem, for ΔW of full row rank (where the filter is unique)."""
    factors, inputs, plain = problem(seed, rank=4)
    weights = Weights(own, others, neutral, ridge=1e-3)
    filtered = solve(factors, inputs, plain, weights)
    for name, (P, Q) in factors.items():
        change = P @ Q.T
        scaled = {n: x * ((own if n == name else others) / x.shape[1]) ** 0.5 for n, x in inputs.items()}
        square = sum(moment(x).diagonal().mean() for x in inputs.values()) / len(inputs)
        ridge = (1e-3 * square) ** 0.5 * torch.eye(len(Q), dtype=torch.float64)
        rows = torch.cat([*scaled.values(), plain * (neutral / plain.shape[1]) ** 0.5, ridge], dim=1)
        wanted = [change @ x if n == name else 0 * (change @ x) for n, x in scaled.items()]
        wanted = torch.cat([*wanted, torch.zeros(len(P), rows.shape[1] - sum(w.shape[1] for w in wanted))], 1)
        solution = torch.linalg.lstsq(rows.T, wanted.T).solution.T
        p, q = filtered[name]
        assert p is P and q.shape == Q.shape
        assert torch.allclose(p @ q.double().T, solution, atol=1e-4 * float(solution.abs().max() + 1))


def test_gradient_fusion_is_the_sum_of_filtered_members_and_no_worse_than_its_lbfgs():
    factors, inputs, plain = problem(3, width=12, samples=20)
    own = {name: moment(x) for name, x in inputs.items()}
    wanted = {name: p @ q.T for name, (p, q) in factors.items()}
    closed = sum(
        p @ q.double().T for p, q in solve(factors, inputs, plain, Weights(neutral=0, ridge=1e-9)).values()
    )
    free = torch.linalg.solve(sum(own.values()), sum(wanted[n] @ own[n] for n in wanted).T).T
    assert torch.allclose(closed, free, atol=1e-4)
    best = misfit(closed, wanted, own)
    assert best <= misfit(lbfgs(wanted, own, iterations=50), wanted, own) * (1 + 1e-5)
    assert best < misfit(sum(wanted.values()), wanted, own)
    assert best < misfit(sum(wanted.values()) / 3, wanted, own)


def test_moments_that_rounding_left_indefinite_are_solved_all_the_same():
    total = torch.diag(torch.tensor([1.0, 1.0, -1e-8, 0.0], dtype=torch.float64))
    root = filters.root_of(total)
    assert torch.allclose(root @ root.T, total, atol=1e-6) and root.isfinite().all()
    exact = torch.diag(torch.arange(1.0, 4, dtype=torch.float64))
    assert torch.allclose(filters.root_of(exact) @ filters.root_of(exact).T, exact, atol=1e-15)


def test_concepts_that_read_different_directions_pass_whole_and_touch_nothing_else():
    width = torch.eye(6, dtype=torch.float64)
    inputs = {"rex": width[:, :2], "mia": width[:, 2:4]}
    draw = torch.Generator().manual_seed(0)
    factors = {n: tuple(torch.randn(6, 2, generator=draw, dtype=torch.float64) for _ in "PQ") for n in inputs}
    filtered = solve(factors, inputs, width[:, 4:], Weights(ridge=1e-9))
    for name, (p, q) in filtered.items():
        before, after = factors[name][0] @ factors[name][1].T, p @ q.double().T
        for other, x in inputs.items():
            assert torch.allclose(after @ x, before @ x if other == name else 0 * x, atol=1e-6)
        assert torch.allclose(after @ width[:, 4:], torch.zeros(6, 2, dtype=torch.float64), atol=1e-6)


def test_a_concept_that_reads_what_all_read_is_shared_out():
    factors, inputs, _ = problem(1, concepts=2)
    shared = {name: inputs["rex"] for name in inputs}
    filtered = solve(factors, shared, inputs["rex"], Weights(ridge=1e-9))
    for name, (p, q) in filtered.items():
        wanted = factors[name][0] @ factors[name][1].T / 3  # two concepts and the neutral demand
        assert torch.allclose(p @ q.double().T, wanted, atol=1e-5)


def test_the_more_neutral_counts_the_less_acts_on_neutral_inputs():
    factors, inputs, plain = problem(2)
    acted = []
    for neutral in (0.0, 1.0, 10.0, 100.0):
        p, q = solve(factors, inputs, plain, Weights(neutral=neutral))["rex"]
        acted.append(float((p @ q.double().T @ plain).norm()))
    assert acted == sorted(acted, reverse=True) and acted[-1] < 0.2 * acted[0]


# merges of others, with PEFT's functions


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.2, 1))
def test_the_shares_of_ties_and_dare_add_up_to_what_peft_makes_of_them(seed, count, density):
    changes = list(torch.randn(count, 3, 5, generator=torch.Generator().manual_seed(seed)))
    ones = torch.ones(count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about a density of 1
        merged = peft_merges.ties(changes, ones, density)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            dared = peft_merges.dare_linear(changes, ones, density)
    assert torch.allclose(sum(merges.ties_shares(changes, density)), merged, atol=1e-6)
    assert torch.allclose(sum(merges.dare_shares(changes, density, 7)), dared, atol=1e-6)


def test_dare_drops_other_places_in_every_layer():
    ones = {f"unet.mid_block.{key}": (torch.ones(16, 1), torch.ones(16, 1)) for key in ("to_q", "to_k")}
    layers = {layer: {"P": p, "Q": q} for layer, (p, q) in ones.items()}
    concept = make_concept(form="lora", rank=1, slice=None, rows=1, layers=layers)
    both = [concept, make_concept(name="bob", form="lora", rank=1, slice=None, rows=1, layers=layers)]
    one, two = fuse(both, method="dare").factors["rex"].values()
    again = fuse(both, method="dare").factors["rex"].values()
    assert not one[0].equal(two[0]) and all(x[0].equal(y[0]) for x, y in zip((one, two), again, strict=True))


@pytest.mark.parametrize("method", ["ties", "dare", "svd"])
def test_a_strength_scales_the_share_that_was_computed_at_full_strength(trio, method):
    layer = min(trio[0].layers)
    weak, full = fuse(trio, {"mia": 0.5}, method), fuse(trio, method=method)
    assert weak.delta(layer).equal(full.with_strengths({"mia": 0.5}).delta(layer))


def test_dare_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    merges.dare_shares([torch.ones(3, 3)], 0.5)
    assert torch.get_rng_state().equal(before)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 8))
def test_the_svd_cut_is_the_best_of_its_rank(seed, count, rank):
    draw = torch.Generator().manual_seed(seed)
    factors = [(torch.randn(6, 2, generator=draw), torch.randn(5, 2, generator=draw)) for _ in range(count)]
    summed = sum(p @ q.T for p, q in factors)
    U, S, Vh = torch.linalg.svd(summed)
    best = U[:, : min(rank, 5)] @ torch.diag(S[:rank]) @ Vh[:rank]
    assert torch.allclose(sum(p @ q.T for p, q in merges.svd_shares(factors, rank)), best, atol=1e-4)


def test_filtered_concepts_act_less_on_what_others_read(base, pristine, trio, tmp_path):
    parts = [Fused.of(concept) for concept in trio]
    recorded = gather(base, parts, QUICK, tmp_path)
    plain, filtered = fuse(parts, norm_control=False), fuse(parts, method="filtered", recorded=recorded)

    def leaks(fused):
        changes = {layer: p @ q.T for layer, (p, q) in fused.factors["rex"].items()}
        others = {layer: {n: recorded.own[n][layer] for n in ("mia", "nox")} for layer in changes}
        return sum(
            misfit(c, {n: 0 * c for n in others[layer]}, others[layer]) for layer, c in changes.items()
        )

    assert leaks(filtered) < 0.5 * leaks(plain)
