"""Does a concept in the deepest slice learn as fast as in the first one? With and without slice-aware steps.

Three concepts in the first, a middle and the last slice of the spectrum; identity at several points of the training.
"""

from __future__ import annotations

from typing import Any

from benchmarks.experiments.cast import cast
from benchmarks.experiments.figures import Row, summary
from benchmarks.experiments.plan import Plan
from benchmarks.experiments.runner import Experiment

ARMS: dict[str, dict[str, Any]] = {"aware": {"slice_aware": True}, "plain": {"slice_aware": False}}
COLUMNS = ("arm", "slice", "step", "runs", "identity", "identity_sd")


def starts(plan: Plan) -> dict[str, int]:
    """First column of each slice."""
    last = plan.width - plan.rank
    return {"first": 0, "middle": last // 2 // plan.rank * plan.rank, "last": last}


def run(plan: Plan) -> Experiment:
    """One row for each arm, slice, concept, seed and point of the training; losses by step as well."""
    people = cast(3, plan.out / "photos")
    runs = {
        (arm, where, seed, person.name): plan.training(
            person, f"{arm}-{where}", seed, plan.points, start=start, **ARMS[arm]
        )
        for seed in plan.of_seeds(3)
        for person in people
        for where, start in starts(plan).items()
        for arm in plan.chosen(ARMS)
    }
    trained = yield list(runs.values())
    rows: list[Row] = []
    losses = []
    for (arm, where, seed, name), training in runs.items():
        if (record := trained.get(training.label)) is None:
            continue
        about = {"arm": arm, "slice": where, "concept": name, "seed": seed}
        losses.append({**about, "start": training.settings["start"], "losses": record["losses"]})
        rows += [
            {**about, "step": int(step), "identity": value} for step, value in record["identity"].items()
        ]
    return {
        "rows": rows,
        "losses": losses,
        "summary": summary(rows, by=("arm", "slice", "step")),
        "columns": COLUMNS,
    }
