"""The experiments ask for what their reports read, go on where they stopped, and do without what failed."""

import json
from collections import Counter
from statistics import mean

import pytest

from benchmarks.experiments import ablation, figure4, many, samples, slices
from benchmarks.experiments.cast import _MORE, _ORDER, Person, bundled
from benchmarks.experiments.figures import kept, summary, table
from benchmarks.experiments.jobs import Drawing, Overlaps, Part, Training, key_of
from benchmarks.experiments.plan import Plan
from benchmarks.experiments.runner import Runner
from concepts import trainer
from spectral_diffusion.errors import InputError
from tools.toybox import art

BASE = "ab" * 32


def answer(job):
    """A plausible record: identity alone .9, fused .8, chance .5; a training learns from point to point."""
    if isinstance(job, Training):
        steps = job.settings["steps"]
        points = [steps * i // job.points for i in range(1, job.points + 1)]
        identity = {str(step): 0.5 + 0.4 * step / steps for step in points}
        return {
            "identity": identity,
            "identity_of_photos": 0.95,
            "training_seconds": 70.0,
            "losses": [[1, 0.5]],
        }
    if isinstance(job, Overlaps):
        return {"cosine": 0.1, "seconds": 1.0}
    level = 0.5 if not job.parts else 0.9 if job.method is None else 0.8
    if job.parts and job.parts[0].step:
        level = 0.7
    names = [person.name for person in job.people]
    assert job.subject.strip("<>") in names or not job.parts
    return {"identity": {name: [level] * job.pictures for name in names}, "alignment": [0.3] * job.pictures}


def driven(experiment, fail=lambda job: False):
    """The report of an experiment whose jobs are answered at once; every label is used once in each list."""
    records, jobs = None, []
    while True:
        try:
            asked = experiment.send(records)
        except StopIteration as end:
            json.dumps(end.value)
            return end.value, jobs
        assert max(Counter(job.label for job in asked).values(), default=1) == 1
        jobs += asked
        records = {job.label: answer(job) for job in asked if not fail(job)}


@pytest.fixture
def drawn_cast(monkeypatch, tmp_path):
    """Photos that nobody draws: the art is not part of the repository."""
    monkeypatch.setattr(
        "benchmarks.experiments.cast._rendered", lambda name, *_: Person(name, _MORE[name][0], "x")
    )
    return Plan(tmp_path, width=64)


EXPERIMENTS = {"figure4": 42, "ablation": 90, "many": 123, "slices": 54, "samples": 24}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_reports_on_all_it_asked_for(drawn_cast, name):
    module = {"figure4": figure4, "ablation": ablation, "many": many, "slices": slices, "samples": samples}[
        name
    ]
    report, jobs = driven(module.run(drawn_cast))
    trainings = [job for job in jobs if isinstance(job, Training)]
    assert len(trainings) == EXPERIMENTS[name]
    assert len({key_of(job, BASE) for job in jobs}) == len(jobs)
    assert report["rows"] and report["summary"] and table(report["summary"], report["columns"])
    assert {row["seed"] for row in report["rows"]} == {t.seed for t in trainings}
    for job in trainings:  # slices stay inside the spectrum
        assert (job.settings.get("start") or 0) + drawn_cast.rank <= drawn_cast.width


def test_a_failed_training_costs_its_own_rows_only(drawn_cast):
    def fail(job):
        return isinstance(job, Training) and job.label == "train-lora-mia-s1"

    whole, _ = driven(figure4.run(drawn_cast))
    report, _ = driven(figure4.run(drawn_cast), fail)
    lost = [row for row in whole["rows"] if row not in report["rows"]]
    assert {(row["arm"], row["seed"]) for row in lost} == {("lora", 1)}


def test_figure_4_differs_in_nothing_but_where_the_columns_lie(drawn_cast):
    _, jobs = driven(figure4.run(drawn_cast))
    own = {"start", "scatter", "form"}
    rest = {json.dumps({k: v for k, v in t.settings.items() if k not in own and k != "seed"})
            for t in jobs if isinstance(t, Training)}  # fmt: skip
    assert len(rest) == 1
    same = [d for d in jobs if isinstance(d, Drawing) and d.label.startswith("fused-same-sum")]
    assert {tuple(p.training.settings["start"] for p in d.parts) for d in same} == {(0, 0, 0)}
    assert all(d.regardless and d.norm_control is False for d in same)


def test_the_ablation_compares_at_equal_identity_alone(drawn_cast):
    report, jobs = driven(ablation.run(drawn_cast))
    assert report["target_identity"] == pytest.approx(0.9)
    chosen = [d for d in jobs if isinstance(d, Drawing) and d.label.startswith("fused-")]
    assert {p.step for d in chosen for p in d.parts} == {None}  # only the last point is at .9
    assert {row["step"] for row in report["rows"]} == {
        t.settings["steps"] for t in jobs if isinstance(t, Training)
    }


def test_every_arm_chooses_its_strength_on_other_pictures_than_it_reports(drawn_cast):
    _, jobs = driven(many.run(drawn_cast))
    drawings = [job for job in jobs if isinstance(job, Drawing)]
    tried = {d.first_seed for d in drawings if d.label.startswith("try")}
    reported = {d.first_seed for d in drawings if d.label.startswith("fused")}
    assert len(tried) == len(reported) == 1 and abs(tried.pop() - reported.pop()) > 100
    assert {d.strength for d in drawings if d.label.startswith("try")} == set(drawn_cast.strengths)


def test_half_of_every_cast_shares_its_class():
    classes = {
        **{name: word for name, (word, _) in art.SAMPLES.items()},
        **{n: w for n, (w, _) in _MORE.items()},
    }
    for count in (3, 8, 16, 40):
        words = Counter(classes[name] for name in _ORDER[:count])
        assert sum(words[classes[name]] > 1 for name in _ORDER[:count]) >= count / 2
    assert len(set(_ORDER)) == 40 and {person.name for person in bundled()} <= set(_ORDER)
    assert set(classes.values()) <= set(art.NOUNS)
    assert not {name for name in _ORDER if name in classes.values()}


def test_a_later_command_adds_training_seeds(tmp_path):
    assert [*Plan(tmp_path, 64, seeds=2, first_seed=1).of_seeds(5)] == [1, 2]
    assert [*Plan(tmp_path, 64).of_seeds(5)] == [0, 1, 2, 3, 4]


def test_a_job_is_told_apart_by_all_it_depends_on():
    person = Person("rex", "dog", "docs/samples/rex")
    job = Training("t", person, {"seed": 0})
    others = [Training("t", person, {"seed": 1}), Training("t", Person("rex", "dog", "x"), {"seed": 0})]
    assert len({key_of(one, BASE) for one in (job, *others)} | {key_of(job, "cd" * 32)}) == 4
    drawing = Drawing("d", "<rex>", (Part(job),), (person,))
    assert key_of(drawing, BASE) != key_of(Drawing("d", "<rex>", (Part(others[0]),), (person,)), BASE)


def test_what_is_kept_is_measured_above_chance():
    rex, mia = Person("rex", "dog", "x"), Person("mia", "cat", "x")
    fused, alone, plain = (
        {"identity": {"rex": [own, own], "mia": [other]}, "alignment": [text]}
        for own, other, text in ((0.8, 0.4, 0.2), (0.9, 0.3, 0.25), (0.5, 0.3, 0.3))
    )
    row = kept(rex, fused, alone, plain)
    assert row["retention"] == pytest.approx(0.8 / 0.9)
    assert row["retention_above_chance"] == pytest.approx(0.75)
    assert row["leakage_mean"] == pytest.approx(0.1) and row["alignment_change"] == pytest.approx(-0.1)
    assert kept(mia, fused, plain, plain)["retention_above_chance"] is None
    (group,) = summary([{"arm": "a", "seed": 0, "x": 1.0}, {"arm": "a", "seed": 1, "x": 3.0}], by=("arm",))
    assert group == {"arm": "a", "runs": 2, "x": mean([1.0, 3.0]), "x_sd": pytest.approx(2**0.5, abs=1e-3)}


def test_a_run_goes_on_where_it_stopped_and_leaves_out_what_fails(
    base_folder, photo_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer, "MEASURED", {"steps": 1})
    people = [Person("rex", "dog", str(photo_folder)), Person("mia", "cat", str(photo_folder))]
    tiny = {"steps": 2, "batch": 1, "crops": 1, "rank": 2, "prior_weight": 0.0, "warmup": 0, "start": 0}
    trainings = [Training(f"train-{p.name}", p, {**tiny, "seed": 0}, points=2) for p in people]
    lost = Training("train-lost", Person("nox", "cat", str(tmp_path / "nowhere")), {**tiny, "seed": 0})

    def experiment():
        trained = yield [*trainings, lost]
        assert trained.keys() == {"train-rex", "train-mia"}
        assert list(trained["train-rex"]["identity"]) == ["1", "2"]
        parts = tuple(Part(training) for training in trainings)
        how = {"people": tuple(people), "pictures": 1, "steps": 1}
        drawn = yield [
            Drawing("early", "<rex>", (Part(trainings[0], 1),), **how),
            Drawing("fused", "<rex>", parts, method="sum", regardless=True, **how),
            Drawing("refused", "<rex>", parts, method="sum", **how),
            Drawing("plain", "a dog", (), **how),
            Overlaps("overlap", parts),
        ]
        return {"drawn": sorted(drawn), "identity": drawn["fused"]["identity"]}

    told = []
    runner = Runner(tmp_path / "out", str(base_folder), tell=told.append)
    report = runner.run(experiment())
    assert report["drawn"] == ["early", "fused", "overlap", "plain"]
    assert report["identity"].keys() == {"rex", "mia"}
    assert report["failed"].keys() == {"train-lost", "refused"} and "overlap" in report["failed"]["refused"]
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*") if file.is_file()}
    again = Runner(tmp_path / "out", str(base_folder), tell=told.append).run(experiment())
    assert again == report
    assert {file: file.stat().st_mtime_ns for file in files} == files
    assert len(told) == 10  # eight the first time; the two that failed are tried again


def test_more_concepts_than_there_are_is_refused(tmp_path):
    with pytest.raises(InputError, match="40 members, not 41"):
        next(many.run(Plan(tmp_path, width=64, counts=(41,))))
