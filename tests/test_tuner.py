"""The adapter's layer: identity at the start, one weight change for every use, slices that do not touch."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectral_diffusion.errors import InputError
from spectral_diffusion.triplets import Triplets, top_triplets
from spectral_diffusion.tuner import Numbers, SpectralConfig, SpectralLayer
from spectral_diffusion.tuner.maths import FORMS, additive_factors, cayley_minus_identity, rotational_factors

WIDTH, OUT, R = 20, 16, 3
ADAPTERS = [
    pytest.param({"form": "additive"}, id="additive"),
    pytest.param({"form": "rotational"}, id="rotational"),
    pytest.param({"form": "additive", "slice_aware": True}, id="additive-slice_aware"),
    pytest.param({"form": "rotational", "slice_aware": True}, id="rotational-slice_aware"),
    pytest.param({"form": "additive", "isolated": True, "reserved": 12}, id="isolated"),
    pytest.param({"isolated": True, "reserved": 12, "slice_aware": True}, id="isolated-slice_aware"),
    pytest.param({"columns": [7, 2, 5]}, id="columns"),
]
every_adapter = pytest.mark.parametrize("options", ADAPTERS)
every_base = pytest.mark.parametrize("kind", ["linear", "conv"])


def base_layer(kind: str = "linear", dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return (nn.Linear(WIDTH, OUT) if kind == "linear" else nn.Conv2d(WIDTH, OUT, 1)).to(dtype)


def inputs(kind: str = "linear", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    shape = (2, 5, WIDTH) if kind == "linear" else (2, WIDTH, 3, 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def add(layer: SpectralLayer, name: str, **options) -> None:
    config = SpectralConfig(**({} if "columns" in options else {"r": R}) | options)
    layer.update_layer(name, config, top_triplets(layer.original_weight, config.columns_needed))


def adapted(base: nn.Module | None = None, **options) -> SpectralLayer:
    layer = SpectralLayer(base or base_layer(), "a")
    add(layer, "a", **options)
    return layer


def stir(layer: SpectralLayer, name: str = "a", size: float = 0.1, seed: int = 5) -> SpectralLayer:
    """Give an adapter numbers as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in layer.adapter_layer_names:
            parameter = getattr(layer, part)[name]
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return layer


def cosine(X: torch.Tensor, Y: torch.Tensor) -> float:
    return float(((X * Y).sum() / (X.norm() * Y.norm())).detach())


def random_slice(out: int, width: int, r: int, seed: int, size: float, form: str) -> tuple[Triplets, Numbers]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=generator, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    shapes = FORMS[form].shapes(out, width, r)
    numbers = Numbers(*(size * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes))
    return Triplets(U[:, :r], S[:r], Vh[:r].T), numbers


def dense_additive(triplets: Triplets, numbers: Numbers) -> torch.Tensor:
    """The paper's formula, as it is written."""
    (U, S, V), (A, B, C) = triplets, numbers
    return (U + A) @ torch.diag(S + C) @ (V + B).T - U @ torch.diag(S) @ V.T


def dense_rotational(triplets: Triplets, numbers: Numbers) -> torch.Tensor:
    (U, S, V), (A, B, C) = triplets, numbers

    def cayley(X: torch.Tensor) -> torch.Tensor:
        K, identity = (X - X.T) / 2, torch.eye(len(X), dtype=X.dtype)
        return (identity - K) @ torch.linalg.inv(identity + K)

    return U @ (cayley(A) @ torch.diag(S * (1 + C)) @ cayley(B).T - torch.diag(S)) @ V.T


slices = given(
    out=st.integers(4, 24),
    width=st.integers(4, 24),
    r=st.integers(1, 4),
    seed=st.integers(0, 999),
    size=st.sampled_from([1e-3, 0.1, 1.0]),
)


@settings(max_examples=40, deadline=None)
@slices
@pytest.mark.parametrize(
    ("form", "dense", "factors"),
    [("additive", dense_additive, additive_factors), ("rotational", dense_rotational, rotational_factors)],
)
def test_the_factors_are_the_papers_dense_formula(form, dense, factors, out, width, r, seed, size):
    triplets, numbers = random_slice(out, width, r, seed, size, form)
    P, Q = factors(triplets, numbers)
    assert P.shape[1] == Q.shape[1] == FORMS[form].rank_factor * r
    exact = dense(triplets, numbers)
    assert torch.allclose(P @ Q.T, exact, atol=1e-11 * (1 + float(exact.norm())))
    small = [tuple(t.float() for t in group) for group in (triplets, numbers)]
    P, Q = factors(Triplets(*small[0]), Numbers(*small[1]))
    assert (P @ Q.T - exact).norm() <= 3e-5 * exact.norm(), "fp32 keeps its digits: nothing cancels"


@settings(max_examples=30, deadline=None)
@given(r=st.integers(1, 6), seed=st.integers(0, 999), size=st.sampled_from([0.01, 1.0, 30.0]))
def test_the_cayley_transform_is_a_rotation(r, seed, size):
    X = size * torch.randn(r, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Q = torch.eye(r, dtype=torch.float64) + cayley_minus_identity(X)
    assert torch.allclose(Q @ Q.T, torch.eye(r, dtype=torch.float64), atol=1e-9)
    assert torch.linalg.det(Q) > 0


@pytest.mark.parametrize(("form", "capacity"), [("additive", 2 * R), ("lora", R), ("rotational", 0)])
def test_rank_capacity_is_2r_against_loras_r(form, capacity):
    """Lemma 3.1: the largest minus the smallest reachable rank of the tuned weight."""
    n = 12
    weight = torch.randn(n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(weight)
    triplets = Triplets(U[:, :R], S[:R], Vh[:R].T)

    def rank_after(P: torch.Tensor, Q: torch.Tensor) -> int:
        return int(torch.linalg.matrix_rank(weight + P @ Q.T, rtol=1e-9))

    if form == "lora":
        reached = [rank_after(-U[:, :cut] * S[:cut], Vh[:cut].T) for cut in range(R + 1)]
    elif form == "rotational":
        draws = (random_slice(n, n, R, seed, 2.0, form)[1] for seed in range(5))
        reached = [rank_after(*rotational_factors(triplets, numbers)) for numbers in draws]
    else:
        reached = [
            rank_after(*additive_factors(triplets, lowering(U, S, Vh, cut))) for cut in range(2 * R + 1)
        ]
    assert max(reached) == n and max(reached) - min(reached) == capacity


def lowering(U: torch.Tensor, S: torch.Tensor, Vh: torch.Tensor, cut: int) -> Numbers:
    """Numbers with which the tuned weight loses `cut` ranks: the slice's own and r of the rest."""
    A, B, C = torch.zeros(len(U), R).double(), torch.zeros(len(U), R).double(), torch.zeros(R).double()
    C[:cut] = -S[:R][:cut]
    for j in range(max(0, cut - R)):
        # The j-th product becomes minus the (r + j)-th triplet of the rest.
        C[j], A[:, j], B[:, j] = -S[j] - S[R + j], U[:, R + j] - U[:, j], Vh[R + j] - Vh[j]
    return Numbers(A, B, C)


@every_base
@every_adapter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_new_adapter_is_exactly_the_base(kind, options, dtype):
    base = base_layer(kind, dtype)
    layer, x = adapted(copy.deepcopy(base), **options), inputs(kind, dtype)
    assert torch.equal(layer(x), base(x))
    assert torch.count_nonzero(layer.get_delta_weight("a")) == 0
    layer.merge()
    assert torch.equal(layer.get_base_layer().weight, base.weight)


@every_base
@every_adapter
def test_merged_unmerged_and_exported_weight_agree(kind, options):
    base = base_layer(kind)
    layer, x = stir(adapted(copy.deepcopy(base), **options)), inputs(kind)
    layer.set_strength("a", 0.7)
    unmerged = layer(x)
    exported = copy.deepcopy(base)
    exported.weight.data += layer.get_delta_weight("a")
    layer.merge()
    assert not torch.allclose(unmerged, base(x), atol=1e-3)
    assert torch.allclose(layer(x), unmerged, atol=1e-5)
    assert torch.equal(layer(x), exported(x))
    layer.unmerge()
    assert torch.equal(layer.get_base_layer().weight, base.weight), "restored bit for bit"
    assert torch.equal(layer(x), unmerged)


@every_adapter
def test_gradients_reach_the_numbers_and_nothing_else(options):
    layer = stir(adapted(base_layer().requires_grad_(False), **options))
    layer(inputs()).square().mean().backward()
    with_gradient = {name for name, p in layer.named_parameters() if p.grad is not None}
    assert with_gradient == {"spectral_A.a", "spectral_B.a", "spectral_C.a"}
    assert all(p.grad.norm() > 0 for name, p in layer.named_parameters() if name in with_gradient)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_do_not_vanish_at_the_zero_start(form):
    layer = adapted(form=form)
    layer(inputs()).square().mean().backward()
    assert all(getattr(layer, part)["a"].grad.norm() > 0 for part in layer.adapter_layer_names)


@every_adapter
@given(strength=st.floats(-2, 2))
@settings(max_examples=10, deadline=None)
def test_the_change_is_linear_in_the_strength(options, strength):
    layer = stir(adapted(**options))
    full = layer.get_delta_weight("a")
    layer.set_strength("a", strength)
    assert torch.allclose(layer.get_delta_weight("a"), strength * full, atol=1e-6)


def test_our_strength_survives_what_diffusers_does_to_its_own_scale():
    layer = stir(adapted())
    layer.set_strength("a", 0.25)
    layer.scale_layer(0)
    assert torch.equal(layer(inputs()), layer.base_layer(inputs()))
    layer.set_scale("a", 1.0)
    assert layer.total_strength("a") == 0.25
    layer.scale_layer(3.0)
    layer.unscale_layer(3.0)
    assert layer.total_strength("a") == 0.25
    with pytest.raises(InputError, match="strength"):
        layer.set_strength("a", math.inf)


@pytest.mark.parametrize("form", FORMS)
def test_disjoint_slices_add_exactly_in_any_order_and_leave_no_trace(form):
    base = base_layer()
    layer = SpectralLayer(copy.deepcopy(base), "a")
    names = ["a", "b", "c"]
    for start, name in zip((0, 3, 6), names, strict=True):
        add(layer, name, form=form, start=start)
        stir(layer, name, seed=start)
    together = base.weight + sum(layer.get_delta_weight(n) for n in names)
    for order in (["a", "b", "c"], ["c", "a", "b"]):
        layer.set_adapter(order)
        assert torch.allclose(layer(inputs()), nn.functional.linear(inputs(), together, base.bias), atol=1e-5)
        layer.merge(adapter_names=order)
        assert torch.allclose(layer.get_base_layer().weight, together, atol=1e-6)
        layer.unmerge()
    layer.merge(adapter_names=["a", "c"])
    without_b = layer.get_base_layer().weight.clone()
    layer.unmerge()
    layer.merge(adapter_names=["a", "b", "c"])
    layer.delete_adapter("b")
    assert torch.equal(layer.get_base_layer().weight, without_b), "removing one restores the rest bit for bit"


@settings(max_examples=20, deadline=None)
@given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), size=st.sampled_from([0.05, 1.0, 10.0]))
def test_rotations_of_disjoint_slices_are_orthogonal(seeds, size):
    layer = adapted(form="rotational", start=0)
    add(layer, "b", form="rotational", start=R)
    X, Y = (stir(layer, n, size, s).get_delta_weight(n) for n, s in zip("ab", seeds, strict=True))
    assert abs(cosine(X, Y)) < 1e-6
    assert (X.T @ Y).norm() < 1e-5 * X.norm() * Y.norm()


def neighbours(
    size: float, base: nn.Module | None = None, **options
) -> tuple[SpectralLayer, torch.Tensor, torch.Tensor]:
    layer = adapted(base, start=0, **options)
    add(layer, "b", start=R, **options)
    stir(stir(layer, "a", size, 1), "b", size, 2)
    with torch.no_grad():  # what training may do when concepts are alike: lean on the other's directions
        layer.spectral_A["a"] += size * layer.spectral_U["b"]
        layer.spectral_B["b"] += size * layer.spectral_V["a"]
    return layer, layer.get_delta_weight("a"), layer.get_delta_weight("b")


@pytest.mark.parametrize("slice_aware", [False, True])
def test_isolated_adapters_do_not_touch_the_slices_of_others(slice_aware):
    layer, X, Y = neighbours(0.1, isolated=True, reserved=2 * R, slice_aware=slice_aware)
    for change, other in ((X, "b"), (Y, "a")):
        U, _, V = layer.triplets(other)
        assert (U.T @ change).norm() < 1e-6 * change.norm(), "nothing written into the other's output side"
        assert (change @ V).norm() < 1e-6 * change.norm(), "nothing read from the other's input side"


def test_isolated_changes_are_nearly_orthogonal_and_plain_ones_are_not():
    """What is left, A_i and B_i against A_j and B_j outside all slices, is of fourth order in the numbers."""
    torch.manual_seed(0)
    isolated, wide = {}, nn.Linear(96, 80)
    for size in (0.02, 0.04):
        _, X, Y = neighbours(size, copy.deepcopy(wide), isolated=True, reserved=2 * R)
        isolated[size] = abs(cosine(X, Y))
    _, X, Y = neighbours(0.02, copy.deepcopy(wide))
    assert isolated[0.02] < 3e-4 and abs(cosine(X, Y)) > 10 * isolated[0.02]
    assert 2.5 < isolated[0.04] / isolated[0.02] < 6, "the cosine falls with the square of the numbers"


def test_isolation_reserves_nothing_beyond_a_narrow_layer():
    layer = stir(adapted(isolated=True, reserved=500))
    assert layer.spectral_U_others["a"].shape == (OUT, min(OUT, WIDTH) - R)


def changed_by_one_step(form: str, start: int, slice_aware: bool, optimiser: type) -> float:
    """Relative size of the weight change after one step against a loss that treats all columns alike."""
    n = 24
    weight = torch.diag(0.7 ** torch.arange(n, dtype=torch.float32))
    base = nn.Linear(n, n, bias=False).requires_grad_(False)
    base.weight.data = weight
    layer = adapted(base, form=form, start=start, slice_aware=slice_aware)
    target = torch.ones(n, n).triu() - torch.ones(n, n).tril()
    parameters = [getattr(layer, part)["a"] for part in ("spectral_A", "spectral_B")]
    step = optimiser(parameters, lr=1e-4)
    (layer.get_delta_weight("a") * target).sum().backward()
    step.step()
    return float(layer.get_delta_weight("a").detach().norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_a_slice_aware_step_acts_alike_at_every_depth(form, optimiser):
    aware = [changed_by_one_step(form, start, True, optimiser) for start in (0, 6, 12)]
    plain = [changed_by_one_step(form, start, False, optimiser) for start in (0, 6, 12)]
    assert max(aware) / min(aware) < 1.05
    assert plain[0] / plain[2] > 20, "without it a deep slice hardly learns"
    assert 0.3 < aware[0] / plain[0] < 6, "a learning rate chosen at the top stays of the same kind"


@every_adapter
def test_folding_stores_the_numbers_as_they_act_and_changes_nothing(options):
    layer = stir(adapted(**options))
    before, acting = layer.get_delta_weight("a"), layer.numbers("a")
    layer.fold("a")
    assert torch.equal(layer.get_delta_weight("a"), before)
    assert torch.equal(layer.spectral_A["a"], acting.A) and torch.equal(layer.spectral_C["a"], acting.C)
    assert not len(layer.spectral_gain) and not len(layer.spectral_U_others)


def tensors_of(layer: SpectralLayer) -> list[torch.Tensor]:
    return [t for n, t in layer.state_dict(keep_vars=True).items() if n.startswith("spectral_")]


@every_adapter
def test_everything_of_the_adapter_stays_fp32_over_a_half_precision_base(options):
    layer = stir(adapted(base_layer(dtype=torch.bfloat16), **options))
    before = layer.get_delta_weight("a")
    layer.to(torch.float16).to(device="cpu", dtype=torch.bfloat16)
    layer._move_adapter_to_device_of_base_layer("a")
    assert layer.base_layer.weight.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in tensors_of(layer)) and tensors_of(layer)
    assert torch.equal(layer.get_delta_weight("a"), before)
    assert layer(inputs(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_autocast_does_not_reach_the_small_matrices():
    layer = stir(adapted(form="rotational"))
    before = layer.get_delta_weight("a")
    with torch.autocast("cpu", torch.bfloat16):
        P, Q = layer.factors("a")
        assert layer(inputs()).dtype == torch.bfloat16
    assert torch.equal(P @ Q.T, before)


def test_a_merge_of_broken_numbers_is_refused_and_leaves_the_weight():
    layer = stir(adapted())
    before = layer.base_layer.weight.clone()
    with torch.no_grad():
        layer.spectral_A["a"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="nothing was merged"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before) and not layer.merged


def test_an_adapter_added_over_a_merged_one_sees_the_pristine_weight():
    layer = stir(adapted(start=0))
    expected = top_triplets(layer.original_weight, 2 * R).take(range(R, 2 * R))
    layer.merge()
    add(layer, "b", start=R)
    assert all(map(torch.equal, layer.triplets("b"), expected))


def test_a_disabled_layer_is_the_base_even_when_merged():
    layer = stir(adapted())
    base = layer.base_layer(inputs())
    layer.merge()
    layer.enable_adapters(False)
    assert torch.equal(layer(inputs()), base)


def test_tensors_awaited_from_a_file_show_when_they_never_came():
    layer = SpectralLayer(base_layer(), "a")
    layer.update_layer("a", SpectralConfig(r=R, init_weights=False, slice_aware=True), None)
    assert torch.isnan(layer(inputs())).all()


@pytest.mark.parametrize(
    "base",
    [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv1d(4, 4, 1),
        nn.Embedding(4, 4),
    ],
    ids=str,
)
def test_layers_without_a_plain_matrix_are_refused(base):
    with pytest.raises(InputError, match="Cannot adapt"):
        SpectralLayer(base, "a")


def test_a_slice_below_the_narrowest_layer_is_refused():
    with pytest.raises(InputError, match="width 16"):
        adapted(start=14)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"form": "sideways"}, "form = 'sideways'"),
        ({"r": 0}, "r = 0"),
        ({"r": 2.5}, "r = 2.5"),
        ({"start": -1}, "start = -1"),
        ({"columns": []}, "columns"),
        ({"columns": [1, 1]}, "twice"),
        ({"columns": [1, -2]}, "columns"),
        ({"columns": [1, 2], "start": 3}, "contradict"),
        ({"columns": [1, 2], "r": 3}, "r = 3"),
        ({"isolated": True}, "reserved = None"),
        ({"isolated": True, "form": "rotational", "reserved": 9}, "isolated"),
    ],
)
def test_a_contradictory_config_is_refused_naming_option_and_value(options, names):
    with pytest.raises(InputError, match=names):
        SpectralConfig(**options)


def test_a_config_settles_its_slice_and_survives_json():
    assert SpectralConfig(start=8).slice == list(range(8, 16))
    assert SpectralConfig(columns=[9, 4]).r == 2 and SpectralConfig(columns=[9, 4]).columns_needed == 10
    for options in ({"r": 4, "start": 4}, {"columns": [9, 4], "slice_aware": True}):
        config = SpectralConfig(target_modules=["to_v", "to_k"], **options)
        saved = json.loads(json.dumps(config.to_dict()))
        again = SpectralConfig(**saved)
        assert again.slice == config.slice and again.slice_aware == config.slice_aware
        assert again.init_weights is False, "what is saved is filled from its file, without an SVD"
