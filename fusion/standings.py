"""From the cells of a comparison to its table and plot: pure functions of the records.

**Score**, which chooses a method's strength on the held-in seeds: mean over concepts of retention - the largest
leakage above chance - text alignment lost against the base. All three are on the scale of cosines near 1, and
none is bought with another at better than one for one. Reported are the held-out seeds, at that strength.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape

import torch
from torch import Tensor

from fusion import stats
from fusion.cells import Cells, Key
from fusion.stats import Estimate

HALVES = ("choose", "report")


@dataclass(frozen=True)
class Standing:
    """A method at its best strength, over all concepts, on the held-out seeds."""

    method: str
    whose: str
    strength: float
    score: float  # on the held-in seeds, which chose the strength
    retention: Estimate
    leakage: Estimate  # largest over the other concepts, mean over concepts
    alignment_change: Estimate  # against the base
    trials: int


def measures(cells: Cells, method: str, strength: float, half: str, classes: Mapping[str, str]) -> Tensor:
    """(concepts * pictures, 4): own identity fused, alone, largest leakage, change of alignment, paired."""
    rows = []
    for name, class_word in classes.items():
        fused, alone = cells[Key(method, strength, half, name)], cells[Key("alone", 1.0, half, name)]
        plain = cells[Key("base", 0.0, half, class_word)]
        others = [
            torch.tensor(fused.identity[other]) - torch.tensor(plain.identity[other])
            for other in classes
            if other != name
        ]
        # the concept it leaks to most, chosen over all pictures and not picture by picture
        leak = max(others, key=lambda o: float(o.mean())) if others else torch.zeros(len(fused.alignment))
        change = torch.tensor(fused.alignment) - torch.tensor(plain.alignment)
        own = torch.tensor(fused.identity[name]), torch.tensor(alone.identity[name])
        rows.append(torch.stack([*own, leak, change], dim=1))
    return torch.cat(rows)


def score(measured: Tensor) -> float:
    """See the module; `measured` as `measures` gives it."""
    fused, alone, leak, change = measured.mean(0)
    return float(fused / alone - leak.clamp(min=0) + change.clamp(max=0))


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
    held_out = measures(cells, method, best, "report", classes)
    return Standing(
        method,
        whose,
        best,
        its_score,
        retention=stats.ratio(held_out[:, 0], held_out[:, 1]),
        leakage=stats.mean(held_out[:, 2]),
        alignment_change=stats.mean(held_out[:, 3]),
        trials=len(strengths),
    )


def as_csv(standings: Sequence[Standing]) -> str:
    """A line per method, best retention first."""
    columns = ["method", "whose", "strength", "score", "trials"]
    columns += [
        f"{f}{end}" for f in ("retention", "leakage", "alignment_change") for end in ("", "_low", "_high")
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for one in standings:
        row = {
            key: value for key, value in asdict(one).items() if key in columns and not isinstance(value, dict)
        }
        for key, value in asdict(one).items():
            if isinstance(value, dict):
                row |= {key: value["value"], f"{key}_low": value["low"], f"{key}_high": value["high"]}
        writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def plot(standings: Sequence[Standing]) -> str:
    """Retention with its interval, a bar per method, as SVG on white."""
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
    said = f"{r.value:.2f}, leak {one.leakage.value:+.2f}, at {one.strength:g}"
    return (
        f'<text x="4" y="{y + 15}">{escape(one.method)}</text>'
        f'<rect x="{left}" y="{y}" width="{max(r.value, 0) * scale:.1f}" height="20" fill="#7aa6d8"/>'
        f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y + 10}" y2="{y + 10}" stroke="#123" stroke-width="2"/>'
        f'<text x="{left + 528}" y="{y + 15}">{escape(said)}</text>'
    )
