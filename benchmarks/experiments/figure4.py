"""The paper's Figure 4 tested directly: what keeps concepts apart is where their columns lie, all else being equal.

The same three concepts, seeds, words, rates and steps; the adapters differ: all in one slice, in disjoint slices, in
disjoint columns from all over the spectrum, plain LoRA, Orthogonal Adaptation. Fused by the plain sum, by the sum with
norm control, and by the mean.
"""

from __future__ import annotations

from typing import Any

from benchmarks.experiments.cast import cast
from benchmarks.experiments.figures import Row, kept, summary
from benchmarks.experiments.jobs import Overlaps, Part, Training
from benchmarks.experiments.plan import Plan, classes_of
from benchmarks.experiments.runner import Experiment

# arm -> settings of concept number i at rank r
ARMS: dict[str, Any] = {
    "same": lambda i, r: {"start": 0},
    "disjoint": lambda i, r: {"start": i * r},
    "scattered": lambda i, r: {"start": i * r, "scatter": 1},
    "lora": lambda i, r: {"form": "lora"},
    "orthogonal": lambda i, r: {"form": "orthogonal", "start": i * r},
}
FUSIONS: dict[str, dict[str, Any]] = {
    "sum": {"method": "sum", "norm_control": False},
    "norm": {"method": "spectral"},
    "mean": {"method": "mean"},
}
COLUMNS = ("arm", "fusion", "runs", "identity_alone", "identity_fused", "retention", "retention_above_chance",
           "leakage_mean", "alignment_change")  # fmt: skip


def run(plan: Plan) -> Experiment:
    """One row for each seed, arm, fusion and concept; the weights' overlap for each seed and arm."""
    people = cast(3, plan.out / "photos")
    runs = {
        (arm, seed): _trainings(plan, people, arm, seed)
        for seed in plan.of_seeds(3)
        for arm in plan.chosen(ARMS)
    }
    trained = yield list({t.label: t for trainings in runs.values() for t in trainings}.values())
    runs = {key: ts for key, ts in runs.items() if all(t.label in trained for t in ts)}
    jobs: dict[str, Any] = {}
    for person in classes_of(people):
        job = plan.plain(person, people, person.class_word)
        jobs[job.label] = job
    for (arm, seed), trainings in runs.items():
        parts = [Part(training) for training in trainings]
        overlaps = Overlaps(f"overlap-{arm}-s{seed}", tuple(parts))
        jobs[overlaps.label] = overlaps
        for person, part in zip(people, parts, strict=True):
            alone = plan.alone(part, people, part.training.label)
            jobs[alone.label] = alone
            for fusion, how in FUSIONS.items():
                label = f"fused-{arm}-{fusion}-{person.name}-s{seed}"
                jobs[label] = plan.drawing(label, person, parts, people, regardless=True, **how)
    drawn = yield list(jobs.values())
    rows: list[Row] = []
    for (arm, seed), trainings in runs.items():
        for fusion in FUSIONS:
            for person, training in zip(people, trainings, strict=True):
                fused = f"fused-{arm}-{fusion}-{person.name}-s{seed}"
                labels = fused, f"alone-{training.label}", f"base-{person.class_word}"
                if all(label in drawn for label in labels):
                    about = {"arm": arm, "fusion": fusion, "seed": seed}
                    rows.append({**about, **kept(person, *(drawn[label] for label in labels))})
    overlaps = [
        {
            "arm": arm,
            **{
                k: v
                for k, v in drawn[f"overlap-{arm}-s{seed}"].items()
                if isinstance(v, float) and k != "seconds"
            },
        }
        for arm, seed in runs
        if f"overlap-{arm}-s{seed}" in drawn
    ]
    return {
        "rows": rows,
        "summary": summary(rows, by=("arm", "fusion")),
        "overlaps": summary(overlaps, by=("arm",)),
        "columns": COLUMNS,
    }


def _trainings(plan: Plan, people: list[Any], arm: str, seed: int) -> list[Training]:
    found = []
    for i, person in enumerate(people):
        # the first concept of "same" is that of "disjoint": trained once
        name = "disjoint" if arm == "same" and i == 0 else arm
        found.append(plan.training(person, name, seed, **ARMS[arm](i, plan.rank)))
    return found
