"""Trainings as jobs: a queue on disk that survives whoever started it, carried out by a process of its own."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from bundled_library import ended

from pages.commands import train_command
from pages.jobs import Jobs
from pages.runner import run_all
from pages.trainings import Trainings
from pages.watch import progress_of
from spectral_diffusion.errors import InputError

TINY = {"steps": 2, "batch": 2, "crops": 2, "rank": 2, "previews": 1, "warmup": 0, "prior_weight": 0.0}


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path / "library")
    yield jobs
    ended(jobs.library)


def draft(jobs, name="rex", **facts):
    return replace(jobs.draft(), name=name, class_word="dog", **facts)


def test_a_job_is_on_disk_for_every_other_process(jobs):
    job = jobs.enqueue(draft(jobs, options={"steps": 3}))
    assert Jobs(jobs.library).get(job.id) == job
    assert [one.id for one in Jobs(jobs.library).all()] == [job.id]


def test_drafts_are_not_listed_and_old_ones_are_swept(jobs):
    old, new = jobs.draft(), jobs.draft()
    assert jobs.all() == []
    jobs.change(old.id, queued=time.time() - 2 * 24 * 3600)
    jobs.draft()
    assert not jobs.photos(old.id).exists() and jobs.photos(new.id).exists()


@pytest.mark.parametrize(
    "id_", ["", "..", "../../etc", "0" * 11, "0" * 12, "g" * 12, None, 7, "0" * 12 + "\n"]
)
def test_a_foreign_id_is_refused(jobs, id_):
    for act in (jobs.get, jobs.stop, jobs.pause, jobs.forget, jobs.again):
        with pytest.raises(InputError, match="no such training"):
            act(id_)


def test_the_queue_is_in_the_order_of_asking(jobs):
    first, second = jobs.enqueue(draft(jobs, "rex")), jobs.enqueue(draft(jobs, "mia"))
    assert jobs.next().id == first.id
    jobs.change(first.id, state="done")
    assert jobs.next().id == second.id
    jobs.stop(second.id)
    assert jobs.next() is None and jobs.get(second.id).state == "stopped"
    jobs.again(second.id)
    assert jobs.next().id == second.id


def test_a_paused_training_lets_the_next_one_start_and_keeps_its_place(jobs):
    first, second, third = (jobs.enqueue(draft(jobs, name)) for name in ("rex", "mia", "dot"))
    jobs.pause(first.id)
    assert jobs.get(first.id).state == "paused" and jobs.next().id == second.id
    jobs.change(second.id, state="running")
    jobs.again(first.id)
    assert jobs.next().id == first.id  # before the third, which came later
    jobs.stop(first.id)
    jobs.again(first.id)
    assert jobs.next().id == third.id  # a stopped one has lost its place


def test_a_wish_just_before_the_training_starts_is_kept(jobs):
    jobs.enqueue(draft(jobs))
    job = jobs.claim()
    jobs.pause(job.id)
    assert jobs.change(job.id, pid=1).wish == "pause" and jobs.claim() is None
    with pytest.raises(InputError):
        jobs.forget(job.id)


def test_a_pause_does_not_forget_how_the_training_was_to_start(jobs):
    job = jobs.enqueue(replace(draft(jobs), restart=True))
    jobs.pause(job.id)
    assert jobs.again(job.id).restart


def test_a_paused_training_can_be_stopped_kept_or_forgotten(jobs):
    job = jobs.enqueue(draft(jobs))
    jobs.pause(job.id)
    with pytest.raises(InputError, match="rex is paused already"):
        jobs.enqueue(draft(jobs))  # its checkpoint would be lost
    jobs.stop(job.id)
    assert jobs.get(job.id).state == "stopped"
    assert jobs.again(job.id, finish=True).finish
    jobs.pause(job.id)
    jobs.forget(job.id)
    assert jobs.all() == []


def test_a_queue_of_paused_trainings_keeps_no_runner_busy(jobs):
    job = jobs.enqueue(draft(jobs, base="nowhere"))
    jobs.pause(job.id)
    jobs.wake()
    assert not (jobs.folder / "runner.txt").exists() and jobs.get(job.id).state == "paused"


def test_looking_again_does_not_choose_another_training_than_the_page_has(jobs):
    first = jobs.enqueue(draft(jobs, "rex"))
    jobs.stop(first.id)
    page = Trainings(SimpleNamespace(library=jobs.library))
    radio, *_, seen = page.watch(None, [])[:5]
    assert radio["value"] == first.id  # nothing was chosen
    second = jobs.enqueue(draft(jobs, "mia"))  # and chosen by Start while the page looks after the first
    jobs.stop(second.id)
    radio, *_, seen = page.watch(first.id, seen)[:5]
    assert [id_ for _, id_ in radio["choices"]] == [second.id, first.id] and "value" not in radio
    assert "choices" not in page.watch(second.id, seen)[0]
    jobs.forget(second.id)
    assert page.watch(second.id, seen)[0]["value"] == first.id


@pytest.mark.parametrize(("wish", "state"), [("pause", "paused"), ("stop", "stopped"), ("", "stopped")])
def test_what_was_asked_for_is_remembered_when_the_runner_dies(jobs, wish, state):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    job = jobs.enqueue(draft(jobs))
    jobs.change(job.id, state="running", pid=process.pid, started=time.time(), wish=wish)
    run_all(jobs)
    assert jobs.get(job.id).state == state and jobs.get(job.id).wish == ""


def test_one_name_is_taught_once_at_a_time(jobs):
    job = jobs.enqueue(draft(jobs))
    for again in (draft(jobs), job):
        with pytest.raises(InputError, match="already"):
            jobs.enqueue(again)


def test_a_name_that_is_none_never_gets_into_a_command(jobs):
    with pytest.raises(InputError, match="cannot name a concept"):
        jobs.enqueue(draft(jobs, "--finish"))


def test_what_is_under_way_cannot_be_forgotten(jobs):
    job = jobs.enqueue(draft(jobs))
    with pytest.raises(InputError, match="stop it first"):
        jobs.forget(job.id)
    jobs.stop(job.id)
    jobs.forget(job.id)
    assert jobs.all() == [] and not jobs.photos(job.id).exists()


def test_photos_follow_a_renamed_concept(jobs):
    job = jobs.enqueue(draft(jobs))
    assert jobs.photos_of("rex") is None
    jobs.change(job.id, state="done")
    assert jobs.photos_of("rex") == jobs.photos(job.id)
    jobs.renamed("rex", "max")
    assert jobs.photos_of("rex") is None and jobs.photos_of("max") == jobs.photos(job.id)


def test_values_cannot_become_options_of_the_command(jobs, tmp_path):
    job = draft(jobs, options={"preview_prompts": ["{} = 1"], "masks": "plain", "start": None})
    command = train_command(replace(job, class_word="--restart"), tmp_path / "photos", jobs.library)
    assert "--restart" not in command and "--class=--restart" in command
    assert '--set=preview_prompts=["{} = 1"]' in command and "--set=start=none" in command


def test_settings_come_through_the_command_as_they_went_in(jobs, tmp_path):
    from concepts.presets import assignments

    options = {
        "steps": 3,
        "form": "rotational",
        "layerwise": True,
        "start": None,
        "optimiser_options": {"a": 1},
    }
    command = train_command(draft(jobs, options=options), tmp_path, jobs.library)
    given = [word.removeprefix("--set=") for word in command if word.startswith("--set=")]
    options["optimiser_options"] = given and assignments(given)["optimiser_options"]
    assert assignments(given) == options


def test_a_process_of_the_same_number_is_not_waited_for(jobs):
    job = jobs.enqueue(draft(jobs))
    jobs.change(job.id, state="running", pid=os.getpid(), started=time.time())
    run_all(jobs)
    assert jobs.get(job.id).state == "stopped"


def test_there_is_one_runner(jobs):
    job = jobs.enqueue(draft(jobs, base="nowhere"))
    with jobs.runner_lock():
        assert jobs.runner_lives()
        run_all(Jobs(jobs.library))
        jobs.wake()
        assert jobs.get(job.id).state == "queued"
    assert not jobs.runner_lives()


def test_a_training_that_cannot_be_says_why_in_one_sentence(jobs, photo_folder):
    bad, worse = jobs.enqueue(draft(jobs, base="nowhere")), jobs.enqueue(draft(jobs, "mia"))
    for job in (bad, worse):
        shutil.rmtree(jobs.photos(job.id))
    shutil.copytree(photo_folder, jobs.photos(bad.id))
    run_all(jobs)
    assert jobs.get(bad.id).state == "failed" and "nowhere" in jobs.get(bad.id).error
    assert jobs.get(worse.id).state == "failed" and "not a folder" in jobs.get(worse.id).error


def wait_for(jobs, id_, done, seconds=500):
    end = time.time() + seconds
    while not done(jobs.get(id_)):
        assert time.time() < end, (jobs.get(id_), jobs.output(id_).read_text())
        time.sleep(0.3)
    return jobs.get(id_)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_outlives_its_page_pauses_goes_on_stops_and_can_be_kept(jobs, base_folder, photo_folder):
    job = draft(jobs, base=str(base_folder), options={**TINY, "steps": 100_000, "save_every": 1})
    shutil.copytree(photo_folder, jobs.photos(job.id), dirs_exist_ok=True)
    jobs.enqueue(job)
    jobs.wake()
    wait_for(jobs, job.id, lambda now: progress_of(jobs.library, now).step >= 2 or now.state == "failed")
    Jobs(jobs.library).pause(job.id)  # another page, another server
    paused = wait_for(jobs, job.id, lambda now: now.state != "running")
    assert paused.state == "paused", paused
    at = progress_of(jobs.library, paused).step
    jobs.again(job.id)
    jobs.wake()
    wait_for(jobs, job.id, lambda now: progress_of(jobs.library, now).step > at or now.state == "failed")
    assert progress_of(jobs.library, job).losses[:at] == progress_of(jobs.library, paused).losses[:at]
    jobs.stop(job.id)
    stopped = wait_for(jobs, job.id, lambda now: now.state != "running")
    assert stopped.state == "stopped", stopped
    assert progress_of(jobs.library, stopped).steps == 100_000
    jobs.again(job.id, finish=True)
    jobs.wake()
    done = wait_for(jobs, job.id, lambda now: now.state in ("done", "failed"))
    assert done.state == "done", done
    assert (jobs.library / "rex.safetensors").exists()
    assert jobs.photos_of("rex") == jobs.photos(job.id)
