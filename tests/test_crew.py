"""A crew of processes teaches what one process does, and goes when its main process goes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from typer.testing import CliRunner

from concepts import logs
from concepts.__main__ import app
from concepts.crew import CrewLost, crew, fitting
from concepts.world import World
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import USER_ERROR
from spectral_diffusion.fused import Fused, content_hash

ROOT = Path(__file__).parent.parent
OPTIONS = ("--rank", 2, "--batch", 3, "--weight-rate", 0.01, "--set", "prior_pictures=4", "--set", "prior_batch=2",
           "--set", "previews=0", "--set", "precision=fp32", "--set", "save_every=1")  # fmt: skip

cpu_only = pytest.mark.skipif(torch.cuda.is_available(), reason="here the processes meet on the CPU")


@pytest.fixture()
def command(base_folder, photo_folder):
    """The command that teaches rex into a library in so many steps and processes."""

    def build(library, steps, processes):
        what = (photo_folder, "--name", "rex", "--class", "dog", "--base", base_folder, "--library", library)
        how = ("--steps", steps, "--processes", processes)
        return [str(part) for part in (sys.executable, "-m", "concepts", "train", *what, *OPTIONS, *how)]

    return build


def wait_for(condition, seconds=120):
    """What `condition` gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail("waited in vain")


def at_step(library, step):
    """Whether the training's log has come to `step`."""
    log = library / "rex-training" / logs.NAME
    return log.exists() and any(line.get("step", 0) >= step for line in logs.read(log))


@pytest.mark.slow
@pytest.mark.timeout(600)
@cpu_only
def test_a_crew_teaches_what_one_process_does(command, tmp_path):
    def taught(processes):
        library = tmp_path / str(processes)
        run = subprocess.run(command(library, 3, processes), cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
        assert run.stdout.count("columns 0..1") == 1, "only the main process speaks"
        return Fused.of(Concept.load(library / "rex.safetensors"))

    one, crewed = taught(1), taught(2)
    total = sum(float(one.delta(layer).norm() ** 2) for layer in one.layers())
    apart = sum(float((one.delta(layer) - crewed.delta(layer)).norm() ** 2) for layer in one.layers())
    assert apart < 1e-3 * total


@pytest.mark.slow
@pytest.mark.timeout(600)
@cpu_only
@pytest.mark.parametrize("victim", ["main", "other"])
def test_when_a_process_is_killed_the_rest_ends_and_the_command_goes_on(command, tmp_path, victim):
    run = subprocess.Popen(command(tmp_path, 4000, 2), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: at_step(tmp_path, 3))
        others = [p for p in psutil.Process(run.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        assert len(others) == 1
        os.kill(run.pid if victim == "main" else others[0].pid, signal.SIGKILL)
        said = run.communicate(timeout=60)[1]
        wait_for(lambda: not others[0].is_running() or others[0].status() == psutil.STATUS_ZOMBIE)
    finally:
        run.kill()
        run.wait()
    if victim == "other":
        assert run.returncode == USER_ERROR
        assert "the same command goes on from the last checkpoint" in said and "Traceback" not in said
    finished = subprocess.run([*command(tmp_path, 4000, 2), "--finish"], cwd=ROOT, capture_output=True)
    assert finished.returncode == 0, finished.stderr
    assert Concept.load(tmp_path / "rex.safetensors").card["step"] >= 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@cpu_only
def test_a_crew_that_was_killed_ends_at_the_same_numbers_bit_for_bit(command, tmp_path):
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    run = subprocess.Popen(command(killed, 60, 2), cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: at_step(killed, 3))
        assert run.poll() is None, "it was still at work"
    finally:
        run.kill()
        run.wait()
    assert not (killed / "rex.safetensors").exists()
    hashes = []
    for library in (killed, straight):
        done = subprocess.run(command(library, 60, 2), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        hashes.append(content_hash(Concept.load(library / "rex.safetensors")))
    events = [line["event"] for line in logs.read(killed / "rex-training" / logs.NAME) if "event" in line]
    assert events[:2] == ["start", "resume"] and hashes[0] == hashes[1]


def stay(world):
    """What the other process does: it waits for the main one."""
    world.any(False)


@cpu_only
def test_a_mistake_of_ours_keeps_its_name():
    with pytest.raises(RuntimeError, match=r"^mine$"), crew(2, stay):
        raise RuntimeError("mine")


@cpu_only
def test_a_process_that_fails_is_told_as_lost():
    with pytest.raises(CrewLost, match="ended with code 1"), crew(2, open) as world:  # no world can be opened
        world.any(False)


@pytest.mark.slow
@pytest.mark.timeout(600)
@cpu_only
def test_a_crew_measures_and_keeps_the_best_step(tmp_path):
    what = ("docs/samples/rex", "--name", "rex", "--class", "dog", "--library", tmp_path, "--keep-best")
    how = ("--steps", 2, "--processes", 2, "--set", "previews=1", "--set", "prior_weight=0")
    command = [str(part) for part in (sys.executable, "-m", "concepts", "train", *what, *how)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    assert len(Concept.load(tmp_path / "rex.safetensors").card["curve"]) == 2


def test_one_process_starts_no_other():
    with crew(1, print) as world:
        assert world == World()


def test_small_pictures_on_a_processor_are_shared_out(base, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert fitting(base, batch=4) == 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert fitting(base, batch=4) == 1, "a launcher has started the processes"


def test_less_than_one_process_is_refused(command, tmp_path):
    result = CliRunner().invoke(app, command(tmp_path, 1, 0)[3:])
    assert result.exit_code == USER_ERROR and "--processes must be at least 1" in result.stderr
    assert not (tmp_path / "rex.safetensors").exists()
