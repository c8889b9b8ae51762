"""What each ingredient brings to a fusion, at equal identity of the concepts alone.

Every variant is trained once per concept and seed and kept at several points. The variants learn at different speeds,
so each is taken at its first point where its concepts, alone, reach the identity that all variants reach: the lowest
of their best. What differs after that is what the fusion keeps. Ingredients at training: rates, prior, isolation,
layer-wise words, LoRA; at fusion: norm control, least-squares filters, the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import Any

from benchmarks.experiments.cast import Person, cast
from benchmarks.experiments.figures import Row, kept, summary
from benchmarks.experiments.jobs import Drawing, Part, Training
from benchmarks.experiments.plan import CHOOSE, Plan, classes_of
from benchmarks.experiments.runner import Experiment, Records

_OPEN = {"neutral_weight": 0.0}  # reads what plain prompts feed, too
# variant -> what it changes of the default recipe; at width w
ARMS: dict[str, Any] = {
    "paper": lambda w: {**_OPEN, "weight_rate": 5e-3, "prior_weight": 0.0},
    "small_rate": lambda w: {**_OPEN, "prior_weight": 0.0},
    "prior": lambda w: {**_OPEN, "weight_rate": 5e-3},
    "both": lambda w: _OPEN,
    "default": lambda w: {},
    "isolated": lambda w: {"isolated": True, "reserved": w},
    "layerwise": lambda w: {**_OPEN, "layerwise": True},
    "lora_paper": lambda w: {**_OPEN, "form": "lora", "weight_rate": 5e-3, "prior_weight": 0.0},
    "lora": lambda w: {**_OPEN, "form": "lora"},
    "lora_neutral": lambda w: {"form": "lora"},
}
FUSIONS: dict[str, dict[str, Any]] = {
    "sum": {"method": "sum", "norm_control": False},
    "norm": {"method": "spectral"},
    "filtered": {"method": "filtered"},
    "mean": {"method": "mean"},
}
COLUMNS = ("arm", "fusion", "runs", "step", "identity_alone", "identity_fused", "retention",
           "retention_above_chance", "leakage_mean", "alignment_change", "norm")  # fmt: skip


def run(plan: Plan) -> Experiment:
    """One row for each variant, fusion, concept and seed, and the step that each variant was taken at."""
    people = cast(3, plan.out / "photos")
    runs = {
        (arm, seed): [
            plan.training(person, arm, seed, plan.points, **_settings(plan, arm, i))
            for i, person in enumerate(people)
        ]
        for seed in plan.of_seeds(3)
        for arm in plan.chosen(ARMS)
    }
    trained = yield [training for trainings in runs.values() for training in trainings]
    runs = {key: ts for key, ts in runs.items() if all(t.label in trained for t in ts)}
    tries = {
        (key, step): [_try(plan, training, step, people) for training in trainings]
        for key, trainings in runs.items()
        for step in _steps(trainings, trained)
    }
    looked = yield [job for jobs in tries.values() for job in jobs]
    curves = _curves(tries, looked)
    target = min((max(curve.values()) for curve in curves.values()), default=0.0)
    taken = {
        key: next(step for step, value in curve.items() if value >= target) for key, curve in curves.items()
    }
    parts = {key: [_part(training, taken[key], trained) for training in runs[key]] for key in taken}
    drawn = yield _drawings(plan, people, parts)
    rows = list(_rows(people, taken, drawn))
    return {
        "rows": rows,
        "summary": summary(rows, by=("arm", "fusion")),
        "target_identity": target,
        "curves": [{"arm": arm, "seed": seed, "identity": curve} for (arm, seed), curve in curves.items()],
        "columns": COLUMNS,
    }


def _settings(plan: Plan, arm: str, index: int) -> dict[str, Any]:
    changes = ARMS[arm](plan.width)
    return changes if changes.get("form") == "lora" else {"start": index * plan.rank, **changes}


def _steps(trainings: list[Training], trained: Records) -> list[int]:
    """The points that all concepts of a variant were kept at."""
    kept_at = [set(map(int, trained[training.label]["identity"])) for training in trainings]
    return sorted(set.intersection(*kept_at))


def _part(training: Training, step: int, trained: Records) -> Part:
    last = max(map(int, trained[training.label]["identity"]))
    return Part(training, None if step == last else step)


def _try(plan: Plan, training: Training, step: int, people: list[Person]) -> Drawing:
    """Held-in pictures of a concept at one point of its training."""
    part = Part(training, None if step == training.settings["steps"] else step)
    return plan.alone(part, people, f"try-{training.label}-at-{step}", first_seed=CHOOSE)


def _curves(tries: Mapping[Any, list[Drawing]], looked: Records) -> dict[tuple[str, int], dict[int, float]]:
    """(variant, seed) -> step -> mean identity of its concepts alone; points that were not drawn are left out."""
    curves: dict[tuple[str, int], dict[int, float]] = {}
    for (key, step), jobs in tries.items():
        if all(job.label in looked for job in jobs):
            likeness = [
                mean(looked[job.label]["identity"][job.parts[0].training.person.name]) for job in jobs
            ]
            curves.setdefault(key, {})[step] = mean(likeness)
    return curves


def _drawings(plan: Plan, people: list[Person], parts: Mapping[tuple[str, int], list[Part]]) -> list[Drawing]:
    jobs = [plan.plain(person, people, person.class_word) for person in classes_of(people)]
    for (arm, seed), chosen in parts.items():
        for person, part in zip(people, chosen, strict=True):
            jobs.append(plan.alone(part, people, f"{arm}-{person.name}-s{seed}"))
            for fusion, how in FUSIONS.items():
                label = f"fused-{arm}-{fusion}-{person.name}-s{seed}"
                jobs.append(plan.drawing(label, person, chosen, people, **how))
    return jobs


def _rows(people: list[Person], taken: Mapping[tuple[str, int], int], drawn: Records) -> list[Row]:
    rows = []
    for (arm, seed), step in taken.items():
        for fusion in FUSIONS:
            for person in people:
                end = f"{person.name}-s{seed}"
                labels = (f"fused-{arm}-{fusion}-{end}", f"alone-{arm}-{end}", f"base-{person.class_word}")
                if all(label in drawn for label in labels):
                    about = {"arm": arm, "fusion": fusion, "seed": seed, "step": step}
                    rows.append({**about, **kept(person, *(drawn[label] for label in labels))})
    return rows
