"""3, 8 and 16 concepts at once, most of them in pairs of one class: what each way of training and fusing keeps.

Every arm chooses its own strength, one for all concepts, from the same grid on held-in pictures of the first three
concepts; what is reported is drawn with other seeds. A concept has one training for each form, whatever the number
of concepts.
"""

from __future__ import annotations

from statistics import mean
from typing import Any, NamedTuple

from benchmarks.experiments.cast import Person, cast
from benchmarks.experiments.figures import Row, kept, summary
from benchmarks.experiments.jobs import Drawing, Part, Training
from benchmarks.experiments.plan import CHOOSE, Plan, classes_of
from benchmarks.experiments.runner import Experiment, Records

# arm -> (form of the concepts, how they are fused)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "spectral": ("additive", {"method": "spectral"}),
    "filtered": ("additive", {"method": "filtered"}),
    "distilled": ("additive", {"method": "distilled"}),
    "gradient": ("additive", {"method": "gradient"}),
    "mean": ("additive", {"method": "mean"}),
    "orthogonal": ("orthogonal", {"method": "orthogonal"}),
    "lora_sum": ("lora", {"method": "sum"}),
    "lora_gradient": ("lora", {"method": "gradient"}),
    "lora_filtered": ("lora", {"method": "filtered"}),
    "lora_distilled": ("lora", {"method": "distilled"}),
    "lora_ties": ("lora", {"method": "ties"}),
    "lora_svd": ("lora", {"method": "svd"}),
}
SEEDS = {3: 5}  # fewer for more concepts
COLUMNS = ("count", "arm", "runs", "strength", "identity_alone", "identity_fused", "retention",
           "retention_above_chance", "leakage_mean", "leakage_worst", "alignment_change")  # fmt: skip
_CHOOSERS = 3


class Run(NamedTuple):
    """One fusion that is measured."""

    count: int
    arm: str
    seed: int


def run(plan: Plan) -> Experiment:
    """One row for each number of concepts, arm, seed and concept, at the arm's own best strength."""
    people = cast(max(plan.counts), plan.out / "photos")
    runs = [
        Run(count, arm, seed)
        for count in plan.counts
        for seed in plan.of_seeds(SEEDS.get(count, 2))
        for arm in plan.chosen(ARMS)
    ]
    trainings = {one: _trainings(plan, people[: one.count], one) for one in runs}
    trained = yield list({t.label: t for each in trainings.values() for t in each}.values())
    runs = [one for one in runs if all(t.label in trained for t in trainings[one])]
    parts = {one: [Part(training) for training in trainings[one]] for one in runs}
    tries = {
        (one, strength): [
            _fused(
                plan,
                people,
                parts[one],
                one,
                person,
                strength,
                "try",
                pictures=min(4, plan.pictures),
                first_seed=CHOOSE,
            )
            for person in people[: min(_CHOOSERS, one.count)]
        ]
        for one in runs
        for strength in plan.strengths
    }
    looked = yield [job for jobs in tries.values() for job in jobs]
    best = _best(runs, tries, looked, plan.strengths)
    jobs: dict[str, Drawing] = {}
    for one, strength in best.items():
        mine = people[: one.count]
        for person, part in zip(mine, parts[one], strict=True):
            for job in (
                _fused(plan, mine, parts[one], one, person, strength, "fused"),
                plan.alone(part, mine, f"{one.count}-{part.training.label}"),
            ):
                jobs[job.label] = job
        for person in classes_of(mine):
            job = plan.plain(person, mine, f"{one.count}-{person.class_word}")
            jobs[job.label] = job
    drawn = yield list(jobs.values())
    rows: list[Row] = []
    for one, strength in best.items():
        for person, training in zip(people[: one.count], trainings[one], strict=True):
            labels = (
                f"fused-{_name(one)}-{person.name}",
                f"alone-{one.count}-{training.label}",
                f"base-{one.count}-{person.class_word}",
            )
            if all(label in drawn for label in labels):
                about = {**one._asdict(), "strength": strength}
                rows.append({**about, **kept(person, *(drawn[label] for label in labels))})
    return {"rows": rows, "summary": summary(rows, by=("count", "arm")), "columns": COLUMNS}


def _name(one: Run) -> str:
    return f"{one.count}-{one.arm}-s{one.seed}"


def _trainings(plan: Plan, people: list[Person], one: Run) -> list[Training]:
    form, _ = ARMS[one.arm]
    place = {} if form == "lora" else {"start": 0}
    return [
        plan.training(person, form, one.seed, form=form, **{key: i * plan.rank for key in place})
        for i, person in enumerate(people)
    ]


def _fused(
    plan: Plan,
    people: list[Person],
    parts: list[Part],
    one: Run,
    person: Person,
    strength: float,
    kind: str,
    **how: Any,
) -> Drawing:
    at = f"-{strength:g}" if kind == "try" else ""
    label = f"{kind}-{_name(one)}-{person.name}{at}"
    mine = people[: one.count]
    return plan.drawing(label, person, parts, mine, strength=strength, **ARMS[one.arm][1], **how)


def _best(
    runs: list[Run],
    tries: dict[tuple[Run, float], list[Drawing]],
    looked: Records,
    strengths: tuple[float, ...],
) -> dict[Run, float]:
    """The strength of the best mean identity on held-in pictures, for each arm and number: one for all seeds."""
    found: dict[Run, float] = {}
    for count, arm in dict.fromkeys((one.count, one.arm) for one in runs):
        group = [one for one in runs if (one.count, one.arm) == (count, arm)]
        scores = {}
        for strength in strengths:
            jobs = [job for one in group for job in tries[one, strength]]
            if jobs and all(job.label in looked for job in jobs):
                names = [(job.label, job.subject.strip("<>")) for job in jobs]
                scores[strength] = mean(mean(looked[label]["identity"][name]) for label, name in names)
        if scores:
            best = max(scores, key=lambda strength: scores[strength])
            found |= dict.fromkeys(group, best)
    return found
