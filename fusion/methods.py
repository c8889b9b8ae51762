"""Ways to combine concepts: one signature, one table.

A method maps concepts and strengths to a fused file. Methods differ in the strengths that act: the sum keeps
every concept at full strength, the mean (the paper's released code) gives each 1/n of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from spectral_diffusion.concept import Concept
from spectral_diffusion.fused import Fused

Method = Callable[[Sequence[Concept], Mapping[str, float]], Fused]


def spectral(concepts: Sequence[Concept], strengths: Mapping[str, float]) -> Fused:
    """The exact sum over disjoint slices: W + sum_k strength_k dW_k (design section 6, additivity)."""
    parts = [Fused.of(concept, strengths.get(concept.name, 1.0)) for concept in concepts]
    return replace(
        parts[0],
        members=tuple(part.members[0] for part in parts),
        factors={name: factors for part in parts for name, factors in part.factors.items()},
        words={token: row for part in parts for token, row in part.words.items()},
    )


def mean(concepts: Sequence[Concept], strengths: Mapping[str, float]) -> Fused:
    """The mean of the tuned weights (FedAvg; what the paper's released code does). Words are not averaged."""
    return spectral(concepts, {c.name: strengths.get(c.name, 1.0) / len(concepts) for c in concepts})


METHODS: dict[str, Method] = {"spectral": spectral, "mean": mean}
