"""From records to figures: what fused pictures keep of a concept, beside its pictures alone and the bare base's.

retention is fused / alone identity. Identity is a cosine that any picture of the right colours raises, so
`retention_above_chance` takes off first what the base's plain pictures of the class get.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean as average
from statistics import stdev
from typing import Any

from benchmarks.experiments.cast import Person
from benchmarks.experiments.jobs import Record

Row = dict[str, Any]


def kept(person: Person, fused: Record, alone: Record, plain: Record) -> Row:
    """One concept in one fusion. All records are drawings of the same places and seeds; cosines but for the ratios."""
    name = person.name
    before, after, chance = (average(record["identity"][name]) for record in (alone, fused, plain))
    others = {
        other: average(values) - average(plain["identity"][other])
        for other, values in fused["identity"].items()
        if other != name
    }
    return {
        "concept": name,
        "identity_alone": before,
        "identity_fused": after,
        "identity_chance": chance,
        "retention": after / before,
        "retention_above_chance": (after - chance) / (before - chance) if before - chance > 0.02 else None,
        "leakage_mean": average(others.values()) if others else None,
        "leakage_worst": max(others.values(), default=None),
        "alignment_change": average(fused["alignment"]) - average(plain["alignment"]),
        "alignment_alone_change": average(alone["alignment"]) - average(plain["alignment"]),
    }


def summary(rows: Iterable[Mapping[str, Any]], *, by: Sequence[str]) -> list[Row]:
    """Rows grouped `by` some of their keys, in the order of their first row: means and spreads of all that is a number.

    The spread is the standard deviation between the rows of a group: concepts and seeds together.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    return [
        {**dict(zip(by, key, strict=True)), "runs": len(group), **_means(group, by)}
        for key, group in groups.items()
    ]


def _means(group: Sequence[Mapping[str, Any]], by: Sequence[str]) -> Row:
    found: Row = {}
    for key in group[0]:
        values = [row[key] for row in group if isinstance(row.get(key), (int, float))]
        if key in (*by, "seed") or not values:
            continue
        found[key] = round(average(values), 4)
        if len(values) > 1:
            found[f"{key}_sd"] = round(stdev(values), 4)
    return found


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned text, numbers to three places."""
    cells = [list(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
