"""What goes wrong in a batch is noted with its reason, and spoils nothing else."""

import io
import resource

import pytest
from batch_folder import Counting, checked, events, jobs
from conftest import random_concept
from PIL import Image

from spectral_diffusion.batch import batch, plan, tasks
from spectral_diffusion.engines import Item, Outcome
from spectral_diffusion.engines.local import Worker
from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.manifest import NAME, opened
from spectral_diffusion.request import Request
from spectral_diffusion.stage import Stage


@pytest.fixture(scope="module")
def rex(base):
    return Fused.of(random_concept(base, "rex", 0))


BAD_ROWS = {
    "no JSON": ("{", "no JSON"),
    "unknown column": ({"promt": "a"}, "no column 'promt'"),
    "stranger": ({"prompt": "<bob>"}, "<bob>, which is not loaded; loaded concepts: <rex>"),
    "stranger's strength": ({"prompt": "a", "strength.bob": 1}, "bob is not in this fused file"),
    "stranger in a region": ({"prompt": "a", "regions": ["left: <bob>"]}, "<bob>, which is not loaded"),
    "clip skip": ({"prompt": "a", "clip_skip": 9}, "Clip skip must be 1 to 2"),
    "no picture": ({"prompt": "a", "image": "none.png", "steps": 4}, "There is no start picture"),
    "no VAE": ({"prompt": "a", "vae": "none"}, "no VAE's file, nor its folder"),
}


def test_bad_rows_are_noted_and_the_rest_is_made(base, pristine, rex, tmp_path):
    good = [{"prompt": "a dog", "seed": seed} for seed in (1, 2)]
    file, out = jobs(tmp_path, good[0], *(row for row, _ in BAD_ROWS.values()), good[1]), tmp_path / "out"
    first = batch(file, out, base, rex)
    assert first.made == 2 and len(checked(out)) == 2
    reasons = dict(first.failed)
    assert sorted(reasons) == list(range(2, 2 + len(BAD_ROWS)))
    for row, (_, said) in enumerate(BAD_ROWS.values(), start=2):
        assert said in reasons[row]
    noted = [event for event in events(out) if event["event"] == "failed"]
    assert {event["row"]: event["reason"] for event in noted} == reasons
    engine = Counting(base, rex)
    second = batch(file, out, base, rex, engine=engine)
    assert not engine.items and second.kept == 2 and dict(second.failed) == reasons
    assert [event for event in events(out) if event["event"] == "failed"] == noted, "told once is enough"


def without_cats(monkeypatch):
    """From now on no picture can be drawn with a cat."""
    draw = Stage.draw

    def fragile(self, request, shots, report=None):
        if any("cat" in shot.prompt for shot in shots):
            raise RuntimeError("out of memory")
        return draw(self, request, shots, report)

    monkeypatch.setattr(Stage, "draw", fragile)


def test_failed_pictures_are_tried_again_when_asked(base, tmp_path, monkeypatch):
    file, out = jobs(tmp_path, {"prompt": "a cat"}, {"prompt": "a dog"}), tmp_path / "out"
    with monkeypatch.context() as patch:
        without_cats(patch)
        assert batch(file, out, base).failed == ((1, "RuntimeError: out of memory"),)
    assert batch(file, out, base).failed == ((1, "RuntimeError: out of memory"),)
    assert batch(file, out, base, retry_failed=True).failed == ()
    assert len(checked(out)) == 2


def test_one_picture_that_fails_spoils_none_that_is_drawn_with_it(base, monkeypatch):
    without_cats(monkeypatch)
    requests = [Request(prompt, steps=1, seed=seed) for prompt in ("a dog", "a cat") for seed in (1, 2)]
    (task,) = tasks([Item(str(i), i, r, r.shots()[0]) for i, r in enumerate(requests)])
    with Worker(base) as worker:
        outcomes = {outcome.id: outcome for outcome in worker.work(task)}
    assert [bool(outcomes[str(i)].content) for i in range(4)] == [True, True, False, False]
    assert outcomes["2"].reason == "RuntimeError: out of memory"


class Big:
    """Pictures of less than 1 kB and, as the second, of 4 kB."""

    def run(self, tasks):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "PNG")
        for number, task in enumerate(tasks):
            for item in task:
                yield Outcome(item.id, buffer.getvalue() + bytes(4096 * (number == 1)))


def test_a_full_disk_stops_the_batch_and_leaves_whole_files(base, tmp_path):
    file, out = (
        jobs(tmp_path, *({"prompt": "a", "seed": seed, "batch": 1} for seed in range(3))),
        tmp_path / "out",
    )
    with opened(out) as manifest:  # so that the manifest itself needs little room
        entries = [{"id": one.item.id, "file": f"{i:05d}.png"} for i, one in enumerate(plan(file, base)[0])]
        manifest.plan(entries)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limit[1]))
        with pytest.raises(InputError, match=r"disk is full while writing to .*start the same batch again"):
            batch(file, out, base, engine=Big())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [len(content) < 1024 for content in checked(out).values()] == [True]
    summary = batch(file, out, base, metadata=False)
    assert (summary.made, summary.kept) == (2, 1)


def test_two_batches_in_one_folder_are_refused(base, tmp_path):
    out = tmp_path / "out"
    with opened(out), pytest.raises(InputError, match="Another batch is running"):
        batch(jobs(tmp_path, {"prompt": "a"}), out, base)


@pytest.mark.parametrize(
    "line",
    ["[1]", "{", '{"event": "x"}', '{"event": "done", "id": "a"}',
     '{"event": "planned", "id": "a", "file": "../a.png"}'],
)  # fmt: skip
def test_a_manifest_that_makes_no_sense_is_told(tmp_path, line):
    (tmp_path / NAME).write_text(line + "\n")
    with pytest.raises(DamagedFile, match="damaged in line 1"), opened(tmp_path):
        raise AssertionError("never entered")
