"""One name is trained by one process of a library, and a restart takes nothing from a training that runs."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_pipeline
from refusal import one_sentence

from concepts import checkpoint, trainer
from concepts.claim import claimed, in_training
from concepts.dataset import read_folder
from concepts.interrupt import STOP_FILE, Stopped
from concepts.inventory import take_stock
from concepts.library import remove
from concepts.listing import table
from concepts.settings import Settings
from spectral_diffusion.base import load_base
from spectral_diffusion.errors import USER_ERROR, InputError, LedgerFull, NameTaken
from spectral_diffusion.ledger import Ledger, Slice

ROOT = Path(__file__).parent.parent
FEW = {"steps": 4, "prior_weight": 0, "save_every": 1}


@pytest.fixture(scope="module")
def other_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    tiny_pipeline(folder / "words", seed=1).save_pretrained(folder / "tiny")
    return load_base(str(folder / "tiny"))


@pytest.fixture
def restart(base, photo_folder, tmp_path):
    """Trains `rex` anew in the library: `restart(on=base, **settings)`."""

    def call(on=base, **options):
        tiny = {"batch": 1, "crops": 1, "rank": 2, "previews": 0, **FEW, **options}
        examples = read_folder(photo_folder, "rex", 64, "dog").examples
        settings, how = Settings("rex", "dog", **tiny), trainer.Options(restart=True)
        return trainer.train(on, examples, settings, tmp_path, options=how)

    return call


def stopped(teach, library, **options):
    """`rex` stopped after step 2; its files."""

    def stop(stage, done, total, loss):
        if (stage, done) == ("train", 2):
            (checkpoint.training_folder(library, "rex") / STOP_FILE).touch()

    with pytest.raises(Stopped):
        teach(library, "rex", "dog", stop, **FEW, **options)
    return kept(library)


def kept(library):
    folder = checkpoint.training_folder(library, "rex")
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def training(library, began, enough):
    """Another process at work."""
    with claimed(library, "rex"):
        began.set()
        enough.wait(60)


@pytest.fixture
def busy(tmp_path):
    """Another process trains `rex` meanwhile."""
    spawn = multiprocessing.get_context("spawn")
    began, enough = spawn.Event(), spawn.Event()
    process = spawn.Process(target=training, args=(tmp_path, began, enough))
    process.start()
    assert began.wait(60)
    yield
    enough.set()
    process.join()


@pytest.mark.parametrize("form", ["additive", "lora"])
def test_a_restart_beside_a_running_training_takes_nothing_from_it(
    base, other_base, teach, restart, busy, tmp_path, form
):
    folder = checkpoint.training_folder(tmp_path, "rex")
    folder.mkdir()
    (folder / "step-000001.safetensors").write_text("its own")
    before = kept(tmp_path)
    assert in_training(tmp_path, "rex") and not in_training(tmp_path, "mia")
    for on in (base, other_base):
        with one_sentence("rex is being trained right now", error=NameTaken):
            restart(on, form=form)
        with pytest.raises(NameTaken):
            teach(tmp_path, "rex", "dog", form=form, on=on)
    assert kept(tmp_path) == before


@pytest.mark.parametrize("form", ["additive", "lora"])
def test_a_name_of_another_base_is_refused_and_its_training_stays(
    base, other_base, teach, restart, tmp_path, form
):
    before = stopped(teach, tmp_path)
    for again in (
        lambda: restart(other_base, form=form),
        lambda: teach(tmp_path, "rex", "dog", on=other_base),
    ):
        with one_sentence("has a concept rex on tiny already (training)", error=NameTaken):
            again()
    assert kept(tmp_path) == before
    assert not Ledger(tmp_path, other_base.fingerprint, 32).entries()


def test_a_restart_that_is_refused_leaves_the_old_training_and_its_slice(base, teach, restart, tmp_path):
    before = stopped(teach, tmp_path, start=3)
    with pytest.raises(LedgerFull):
        restart(rank=33)
    assert kept(tmp_path) == before
    ledger = Ledger(tmp_path, base.fingerprint, 32)
    assert (ledger.entry("rex").slice, ledger.entry("rex").state) == (Slice(3, 2), "training")
    assert restart(start=5).concept.slice == Slice(5, 2)


def test_restart_and_finish_contradict():
    with pytest.raises(InputError, match="leave one of them out"):
        trainer.Options(restart=True, finish=True)


def test_a_stopped_training_without_columns_is_listed_and_removed(base, teach, tmp_path):
    stopped(teach, tmp_path, form="lora")
    stock = take_stock(tmp_path)
    ((listed, state),) = [(one, one.state) for one in stock.concepts]
    assert (listed.name, state, listed.place, listed.class_word) == (
        "rex",
        "stopped",
        "lora of rank 2",
        "dog",
    )
    assert "The training of rex was stopped" in " ".join(stock.problems)
    with claimed(tmp_path, "rex"):
        assert [one.state for one in take_stock(tmp_path).concepts] == ["training"]
        with pytest.raises(NameTaken):
            remove(tmp_path, "rex")
    assert "rex" in " ".join(table(stock))
    remove(tmp_path, "rex")
    assert not take_stock(tmp_path).concepts and not checkpoint.training_folder(tmp_path, "rex").exists()


def test_a_training_that_cannot_be_read_is_told(tmp_path):
    folder = checkpoint.training_folder(tmp_path, "rex")
    folder.mkdir()
    (folder / "step-000001.safetensors").write_text("oops")
    assert "rex-training holds no training that can be read" in " ".join(take_stock(tmp_path).problems)


@pytest.fixture
def commands(base_folder, photo_folder, tmp_path):
    """`python -m concepts train` of these names, all started at once: their exit codes and what they said."""

    def run(*names, steps):
        runs = []
        for name in names:
            what = (
                photo_folder,
                "--name",
                name,
                "--class",
                "dog",
                "--base",
                base_folder,
                "--library",
                tmp_path,
            )
            few = (
                "--steps",
                steps,
                "--rank",
                2,
                "--prior-weight",
                0,
                "--set",
                "previews=0",
                "--processes",
                1,
            )
            command = [str(part) for part in (sys.executable, "-m", "concepts", "train", *what, *few)]
            runs.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
        told = [run.communicate(timeout=500)[1] for run in runs]
        return [run.returncode for run in runs], told

    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_commands_started_at_the_same_moment_get_different_slices(commands, tmp_path):
    codes, told = commands("rex", "mia", "bob", steps=2)
    assert codes == [0, 0, 0], told
    stock = take_stock(tmp_path)
    assert not stock.problems
    assert sorted(str(listed.slice) for listed in stock.concepts) == ["0..1", "2..3", "4..5"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_two_commands_of_one_name_one_trains(commands, tmp_path):
    codes, told = commands("rex", "rex", steps=300)
    assert sorted(codes) == [0, USER_ERROR], told
    assert any("rex is being trained right now" in said for said in told)
    assert [listed.state for listed in take_stock(tmp_path).concepts] == ["done"]
