"""A mistake in a request for pictures or in a fusion is one sentence with exit code 2, and leaves no file."""

from dataclasses import replace

import pytest
import torch
from command_line import files_in, run, told
from conftest import random_concept
from safetensors.torch import load_file, save_file

from spectral_diffusion.fused import Fused


@pytest.fixture
def generate(base_folder, tmp_path):
    def call(file, prompt="<rex>", *options):
        where = ("--base", base_folder, "--steps", 1, "-o", tmp_path / "out")
        result = run("spectral_diffusion", "generate", file, prompt, *where, *options)
        assert result.exit_code == 0 or not (tmp_path / "out").exists(), "half-written"
        return result

    return call


@pytest.fixture
def fuse(library, tmp_path):
    def call(*names_and_options, output=tmp_path / "fused.safetensors"):
        before = files_in(tmp_path)
        result = run("fusion", "fuse", *names_and_options, "--library", library, "-o", output)
        assert result.exit_code == 0 or files_in(tmp_path) == before, "half-written"
        return result

    return call


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])
    return f"{file} is truncated or altered"


def poisoned(file):
    from safetensors import safe_open

    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(file)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, file, metadata)
    return f"{file} is damaged"


def foreign(file):
    save_file({"x": torch.zeros(1)}, file)
    return f"{file} was not made by spectral-diffusion"


def missing(file):
    file.unlink()
    return str(file)


@pytest.mark.parametrize("spoil", [cut, poisoned, foreign, missing])
def test_a_bad_concept_file_is_told(generate, fuse, library, spoil):
    said = spoil(library / "rex.safetensors")
    told(generate(library / "rex.safetensors"), said)
    told(fuse(library / "rex.safetensors", "mia"), said)


@pytest.mark.parametrize("suffix", ["pt", "ckpt", "safetensors"])
def test_a_pickle_is_never_opened(generate, fuse, tmp_path, suffix):
    path = tmp_path / f"rex.{suffix}"
    torch.save({"x": torch.zeros(1)}, path)
    told(generate(path), path, "pickle")
    told(fuse(path, "mia"), path, "pickle")


def test_a_concept_of_another_base_is_told(generate, fuse, base, library):
    stranger = random_concept(base, "rex", 0, rank=2)  # its columns are no singular vectors of the base
    replace(stranger, base_fingerprint="cd" * 32, base_name="chill").save(library / "rex.safetensors")
    told(generate(library / "rex.safetensors"), "made over base chill (cdcdcdcdcdcd), not tiny")
    told(fuse("mia", "rex"), "rex on chill (cdcdcdcdcdcd): only concepts of one base can be fused")


GENERATE_MISTAKES = {
    "stranger in the prompt": (("<bob>",), "names <bob>, which is not loaded; loaded concepts: <rex>"),
    "stranger in the negative": (("<rex>", "--negative", "<bob>"), "names <bob>"),
    "unknown sampler": (("<rex>", "--sampler", "Nope"), "no sampler 'Nope'; there are DPM++ 2M"),
    "malformed strength": (("<rex>", "--strength", "rex:1"), "'rex:1' is not name=number"),
    "negative strength": (
        ("<rex>", "--strength", "rex=-1"),
        "strength of rex must be a number from 0 on, not -1.0",
    ),
    "strength NaN": (("<rex>", "--strength", "rex=nan"), "not nan"),
    "strength of a stranger": (("<rex>", "--strength", "bob=1"), "bob is not in this fused file; it has rex"),
    "count 0": (("<rex>", "--count", 0), "count must be 1 to"),
    "negative seed": (("<rex>", "--seed", -1), "seed must be 0 to"),
}


@pytest.mark.parametrize("case", GENERATE_MISTAKES)
def test_a_mistake_in_a_request_is_told_before_the_base_is_loaded(generate, library, monkeypatch, case):
    monkeypatch.setattr("spectral_diffusion.base.load_base", None)
    (prompt, *options), said = GENERATE_MISTAKES[case]
    told(generate(library / "rex.safetensors", prompt, *options), said)


def test_pictures_do_not_go_into_a_file(base_folder, library, tmp_path):
    (tmp_path / "out").write_text("mine")
    arguments = (library / "rex.safetensors", "<rex>", "--base", base_folder, "-o", tmp_path / "out")
    told(run("spectral_diffusion", "generate", *arguments), "out is a file: give a folder")


FUSE_MISTAKES = {
    "twice": (("rex", "mia", "rex"), "rex is given twice"),
    "unknown": (("rex", "bob"), "has no concept bob; it has mia, rex"),
    "unknown method": (("rex", "--method", "tie"), "no method 'tie'; there are spectral, mean"),
    "malformed strength": (("rex", "--strength", "rex"), "'rex' is not name=number"),
    "negative strength": (
        ("rex", "--strength", "rex=-1"),
        "strength of rex must be a number from 0 on, not -1.0",
    ),
    "strength NaN": (("rex", "--strength", "rex=nan"), "not nan"),
    "strength of a stranger": (("rex", "--strength", "mia=1"), "given for mia, which is not among"),
}


@pytest.mark.parametrize("case", FUSE_MISTAKES)
def test_a_mistake_in_a_fusion_is_told(fuse, case):
    arguments, said = FUSE_MISTAKES[case]
    told(fuse(*arguments), said)


def test_overlapping_slices_are_told_with_a_start_that_is_free(fuse, base, library):
    random_concept(base, "nox", 3).save(library / "nox.safetensors")
    told(
        fuse("rex", "mia", "nox"),
        "mia (columns 2..3) and nox (columns 3..5) overlap: train nox again with --start 4",
    )


def test_a_fused_file_replaces_only_a_fused_file(fuse, library, taught, tmp_path):
    told(
        fuse("rex", "mia", output=library / "rex.safetensors"), "rex.safetensors exists and is no fused file"
    )
    told(fuse("rex", output=tmp_path / "duo.ckpt"), "must end in .safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    told(fuse("rex", output=tmp_path / "folder.safetensors"), "is a folder")
    for names in (["rex"], ["rex", "mia"]):
        assert fuse(*names, "--method", "spectral", output=tmp_path / "duo.safetensors").exit_code == 0
    assert Fused.load(tmp_path / "duo.safetensors").names == ["rex", "mia"]
