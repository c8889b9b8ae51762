"""What a fusion does to its concepts, from pictures: every figure of the report, with its confidence interval.

Alone and fused, every concept is drawn in the same places with the same seeds, so that pictures are compared in
pairs. Chance is what the base's own pictures of a concept's class look like: a dog is a little like any dog. What
fusing added is fused against alone: what the photos and the training did is there alone, too.
Two concepts are both present in a picture if it is nearer to each alone than to its class at chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fusion import stats
from fusion.measure import PLACES, Shown, draw, show
from fusion.stats import Estimate
from spectral_diffusion.base import Base
from spectral_diffusion.fused import Fused
from spectral_diffusion.judges import Judges
from spectral_diffusion.metrics import references

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Setting:
    """How pictures are drawn."""

    seeds: tuple[int, ...] = (11, 12)
    steps: int = 20
    places: tuple[str, ...] = PLACES


@dataclass(frozen=True)
class Drawn:
    """Everything that was drawn; `Shown` measures are empty where there are no encoders."""

    alone: Mapping[str, Shown]
    fused: Mapping[str, Shown]
    plain: Mapping[str, Shown]  # class word -> the bare base
    beside: Mapping[str, Shown]  # class word -> the base with the fusion in, same words and seeds
    pairs: Mapping[tuple[str, str], Shown]


@dataclass(frozen=True)
class ConceptFigures:
    """One concept's figures; cosines unless said otherwise."""

    identity_alone: Estimate
    identity_fused: Estimate
    identity_chance: Estimate
    retention: Estimate  # fused / alone
    retention_above_chance: (
        Estimate | None
    )  # the same of what is above chance; None where alone is hardly above it
    leakage: Mapping[str, Estimate]  # other concept -> likeness to it, above chance
    leakage_alone: Mapping[str, Estimate]  # the same of the concept alone
    leakage_added: Mapping[str, Estimate]  # the difference of the two
    alignment_fused: Estimate
    alignment_change: Estimate  # against the base's own pictures of the class
    alignment_alone_change: Estimate  # the same of the concept alone
    alignment_added: Estimate  # the difference of the two


@dataclass(frozen=True)
class Figures:
    """All figures of one fusion."""

    concepts: Mapping[str, ConceptFigures]
    confusion: Mapping[str, Mapping[str, float]]  # drawn -> compared with -> mean likeness
    confusion_alone: Mapping[str, Mapping[str, float]]  # the same of the concepts alone
    chance: Mapping[str, Mapping[str, float]]  # class drawn by the base -> compared with -> mean likeness
    drift: Mapping[str, Estimate]  # class word -> root mean square difference of pixels, 0..1
    together: Mapping[tuple[str, str], Estimate]  # share of pictures that show both


def reference_vectors(
    encoders: Judges, photos: Mapping[str, tuple[list[Image.Image], list[Image.Image | None]]]
) -> dict[str, Tensor]:
    """concept -> (photos, width)."""
    return {name: references(encoders.identity, images, masks) for name, (images, masks) in photos.items()}


def alone_in(fused: Fused, name: str) -> Fused:
    """One member of a fused file alone at full strength. After a filter this is the filtered one."""
    for other in fused.names:
        if other != name:
            fused = fused.without(other)
    return fused.with_strengths({name: 1.0}).with_blocks(name, {}).switched(name, True)


def draw_all(
    base: Base,
    fused: Fused,
    alone: Mapping[str, Fused],
    vectors: Mapping[str, Tensor],
    encoders: Judges | None,
    setting: Setting,
    tell: Tell,
) -> Drawn:
    """Draws each concept alone and fused, the plain classes without and with the fusion, and every pair."""

    def one(label: str, subject: str, source: Fused | None) -> Shown:
        tell(label)
        if encoders is None:
            images = draw(base, source, subject, setting.seeds, setting.steps, setting.places)
            return Shown(images, {}, torch.empty(0))
        how = (setting.seeds, setting.steps, encoders, setting.places)
        return show(base, source, subject, vectors, fused.classes, *how)

    active = [member.name for member in fused.members if member.on]
    vectors = {name: rows for name, rows in vectors.items() if name in active}
    classes = sorted({fused.classes[name] for name in active})
    return Drawn(
        alone={n: one(f"<{n}> alone", f"<{n}>", alone.get(n) or alone_in(fused, n)) for n in active},
        fused={n: one(f"<{n}> fused", f"<{n}>", fused) for n in active},
        plain={c: one(f"{c}, the base", f"a {c}", None) for c in classes},
        beside={c: one(f"{c}, with the fusion", f"a {c}", fused) for c in classes},
        pairs={p: one(f"<{p[0]}> and <{p[1]}>", "<{}> and <{}>".format(*p), fused) for p in _pairs(active)},
    )


def _pairs(names: Sequence[str], most: int = 28) -> list[tuple[str, str]]:
    """Pairs to draw together: all of up to eight concepts; beyond, neighbours only, or it would take a day."""
    every = list(combinations(names, 2))
    return every if len(every) <= most else list(pairwise(names))


def pairs_left_out(drawn: Drawn) -> str:
    """Says so where not every pair was drawn."""
    count, every = len(drawn.pairs), len(drawn.fused) * (len(drawn.fused) - 1) // 2
    if count == every:
        return ""
    return (
        f"Only {count} of {every} pairs were drawn: of so many concepts each with the next one of the list."
    )


def figures(drawn: Drawn, classes: Mapping[str, str]) -> Figures:
    """All figures; `drawn` must have been measured."""
    return Figures(
        concepts={name: _concept(name, drawn, classes[name]) for name in drawn.fused},
        confusion=_confusion(drawn.fused),
        confusion_alone=_confusion(drawn.alone),
        chance=_confusion(drawn.plain),
        drift=drift(drawn),
        together={pair: _both(pair, drawn, classes) for pair in drawn.pairs},
    )


def _confusion(drawn: Mapping[str, Shown]) -> dict[str, dict[str, float]]:
    """What was drawn -> concept -> mean likeness to it."""
    return {name: {other: shown.mean(other) for other in shown.identity} for name, shown in drawn.items()}


def _concept(name: str, drawn: Drawn, class_word: str) -> ConceptFigures:
    alone, fused, plain = drawn.alone[name], drawn.fused[name], drawn.plain[class_word]
    own = [shown.identity[name] for shown in (fused, alone, plain)]
    return ConceptFigures(
        identity_alone=stats.mean(alone.identity[name]),
        identity_fused=stats.mean(fused.identity[name]),
        identity_chance=stats.mean(plain.identity[name]),
        retention=stats.ratio(*own[:2]),
        retention_above_chance=stats.ratio_above(*own),
        leakage=_more_like(name, fused, plain),
        leakage_alone=_more_like(name, alone, plain),
        leakage_added=_more_like(name, fused, alone),
        alignment_fused=stats.mean(fused.alignment),
        alignment_change=stats.difference(fused.alignment, plain.alignment),
        alignment_alone_change=stats.difference(alone.alignment, plain.alignment),
        alignment_added=stats.difference(fused.alignment, alone.alignment),
    )


def _more_like(name: str, one: Shown, two: Shown) -> dict[str, Estimate]:
    """Concept other than `name` -> how much more `one` is like it than `two`."""
    return {
        other: stats.difference(values, two.identity[other])
        for other, values in one.identity.items()
        if other != name
    }


def _both(pair: tuple[str, str], drawn: Drawn, classes: Mapping[str, str]) -> Estimate:
    there = [
        drawn.pairs[pair].identity[name]
        > (drawn.alone[name].mean(name) + drawn.plain[classes[name]].mean(name)) / 2
        for name in pair
    ]
    return stats.mean((there[0] & there[1]).double())


def drift(drawn: Drawn) -> dict[str, Estimate]:
    """How far the fusion moves pictures that name no concept; 0 for a fusion that leaves the base alone."""
    return {
        word: stats.mean(torch.tensor(list(map(_apart, shown.images, drawn.beside[word].images))))
        for word, shown in drawn.plain.items()
    }


def _apart(one: Image.Image, two: Image.Image) -> float:
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) / 255 for image in (one, two))
    return float(np.sqrt(np.mean((a - b) ** 2)))
