"""The bundled samples: how much each trained concept looks like its photos, beside how much they look like each other.

Identity is taken twice: as the trainer does (four pictures on the beach), and on pictures in several places.
"""

from __future__ import annotations

from statistics import mean

from benchmarks.experiments.cast import bundled
from benchmarks.experiments.figures import Row, summary
from benchmarks.experiments.jobs import Part
from benchmarks.experiments.plan import Plan
from benchmarks.experiments.runner import Experiment

COLUMNS = ("concept", "runs", "identity", "identity_in_places", "identity_of_photos", "ratio", "ratio_in_places",
           "alignment_change", "training_seconds")  # fmt: skip


def run(plan: Plan) -> Experiment:
    """One row for each sample and seed."""
    people = [person for person in bundled() if plan.arms is None or person.name in plan.arms]
    trainings = [plan.training(person, "sample", seed) for seed in plan.of_seeds(3) for person in people]
    trained = yield trainings
    trainings = [training for training in trainings if training.label in trained]
    plain = {person.name: plan.plain(person, [person], person.name) for person in people}
    alone = {t.label: plan.alone(Part(t), [t.person], t.label) for t in trainings}
    drawn = yield [*plain.values(), *alone.values()]
    rows: list[Row] = []
    for training in trainings:
        name, record = training.person.name, trained[training.label]
        pictures, bare = (drawn.get(job.label) for job in (alone[training.label], plain[name]))
        if pictures is None or bare is None:
            continue
        likeness, ceiling = mean(pictures["identity"][name]), record["identity_of_photos"]
        identity = list(record["identity"].values())[-1]
        rows.append(
            {
                "concept": name,
                "seed": training.seed,
                "identity": identity,
                "identity_in_places": likeness,
                "identity_chance": mean(bare["identity"][name]),
                "identity_of_photos": ceiling,
                "ratio": identity / ceiling if identity and ceiling else None,
                "ratio_in_places": likeness / ceiling if ceiling else None,
                "alignment_change": mean(pictures["alignment"]) - mean(bare["alignment"]),
                "training_seconds": record["training_seconds"],
            }
        )
    return {"rows": rows, "summary": summary(rows, by=("concept",)), "columns": COLUMNS}
