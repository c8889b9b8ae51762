"""How far a training is, from its log; the curves; and both in words."""

import json
import os
import time

import pytest

from pages.curve import curves
from pages.jobs import Job
from pages.trainings import told_of
from pages.watch import Progress, in_words, progress_of

RUNNING = Job("0" * 12, "rex", "dog", state="running", started=time.time() - 60)


def log(library, *lines):
    folder = library / "rex-training"
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return folder


def test_a_training_that_prepares_has_no_steps_yet(tmp_path):
    assert progress_of(tmp_path, RUNNING) == Progress()
    assert "preparing" in told_of(RUNNING, Progress())


def test_step_curves_and_time_left_come_from_the_log(tmp_path):
    now = time.time()
    steps = [{"step": i, "loss": 1 / i, "time": now - 10 + i} for i in range(1, 11)]
    seen = {"event": "preview", "step": 5, "identity": 0.5, "text": 0.2}
    log(tmp_path, {"event": "start", "step": 0, "steps": 40}, *steps, seen, '{"step": 11, "lo')
    progress = progress_of(tmp_path, RUNNING)
    assert (progress.step, progress.steps) == (10, 40)
    assert progress.losses[-1] == (10, 0.1) and len(progress.losses) == 10
    assert progress.identity == ((5, 0.5),) and progress.text == ((5, 0.2),)
    assert progress.seconds_left == pytest.approx(30, abs=3)  # 30 steps at one a second


def test_a_pause_is_no_slow_step(tmp_path):
    now = time.time()
    before = [{"step": i, "loss": 1, "time": now - 9000 + i} for i in range(1, 6)]
    after = [{"step": i, "loss": 1, "time": now - 10 + i} for i in range(6, 11)]
    start, resume = ({"event": event, "step": 0, "steps": 40} for event in ("start", "resume"))
    log(tmp_path, start, *before, resume, *after)
    assert progress_of(tmp_path, RUNNING).seconds_left == pytest.approx(30, abs=3)


def test_the_log_of_an_earlier_training_is_not_taken_for_this_one(tmp_path):
    file = log(tmp_path, {"event": "start", "step": 0, "steps": 40}, {"step": 7, "loss": 1}) / "log.jsonl"
    os.utime(file, (1, 1))
    assert progress_of(tmp_path, RUNNING) == Progress()


def test_previews_are_found_in_order(tmp_path):
    folder = log(tmp_path, {"event": "start", "step": 0, "steps": 4}) / "previews"
    folder.mkdir()
    for step in (10, 2):
        (folder / f"step-{step:05d}.png").write_bytes(b"x")
    assert [p.name for p in progress_of(tmp_path, RUNNING).previews] == ["step-00002.png", "step-00010.png"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("queued", "waits in the queue"), ("running", "step 3 of 9, 2 min left"), ("stopped", "it can go on"),
        ("paused", "paused at step 3 of 9; it can go on"), ("failed", "no photos"), ("done", "write <rex>"),
    ],
)  # fmt: skip
def test_every_state_is_told_in_words(state, said):
    progress = Progress(step=3, steps=9, seconds_left=120)
    assert said in told_of(Job("0" * 12, "rex", "dog", state=state, error="no photos"), progress)


@pytest.mark.parametrize(
    ("wish", "said"), [("pause", "pausing after step 3"), ("stop", "stopping after step 3")]
)
def test_a_wish_is_told_until_it_is_granted(wish, said):
    job = Job("0" * 12, "rex", "dog", state="running", wish=wish)
    assert said in told_of(job, Progress(step=3, steps=9))
    assert "paused before its first step" in told_of(Job("0" * 12, "rex", state="paused"), Progress())


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (40, "40 s"), (180, "3 min"), (7500, "2 h 5 min")]
)
def test_time_is_told_in_sensible_units(seconds, said):
    assert in_words(seconds) == said


def test_a_curve_tells_its_values_without_eyes():
    drawn = curves("Loss <x>", {"loss": [(1, 0.5), (2, 0.25)], "text": []})
    assert 'role="img"' in drawn and "loss 0.250 at step 2" in drawn and "Loss &lt;x&gt;" in drawn
    assert drawn.count("<polyline") == 1
    assert "nothing yet" in curves("Loss", {"loss": []})


def test_a_long_curve_stays_small_and_ends_where_it_ends():
    drawn = curves("Loss", {"loss": [(i, float(i % 7)) for i in range(1, 20_001)]})
    assert len(drawn) < 20_000 and "at step 20000" in drawn
