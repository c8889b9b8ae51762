"""Whatever stops a training, going on ends at the same numbers, bit for bit; nothing else is gone on from."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import same

from concepts import checkpoint, logs, trainer
from concepts.checkpoint import OtherTraining, training_folder
from concepts.course import Diverged
from concepts.dataset import read_folder
from concepts.interrupt import STOP_FILE, Stopped
from concepts.settings import Settings
from spectral_diffusion.base import load_base
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError, NameTaken, SliceTaken
from spectral_diffusion.fused import content_hash
from spectral_diffusion.ledger import Ledger, Slice
from spectral_diffusion.tuner import spectral_layers

ROOT = Path(__file__).parent.parent
STEPS = {"steps": 4, "prior_weight": 0, "save_every": 1, "warmup": 1}


def ledger_of(base, library):
    return {
        entry.name: (entry.slice, entry.state) for entry in Ledger(library, base.fingerprint, 32).entries()
    }


def at(step, action):
    """A report that acts once, when `step` is done."""
    done = []

    def report(stage, count, total, loss):
        if (stage, count) == ("train", step) and not done:
            done.append(step)
            action()

    return report


def interrupt():
    raise KeyboardInterrupt


def folder_of(library, name="rex"):
    return training_folder(library, name)


# stopping and going on


@pytest.mark.parametrize(
    "options",
    [
        {"form": "additive", "previews": 2},
        {"form": "rotational", "layerwise": True, "ema": 0.9, "word_norm": 1e-6},
        {"optimiser": "torch.optim.RMSprop", "schedule": "cosine", "accumulate": 2, "seed": 3},
    ],
)
def test_n_and_m_steps_equal_the_straight_run_bit_for_bit(base, pristine, teach, tmp_path, options):
    options = {**STEPS, **options}
    with pytest.raises(KeyboardInterrupt):
        teach(tmp_path, "rex", "dog", at(3, interrupt), **options)
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder_of(tmp_path))] == [1, 2]
    again = teach(tmp_path, "rex", "dog", **options)
    straight = teach(tmp_path / "straight", "rex", "dog", **options)
    assert content_hash(again.concept) == content_hash(straight.concept)
    steps = [line["step"] for line in logs.read(folder_of(tmp_path) / logs.NAME) if "loss" in line]
    assert steps == [1, 2, 3, 4], "each step stands once in the log"
    assert len(again.previews) == len(straight.previews) == options.get("previews", 0)


KILLED = """
import sys, time
from pathlib import Path
from concepts import trainer
from concepts.dataset import read_folder
from concepts.settings import Settings
from spectral_diffusion.base import load_base

base, photos, library, options = sys.argv[1:]
trainer.MEASURED = {"steps": 1}
settings = Settings("rex", "dog", **eval(options))
examples = read_folder(photos, "rex", 64, "dog").examples
slow = lambda *_: time.sleep(0.15)  # or a busy machine would let it finish before the kill
trainer.train(load_base(base), examples, settings, Path(library), slow)
"""


def killed_after(step, command):
    """Runs `command` and kills it -9 at a random moment after `step`; whether it was still running."""
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log, deadline = folder_of(Path(command[-2])) / logs.NAME, time.monotonic() + 400
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and any(line.get("step", 0) >= step for line in logs.read(log)):
                break
            time.sleep(0.002)
        time.sleep(random.random() * 0.4)
        return process.poll() is None
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_process_killed_at_random_steps_ends_at_the_same_numbers(
    base, base_folder, photo_folder, tmp_path, monkeypatch
):
    options = {
        "precision": "fp32",  # half precision would round small differences away
        "steps": 24,
        "batch": 1,
        "crops": 2,
        "rank": 2,
        "previews": 0,
        "prior_weight": 0,
        "save_every": 1,
    }
    library = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(base_folder), str(photo_folder), str(library), repr(options)]
    kills = sorted(random.sample(range(1, 12), 2))
    assert [killed_after(step, command) for step in kills] == [True, True], kills
    assert not (library / "rex.safetensors").exists() and checkpoint.checkpoints(folder_of(library))
    monkeypatch.setattr(trainer, "MEASURED", {"steps": 1})
    examples = read_folder(photo_folder, "rex", 64, "dog").examples
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other process: sums over threads round differently
    try:
        runs = [
            trainer.train(base, examples, Settings("rex", "dog", **options), where)
            for where in (library, tmp_path / "straight")
        ]
    finally:
        torch.set_num_threads(threads)
    assert content_hash(runs[0].concept) == content_hash(runs[1].concept), kills
    assert not list(library.rglob("*.tmp")) or not list(library.glob("*.tmp"))


@contextmanager
def handlers_kept():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def asked_by(how, library):
    if how == "stop file":
        return lambda: (folder_of(library) / STOP_FILE).touch()
    return lambda: signal.raise_signal(getattr(signal, how))


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "stop file"])
def test_who_asks_to_stop_gets_the_step_finished_and_saved(base, pristine, teach, tmp_path, how):
    options = {**STEPS, "save_every": 100}
    with handlers_kept(), pytest.raises(Stopped, match="Stopped after step 2 of 4: the same command goes on"):
        teach(tmp_path, "rex", "dog", at(2, asked_by(how, tmp_path)), start=3, **options)
    assert ledger_of(base, tmp_path) == {"rex": (Slice(3, 2), "training")}
    assert not (folder_of(tmp_path) / STOP_FILE).exists()
    again = teach(tmp_path, "rex", "dog", **options)
    straight = teach(tmp_path / "straight", "rex", "dog", start=3, **options)
    assert content_hash(again.concept) == content_hash(straight.concept)
    assert ledger_of(base, tmp_path) == {"rex": (Slice(3, 2), "done")}


def test_a_wish_to_stop_in_the_last_step_comes_too_late(teach, tmp_path):
    run = teach(tmp_path, "rex", "dog", at(4, asked_by("stop file", tmp_path)), **STEPS)
    assert run.path.exists() and not checkpoint.checkpoints(folder_of(tmp_path))


def test_a_stopped_training_keeps_its_slice_and_the_next_run_takes_it_up(base, pristine, teach, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        teach(tmp_path, "rex", "dog", at(1, interrupt), start=3)
    assert ledger_of(base, tmp_path) == {"rex": (Slice(3, 2), "training")}
    assert not list(tmp_path.glob("*.safetensors"))
    assert teach(tmp_path, "mia", "cat", start=5).concept.slice == Slice(5, 2)
    with pytest.raises(SliceTaken, match=r"Columns 4\.\.5 overlap 3\.\.4 of rex"):
        teach(tmp_path, "nox", "cat", start=4)
    again = teach(tmp_path, "rex", "dog")
    assert again.concept.slice == Slice(3, 2)
    assert ledger_of(base, tmp_path)["rex"] == (Slice(3, 2), "done")


def test_a_file_written_just_before_the_kill_counts_as_finished(base, teach, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "finish", lambda *_: interrupt())
        with pytest.raises(KeyboardInterrupt):
            teach(tmp_path, "rex", "dog", **STEPS)
    assert ledger_of(base, tmp_path)["rex"][1] == "training"
    written = (tmp_path / "rex.safetensors").read_bytes()
    run = teach(tmp_path, "rex", "dog", **STEPS)
    assert run.path.read_bytes() == written and ledger_of(base, tmp_path)["rex"][1] == "done"
    with pytest.raises(NameTaken, match="exists already"):
        teach(tmp_path, "rex", "dog", **STEPS)


# what is not gone on from


@pytest.fixture
def stopped(base, teach, tmp_path):
    """A library with `rex` stopped after step 2 of 4."""
    with pytest.raises(Stopped):
        teach(tmp_path, "rex", "dog", at(2, asked_by("stop file", tmp_path)), **STEPS)
    return tmp_path


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"steps": 5}, "steps was 4, now 5"),
        ({"weight_rate": 0.5}, r"weight_rate was 0\.01, now 0\.5"),
    ],
)
def test_other_settings_are_refused_and_restart_starts_anew(base, teach, stopped, change, said):
    before = checkpoint.checkpoints(folder_of(stopped))
    with pytest.raises(OtherTraining, match=rf"rex-training holds .*{said}.*--restart"):
        teach(stopped, "rex", "dog", **{**STEPS, **change})
    assert checkpoint.checkpoints(folder_of(stopped)) == before
    assert ledger_of(base, stopped) == {"rex": (Slice(0, 2), "training")}


def test_restart_forgets_the_old_training_and_its_slice(base, teach, stopped, photo_folder):
    examples = read_folder(photo_folder, "rex", 64, "dog").examples
    small = {"steps": 1, "batch": 1, "crops": 1, "rank": 3, "previews": 0, "prior_weight": 0}
    options = trainer.Options(restart=True)
    run = trainer.train(base, examples, Settings("rex", "dog", **small), stopped, options=options)
    assert run.concept.slice == Slice(0, 3)
    assert [line["step"] for line in logs.read(folder_of(stopped) / logs.NAME) if "loss" in line] == [1]


def test_finish_makes_the_concept_of_the_last_checkpoint(base, teach, stopped, photo_folder, tmp_path):
    from concepts.dataset import read_folder

    tiny = {"batch": 2, "crops": 2, "rank": 2, "previews": 0, "prior_pictures": 4, "prior_batch": 2,
            "weight_rate": 1e-2, **STEPS}  # fmt: skip
    settings, options = Settings("rex", "dog", **tiny), trainer.Options(finish=True)
    examples = read_folder(photo_folder, "rex", 64, "dog").examples
    run = trainer.train(base, examples, settings, stopped, options=options)
    assert run.concept.card["step"] == 2
    with pytest.raises(InputError, match="nothing to finish"):
        trainer.train(base, examples, settings, tmp_path / "new", options=options)
    assert ledger_of(base, tmp_path / "new") == {}


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(teach, stopped):
    newest = checkpoint.checkpoints(folder_of(stopped))[-1]
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match=r"truncated.* put aside as step-000002\.damaged"):
        again = teach(stopped, "rex", "dog", **STEPS)
    assert newest.with_suffix(".damaged").exists(), "nothing is deleted that somebody may want back"
    straight = teach(stopped / "straight", "rex", "dog", **STEPS)
    assert content_hash(again.concept) == content_hash(straight.concept)


def test_damaged_checkpoints_alone_make_no_concept(teach, stopped, base, photo_folder):
    for path in checkpoint.checkpoints(folder_of(stopped)):
        path.write_bytes(b"oops")
    tiny = {"batch": 2, "crops": 2, "rank": 2, "previews": 0, "weight_rate": 1e-2, **STEPS}
    examples = read_folder(photo_folder, "rex", 64, "dog").examples
    with pytest.raises(InputError, match="nothing to finish"), pytest.warns(UserWarning, match="put aside"):
        trainer.train(
            base, examples, Settings("rex", "dog", **tiny), stopped, options=trainer.Options(finish=True)
        )
    assert not (stopped / "rex.safetensors").exists()


def test_a_number_gone_bad_names_the_step_and_keeps_the_last_good_checkpoint(base, pristine, teach, tmp_path):
    def poison():
        layer = next(iter(spectral_layers(base.pipeline.unet, trainer.ADAPTER).values()))
        layer.spectral_A[trainer.ADAPTER].data.fill_(float("nan"))

    options = {**STEPS, "save_every": 2}
    with pytest.raises(Diverged, match=r"not a number at step 4: lower the rates .* step 2.*--finish"):
        teach(tmp_path, "rex", "dog", at(3, poison), **options)
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder_of(tmp_path))] == [2]
    assert ledger_of(base, tmp_path)["rex"][1] == "training"
    last = logs.read(folder_of(tmp_path) / logs.NAME)[-1]
    assert (last["event"], last["step"]) == ("failed", 3)


def test_an_early_explosion_is_seen_within_a_few_steps_and_its_checkpoints_go(tmp_path):
    toybox = load_base("toybox")  # the tiny base knows nothing that it could lose

    def burst():
        for layer in spectral_layers(toybox.pipeline.unet, trainer.ADAPTER).values():
            numbers = layer.spectral_A[trainer.ADAPTER].data
            numbers.copy_(2 * torch.randn(numbers.shape, generator=torch.Generator().manual_seed(0)))

    examples = read_folder(ROOT / "docs" / "samples" / "rex", "rex", toybox.size, "dog").examples
    few = {"steps": 14, "previews": 0, "prior_weight": 0, "save_every": 2, "keep": 9, "batch": 1}
    with pytest.raises(Diverged, match=r"exploded at step \d+ .*: lower the rates .* step [24].*--finish"):
        trainer.train(toybox, examples, Settings("rex", "dog", **few), tmp_path, at(5, burst))
    kept = {checkpoint.step_of(path) for path in checkpoint.checkpoints(folder_of(tmp_path))}
    assert kept and kept <= {2, 4}, "none from after the burst"
    assert logs.read(folder_of(tmp_path) / logs.NAME)[-1]["step"] <= 12


def test_the_finished_file_is_what_the_run_returned(teach, tmp_path):
    run = teach(tmp_path, "rex", "dog", **STEPS)
    assert same(Concept.load(run.path).words, run.concept.words)
    assert not checkpoint.checkpoints(folder_of(tmp_path)) and (folder_of(tmp_path) / logs.NAME).exists()
