"""Means with confidence intervals by the bootstrap: what a handful of pictures can and cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_DRAWS, _LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def bootstrap(
    samples: Tensor, figure: Callable[[Tensor], Tensor], seed: int = 0, grouped: bool = False
) -> Estimate:
    """The percentile bootstrap (Efron, 1979) of `figure` over the rows of `samples`.

    `samples`: (n,) or (n, columns), one row per picture; rows are drawn whole, so paired columns stay paired.
    `grouped`: (groups, n) or (groups, n, columns), and groups are drawn, then rows inside them: pictures of one concept
    are no independent samples of what happens to concepts.
    `figure` maps (draws, rows) or (draws, rows, columns) to (draws,). The same samples give the same interval.
    """
    samples = (samples if grouped else samples[None]).double()
    groups, count = samples.shape[:2]
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randint(count, (_DRAWS, groups, count), generator=draw)
    which = torch.randint(groups, (_DRAWS, groups, 1), generator=draw)
    figures = figure(samples[which, rows].flatten(1, 2)).sort().values
    edge = round((1 - _LEVEL) / 2 * (_DRAWS - 1))
    value = float(figure(samples.flatten(0, 1)[None])[0])
    return Estimate(value, float(figures[edge]), float(figures[-1 - edge]))


def mean(samples: Tensor) -> Estimate:
    """The mean of samples (n,), or grouped (groups, n), as everywhere below."""
    return bootstrap(samples, lambda drawn: drawn.mean(1), grouped=samples.ndim == 2)


def ratio(over: Tensor, under: Tensor) -> Estimate:
    """mean(over) / mean(under) of paired samples: the same place and seed in both."""
    pairs = torch.stack([over, under], -1)
    return bootstrap(
        pairs, lambda drawn: drawn[..., 0].mean(1) / drawn[..., 1].mean(1), grouped=over.ndim == 2
    )


def ratio_above(over: Tensor, under: Tensor, chance: Tensor, least: float = 0.02) -> Estimate | None:
    """mean(over - chance) / mean(under - chance) of paired samples; None where what is under is no more than
    `least` above chance, so that there is nothing to divide by."""
    if float((under - chance).mean()) <= least:
        return None
    return ratio(over - chance, under - chance)


def difference(one: Tensor, two: Tensor) -> Estimate:
    """mean(one - two) of paired samples."""
    return mean(one - two)
