"""Ways to combine concepts: one signature, one table.

A method maps parts (fused files of one concept, at their strengths), its options and the recorded inputs, if
it needs any, to a fused file. Every method gives a sum of per-concept shares, so whatever the method, each
concept's strength stays adjustable: shares are computed from the concepts at strength 1, and a strength scales its
share. Words are never mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

from torch import Tensor

from fusion import filters, merges
from fusion.distil import Course, Progress, distil
from fusion.interference import input_overlaps
from fusion.recorded import Recorded
from spectral_diffusion.base import Base
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.members import finite
from spectral_diffusion.norms import DEFAULT_CAP

Options = Mapping[str, Any]
Run = Callable[[Sequence[Fused], Options, Recorded | None], Fused]
# the base, the parts, what `run` gave -> the fused file, and facts to be kept in it
Refine = Callable[[Base, Sequence[Fused], Fused, Options, Progress | None], tuple[Fused, dict[str, Any]]]

# how much of what random inputs of the same size share two concepts' inputs may share, for Orthogonal Adaptation
MOST_OVERLAP = 0.1


@dataclass(frozen=True)
class Method:
    """One way to combine."""

    run: Run
    whose: str  # "the paper's", "ours", "others'"
    says: str  # one honest line
    options: Mapping[str, Any] = field(default_factory=dict)  # name -> default
    norm_cap: float | None = None  # for two concepts and more
    needs_inputs: bool = False  # recorded by `recorded.gather`
    recording: Mapping[str, Any] = field(default_factory=dict)  # what it changes of `activations.Recording`
    check: Callable[..., Any] | None = None  # of the options, before anything is computed; raises InputError
    refine: Refine | None = None  # what follows on the base itself
    apart: bool = False  # each member is the same whoever else is there

    @property
    def needs_base(self) -> bool:
        """Whether the base has to be at hand, to record inputs or to be taught."""
        return self.needs_inputs or self.refine is not None


def joined(parts: Sequence[Fused]) -> Fused:
    """One fused file of all parts, their factors as they are."""
    return replace(
        parts[0],
        prediction=next((part.prediction for part in parts if part.prediction), None),
        members=tuple(part.members[0] for part in parts),
        factors={name: factors for part in parts for name, factors in part.factors.items()},
        words={token: row for part in parts for token, row in part.words.items()},
    )


def total(parts: Sequence[Fused], options: Options, recorded: Recorded | None) -> Fused:
    """The exact sum: W + sum_k strength_k dW_k (design section 6, additivity)."""
    return joined(parts)


def mean(parts: Sequence[Fused], options: Options, recorded: Recorded | None) -> Fused:
    """Every change divided by the number of concepts, on its output side: strengths stay what was asked for."""
    fused = joined(parts)
    factors = {
        name: {layer: (p / len(parts), q) for layer, (p, q) in layers.items()}
        for name, layers in fused.factors.items()
    }
    return replace(fused, factors=factors)


def orthogonal(parts: Sequence[Fused], options: Options, recorded: Recorded | None) -> Fused:
    """The sum, refused where the concepts' input sides are not orthogonal, which is what makes it right."""
    for one, two in combinations(parts, 2):
        overlap, random = input_overlaps(one, two)
        if overlap > MOST_OVERLAP * random:
            raise InputError(
                f"{one.names[0]} and {two.names[0]} were not trained on orthogonal inputs (overlap {overlap:.2g}, "
                f"random ones have {random:.2g}): train them in the form orthogonal, each with a start of its own, or "
                "use another method, such as spectral."
            )
    return joined(parts)


def filtered(parts: Sequence[Fused], options: Options, recorded: Recorded | None) -> Fused:
    """See `fusion.filters`; also gradient fusion, which is the same with other weights."""
    assert recorded is not None, "fuse() checks that inputs are recorded"
    return joined(filters.filter_all(parts, recorded, filters.Weights(**options)))


def start(parts: Sequence[Fused], options: Options, recorded: Recorded | None) -> Fused:
    """What distillation starts from: the filters, with demands that are all 1."""
    return filtered(parts, _DEMANDS, recorded)


def taught(
    base: Base, parts: Sequence[Fused], fused: Fused, options: Options, progress: Progress | None
) -> tuple[Fused, dict[str, Any]]:
    """See `fusion.distil`."""
    found = distil(base, parts, fused, Course(**options), progress)
    return found.fused, {"error_before": found.before, "error_after": found.after}


def ties(parts: Sequence[Fused], options: Options, recorded: Recorded | None) -> Fused:
    """See `merges.ties_shares`."""
    density = merges.check_density(options["density"])
    return joined(merges.dense(parts, lambda layer, changes: merges.ties_shares(changes, density)))


def dare(parts: Sequence[Fused], options: Options, recorded: Recorded | None) -> Fused:
    """See `merges.dare_shares`; what is dropped differs from layer to layer."""
    density, seed = merges.check_density(options["density"]), options["seed"]
    if type(seed) is not int or seed < 0:
        raise InputError(f"seed must be a whole number from 0 on, not {seed}.")

    def shares(layer: str, changes: Sequence[Tensor]) -> merges.Shares:
        return merges.dare_shares(changes, density, merges.seed_of(layer, seed))

    return joined(merges.dense(parts, shares))


def svd(parts: Sequence[Fused], options: Options, recorded: Recorded | None) -> Fused:
    """See `merges.svd_shares`."""
    rank = options["rank"] or max(part.members[0].width or part.members[0].rank for part in parts)
    return joined(merges.cut(parts, rank))


_DEMANDS = {"own": 1.0, "others": 1.0, "neutral": 1.0, "ridge": 1e-4}
METHODS: dict[str, Method] = {
    "spectral": Method(
        total,
        "the paper's",
        "the exact sum of changes in disjoint slices; norm control is ours",
        norm_cap=DEFAULT_CAP,
        apart=True,
    ),
    "mean": Method(mean, "others'", "FedAvg, the paper's released code: 1/n of each concept's change"),
    "sum": Method(total, "others'", "the plain sum, without norm control: stacked LoRAs", apart=True),
    "orthogonal": Method(
        orthogonal, "others'", "Orthogonal Adaptation: the sum, only of concepts with orthogonal inputs"
    ),
    "gradient": Method(
        filtered,
        "others'",
        "Mix-of-Show's gradient fusion, solved exactly instead of by L-BFGS",
        {**_DEMANDS, "neutral": 0.0, "ridge": 1e-6},
        needs_inputs=True,
        check=filters.Weights,
        recording={"text_tokens": "all", "cross_tokens": "concept", "steps": 20},
    ),
    "filtered": Method(
        filtered,
        "ours",
        "each change passes only what its own concept feeds a layer, from recorded inputs, in closed form",
        _DEMANDS,
        needs_inputs=True,
        check=filters.Weights,
    ),
    "distilled": Method(
        start,
        "ours",
        "the filtered sum, taught on the base to answer as each concept does alone; takes minutes, keeps most",
        asdict(Course()),
        needs_inputs=True,
        check=Course,
        refine=taught,
    ),
    "ties": Method(
        ties, "others'", "TIES by PEFT: prune, elect signs, average what agrees", {"density": 0.5}
    ),
    "dare": Method(
        dare, "others'", "DARE by PEFT: drop at random, scale up, add", {"density": 0.5, "seed": 0}
    ),
    "svd": Method(svd, "others'", "PEFT's svd: the sum cut to one concept's rank", {"rank": 0}),
}


def method_of(name: str) -> Method:
    """The method of this name. Raises InputError, listing those there are."""
    if name not in METHODS:
        raise InputError(f"There is no method {name!r}; there are {', '.join(METHODS)}.")
    return METHODS[name]


def check_options(name: str, options: Options) -> dict[str, Any]:
    """The options of a method, its defaults filled in. Raises InputError for one that it has not."""
    method = method_of(name)
    if strangers := sorted(set(options) - set(method.options)):
        has = ", ".join(method.options) or "none"
        raise InputError(f"The method {name} has no option {strangers[0]!r}; it has {has}.")
    for option, value in options.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{option} of the method {name} must be a number, not {value!r}.")
        if isinstance(value, int) and not finite(value):
            raise InputError(f"{option} of the method {name} is too large a number.")
    filled = {**method.options, **options}
    if method.check:
        method.check(**filled)
    return filled
