"""The three commands do the main job end to end; a mistake in a training is one sentence with exit code 2."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import ROOT, files_in, run, told
from PIL import Image

from concepts import trainer
from concepts.course import Course
from spectral_diffusion.generate import KEYWORD


@pytest.fixture
def train(base_folder, photo_folder, library):
    """`python -m concepts train` with few steps: `train(name="bob", folder=…, base=…, options…)`."""

    def call(*options, name="bob", class_word="owl", folder=photo_folder, base=base_folder):
        few = ("--steps", 1, "--rank", 2, "--prior-weight", 0, "--library", library)
        return run(
            "concepts", "train", folder, "--name", name, "--class", class_word, "--base", base, *few, *options
        )

    return call


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for pictures in ("MEASURED", "PREVIEW"):
        monkeypatch.setattr(trainer, pictures, {"steps": 1})


# the main job


def test_from_photos_to_pictures_of_two_fused_concepts(train, library, base_folder, tmp_path):
    result = train("--layerwise", "--form", "rotational")
    assert result.exit_code == 0, result.output
    assert "columns 4..5, write <bob> in prompts" in result.stdout
    fused = tmp_path / "fused" / "duo.safetensors"
    where = ("--library", library, "--base", base_folder, "-o", fused)
    result = run("fusion", "fuse", "rex", "bob", *where, "--strength", "rex=0.5")
    assert result.exit_code == 0, result.output
    assert "<rex> dog, columns 0..1, strength 0.5\n<bob> owl, columns 4..5, strength 1\n" in result.stdout
    for expected in (["00001-7.png", "00002-8.png"], ["00003-7.png", "00004-8.png"]):
        arguments = (fused, "<bob> and <rex>", "--base", base_folder, "--seed", 7, "--count", 2, "--steps", 2)
        result = run(
            "spectral_diffusion", "generate", *arguments, "-o", tmp_path / "out", "--strength", "bob=0.9"
        )
        assert result.exit_code == 0, result.output
        assert [Path(line).name for line in result.stdout.splitlines()] == expected
    with (
        Image.open(tmp_path / "out" / "00004-8.png") as one,
        Image.open(tmp_path / "out" / "00002-8.png") as two,
    ):
        assert one.tobytes() == two.tobytes()
        made = json.loads(one.text[KEYWORD])
    assert [(c["name"], c["strength"]) for c in made["concepts"]] == [("rex", 0.5), ("bob", 0.9)]
    assert "Seed: 8" in one.text["parameters"]


def test_a_caption_with_the_class_word_names_the_concept(train, library, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("an owl in the snow")
    result = train(folder=folder)
    assert result.exit_code == 0, result.output
    assert "note: " in result.stderr and "one picture only" in result.stderr
    from spectral_diffusion.concept import read_card

    assert read_card(library / "bob.safetensors")["card"]["captions"] == ["<bob> in the snow"]


@pytest.mark.parametrize(
    "command",
    [
        ("concepts", "train"),
        ("concepts", "list"),
        ("fusion", "fuse"),
        ("spectral_diffusion", "generate"),
        ("concepts",),
        ("fusion",),
    ],
)
def test_help_answers_at_once(command):
    module, *rest = command

    def seconds():  # of processor time: the test machine may be busy
        before = os.times()
        answer = subprocess.run(
            [sys.executable, "-m", module, *rest, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Usage" in answer.stdout
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    assert min(seconds() for _ in range(2)) < 1


# photos


def truncated(folder):
    Image.effect_noise((300, 300), 90).convert("RGB").save(folder / "a.jpg")
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:9000])
    return "a.jpg", "truncated or damaged"


def text_named_jpg(folder):
    (folder / "a.jpg").write_text("dear diary")
    return "a.jpg is not a picture", "PNG, JPEG and WebP"


def empty(folder):
    return folder, "no picture"


def caption_of_another(folder):
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    (folder / "a.txt").write_text("<bob> and <mia>")
    return ("<mia>, which is not loaded",)


@pytest.mark.parametrize("spoil", [truncated, text_named_jpg, empty, caption_of_another])
def test_bad_photos_are_told_and_nothing_is_left(train, library, tmp_path, spoil):
    folder = tmp_path / "photos"
    folder.mkdir()
    said, before = spoil(folder), files_in(library)
    told(train(folder=folder), *said)
    assert files_in(library) == before


# bases, names and slices


def no_index(base_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty", "no model_index.json"


def pickled(base_folder, tmp_path):
    torch.save({}, tmp_path / "chill.ckpt")
    return tmp_path / "chill.ckpt", "pickle"


def damaged(base_folder, tmp_path):
    copy = shutil.copytree(base_folder, tmp_path / "base")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"oops")
    return copy, "cannot be loaded"


def unknown(base_folder, tmp_path):
    return "nobody/nothing", "There is no base 'nobody/nothing'"


@pytest.mark.parametrize("make", [unknown, no_index, pickled, damaged])
def test_a_bad_base_is_told(train, library, base_folder, taught, tmp_path, make):
    (bad, said), before = make(base_folder, tmp_path), files_in(library)
    told(train(base=bad), said)
    file = taught.trained["rex"].path
    told(run("spectral_diffusion", "generate", file, "<rex>", "--base", bad, "-o", tmp_path / "out"), said)
    assert files_in(library) == before and not (tmp_path / "out").exists()


MISTAKES = {
    "name taken": ({"name": "rex"}, (), "rex.safetensors exists already"),
    "name that is the class": ({"name": "cat", "class_word": "cat"}, (), "'cat' is already the class word"),
    "name that is no name": ({"name": "Rex!"}, (), "'Rex!' cannot name a concept"),
    "empty class": ({"class_word": " "}, (), "class is empty"),
    "unknown form": ({}, ("--form", "diagonal"), "lora or orthogonal, not 'diagonal'"),
    "no steps": ({}, ("--steps", 0), "steps must be at least 1"),
    "rate not a number": ({}, ("--weight-rate", "nan"), "weight_rate must be a number"),
    "rank 0": ({}, ("--rank", 0), "rank of a slice is a whole number from 1 on, not 0"),
    "full ledger": ({}, ("--rank", 29), "No 29 columns in a row are free among 32"),
    "slice taken": ({}, ("--start", 3), "overlap 2..3 of mia: the next free slice of rank 2 is 4..5"),
    "slice outside": ({}, ("--start", 31), "this base has 32"),
    "negative start": ({}, ("--start", -1), "start of a slice is a whole number from 0 on, not -1"),
    "rates too large": ({}, ("--weight-rate", 1e30, "--steps", 3), "lower the rates"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_training_is_told_and_leaves_library_and_ledger(train, library, case):
    what, options, said = MISTAKES[case]
    before = files_in(library)
    told(train(*options, **what), said)
    after = {path: content for path, content in files_in(library).items() if "previews" not in str(path)}
    assert after == {path: content for path, content in before.items() if "previews" not in str(path)}


def test_a_damaged_ledger_is_told(train, library):
    next(library.glob("ledger-*.json")).write_text("{")
    told(train(), "ledger-", "is damaged")


# stopping


def ledger_of(library):
    content = json.loads(next(library.glob("ledger-*.json")).read_text())
    return {line["name"]: (line["start"], line["state"]) for line in content["entries"]}


def test_ctrl_c_is_told_and_the_slice_waits_for_the_next_run(train, library, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Course, "advance", interrupt)
        result = train("--start", 6)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "error: interrupted.")
    assert ledger_of(library)["bob"] == (6, "training") and not (library / "bob.safetensors").exists()
    assert "columns 6..7" in train().stdout
    assert ledger_of(library)["bob"] == (6, "done")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.timeout(400)
def test_a_killed_training_leaves_its_slice_to_the_next_run(train, library, base_folder, photo_folder):
    what = (
        "--name",
        "bob",
        "--class",
        "owl",
        "--rank",
        2,
        "--start",
        6,
        "--steps",
        10**6,
        "--prior-weight",
        0,
    )
    command = (
        sys.executable,
        "-m",
        "concepts",
        "train",
        photo_folder,
        *what,
        "--base",
        base_folder,
        "--library",
        library,
    )
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        while "bob" not in ledger_of(library) and time.monotonic() < deadline:
            time.sleep(0.1)
        told(train(), "bob is being trained right now by another process")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=100) != 0
    finally:
        process.kill()
    assert ledger_of(library)["bob"] == (6, "training")
    assert not [path for path in library.rglob("*") if path.suffix == ".tmp"]
    assert not (library / "bob.safetensors").exists()
    assert "columns 6..7" in train("--restart", "--start", 6).stdout
