"""From the cells of a comparison to its table and plot: pure functions of the records.

**Score**, which chooses a method's strength on the held-in seeds: retention of all concepts together - the largest
leakage that fusing added - text alignment that fusing lost, both against each concept alone. All three are on the scale
of cosines near 1, and none is bought with another at better than one for one. Reported are the held-out seeds, at that
strength, with intervals over concepts and their pictures, and the concept that keeps the least.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from fusion import stats
from fusion.cells import Cell, Cells, Key
from fusion.stats import Estimate

HALVES = ("choose", "report")
# the columns of `measures`; "added" is fused against alone, the others are against the base's pictures of the class
COLUMNS = ("fused", "alone", "chance", "leakage", "leakage_added", "alignment_change", "alignment_added")


@dataclass(frozen=True)
class Standing:
    """A method at its best strength, over all concepts, on the held-out seeds."""

    method: str
    whose: str
    strength: float
    edge: str  # "lowest" or "highest" where the best strength is at the edge of the grid: outside may be a better one
    score: float  # on the held-in seeds, which chose the strength
    retention: Estimate
    retention_above_chance: Estimate | None  # None where the concepts alone are hardly above it
    worst: str  # the concept that keeps the least
    worst_retention: float
    leakage: Estimate  # above chance, largest over the other concepts, mean over concepts
    leakage_added: Estimate  # against alone
    alignment_change: Estimate  # against the base
    alignment_added: Estimate  # against alone
    trials: int


def measures(cells: Cells, method: str, strength: float, half: str, classes: Mapping[str, str]) -> Tensor:
    """(concepts, pictures, COLUMNS), paired: the same places and seeds in every column."""
    rows = []
    for name, class_word in classes.items():
        fused, alone = cells[Key(method, strength, half, name)], cells[Key("alone", 1.0, half, name)]
        plain = cells[Key("base", 0.0, half, class_word)]
        own = [torch.tensor(cell.identity[name]) for cell in (fused, alone, plain)]
        leaks = [_most_like(name, fused, other) for other in (plain, alone)]
        texts = [torch.tensor(fused.alignment) - torch.tensor(other.alignment) for other in (plain, alone)]
        rows.append(torch.stack([*own, *leaks, *texts], dim=1))
    return torch.stack(rows)


def _most_like(name: str, one: Cell, two: Cell) -> Tensor:
    """How much more `one` is like the other concept it gained most of, over all pictures and not picture by picture."""
    gained = [
        torch.tensor(values) - torch.tensor(two.identity[other])
        for other, values in one.identity.items()
        if other != name
    ]
    return max(gained, key=lambda o: float(o.mean())) if gained else torch.zeros(len(one.alignment))


def score(measured: Tensor) -> float:
    """See the module; `measured` as `measures` gives it."""
    found = dict(zip(COLUMNS, measured.mean((0, 1)), strict=True))
    kept = found["fused"] / found["alone"]
    return float(kept - found["leakage_added"].clamp(min=0) + found["alignment_added"].clamp(max=0))


def best_strength(
    cells: Cells, method: str, strengths: Sequence[float], classes: Mapping[str, str]
) -> tuple[float, float]:
    """The strength of the best score on the held-in half, and that score; of equals, the nearest to 1."""
    scores = {s: score(measures(cells, method, s, "choose", classes)) for s in strengths}
    best = max(scores, key=lambda s: (scores[s], -abs(s - 1)))
    return best, scores[best]


def standing(
    cells: Cells, method: str, whose: str, strengths: Sequence[float], classes: Mapping[str, str]
) -> Standing:
    """The method's best strength and what it comes to on the held-out half."""
    best, its_score = best_strength(cells, method, strengths, classes)
    found = dict(zip(COLUMNS, measures(cells, method, best, "report", classes).unbind(2), strict=True))
    kept = found["fused"].mean(1) / found["alone"].mean(1)
    worst = int(kept.argmin())
    return Standing(
        method,
        whose,
        best,
        _edge(best, strengths),
        its_score,
        retention=stats.ratio(found["fused"], found["alone"]),
        retention_above_chance=stats.ratio_above(found["fused"], found["alone"], found["chance"]),
        worst=list(classes)[worst],
        worst_retention=float(kept[worst]),
        trials=len(strengths),
        **{name: stats.mean(values) for name, values in found.items() if name in COLUMNS[3:]},
    )


def _edge(best: float, strengths: Sequence[float]) -> str:
    if len(strengths) < 2:
        return ""  # nothing was chosen
    return {min(strengths): "lowest", max(strengths): "highest"}.get(best, "")


def as_csv(standings: Sequence[Standing]) -> str:
    """A line per method, best retention first; an estimate takes three columns."""
    rows = [
        {key: cell for name, value in asdict(one).items() for key, cell in _cells(name, value)}
        for one in standings
    ]
    text = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cells(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [
            (f"{name}{end}", f"{value[key]:.4f}")
            for key, end in (("value", ""), ("low", "_low"), ("high", "_high"))
        ]
    if value is None:
        return [(name, "")]
    return [(name, f"{value:.4f}" if isinstance(value, float) else str(value))]


def plot(standings: Sequence[Standing]) -> str:
    """Retention with its interval, a bar per method, the concept that keeps the least beside it, as SVG on white.

    A strength at the edge of the grid has an exclamation mark.
    """
    row, left, wide = 30, 110, 520
    top = max([1.05, *(s.retention.high for s in standings)])
    height = row * len(standings) + 40
    bars = "".join(_plot_row(s, i * row + 8, left, wide / top) for i, s in enumerate(standings))
    one = left + wide / top
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + wide + 170} {height}" font-family="sans-serif" '
        f'font-size="13"><title>Retention by method</title><rect width="100%" height="100%" fill="white"/>{bars}'
        f'<line x1="{one:.1f}" x2="{one:.1f}" y1="0" y2="{height - 26}" stroke="#888" stroke-dasharray="4"/>'
        f'<text x="{one:.1f}" y="{height - 8}" text-anchor="middle">1: as alone</text></svg>'
    )


def _plot_row(one: Standing, y: int, left: int, scale: float) -> str:
    r = one.retention
    ends = left + max(r.low, 0) * scale, left + max(r.high, 0) * scale
    said = f"{r.value:.2f}, {one.worst} {one.worst_retention:.2f}, at {one.strength:g}" + "!" * bool(one.edge)
    return (
        f'<text x="4" y="{y + 15}">{escape(one.method)}</text>'
        f'<rect x="{left}" y="{y}" width="{max(r.value, 0) * scale:.1f}" height="20" fill="#7aa6d8"/>'
        f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y + 10}" y2="{y + 10}" stroke="#123" stroke-width="2"/>'
        f'<text x="{left + 528}" y="{y + 15}">{escape(said)}</text>'
    )
