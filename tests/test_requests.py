"""A fused file is adjusted, listed and baked from the command line, and what is wrong is told in one sentence."""

import errno
from dataclasses import replace

import pytest
from command_line import files_in, run, told
from conftest import random_concept

from fusion.fuse import changed
from fusion.methods import METHODS
from spectral_diffusion.fused import Fused

SUM = ("--method", "spectral")  # which needs no base


@pytest.fixture
def adjust(library, tmp_path):
    duo = tmp_path / "duo.safetensors"
    assert run("fusion", "fuse", "rex", "mia", *SUM, "--library", library, "-o", duo).exit_code == 0

    def call(*options):
        return run(
            "fusion", "adjust", duo, "-o", tmp_path / "new.safetensors", "--library", library, *options
        )

    return call


def test_a_fused_file_is_adjusted_without_its_concepts(adjust, library, tmp_path):
    for file in library.glob("*.safetensors"):
        file.rename(tmp_path / f"{file.name}.away")
    result = adjust("--strength", "rex=0.5", "--strength", "rex.mid=2", "--off", "mia")
    assert result.exit_code == 0, (result.output, result.exception)
    fused = Fused.load(tmp_path / "new.safetensors")
    assert (fused.member("rex").strength, fused.member("rex").blocks) == (0.5, {"mid": 2.0})
    assert not fused.member("mia").on


def test_members_come_and_go(adjust, library, tmp_path):
    assert adjust("--remove", "rex").exit_code == 0
    assert Fused.load(tmp_path / "new.safetensors").names == ["mia"]
    assert adjust("--remove", "rex", "--add", "rex").exit_code == 0
    fused, duo = (Fused.load(tmp_path / f"{name}.safetensors") for name in ("new", "duo"))
    assert fused.names == ["mia", "rex"]
    assert all(fused.delta(layer).equal(duo.delta(layer)) for layer in duo.layers())


@pytest.mark.parametrize("options, said", [
    (["--remove", "bob"], "bob is not in this fused file; it has rex, mia"),
    (["--remove", "rex", "--remove", "mia"], "Nothing would be left"),
    (["--add", "rex"], "rex is in this fused file already"),
    (["--strength", "rex.up.9=1"], "rex has no block 'up.9'"),
    (["--strength", "rex.mid=x"], "'rex.mid=x' is not name.block=number"),
    (["--strength", "rex=-1"], "from 0 on, not -1.0"),
    (["--on", "bob"], "bob is not in this fused file"),
    (["--on", "rex", "--off", "rex"], "rex is to be both on and off"),
    (["--strength", "rex=1", "--strength", "rex=0.5"], "--strength is given twice for rex"),
    (["--strength", "rex.mid=1", "--strength", "rex.mid=0.5"], "--strength is given twice for rex.mid"),
    (["--norm-control", "much"], "'much' is neither on nor off nor a cap"),
    (["--norm-control", "-1"], "norm cap must be a number above 0, not -1"),
])  # fmt: skip
def test_a_wrong_adjustment_is_told_and_nothing_is_written(adjust, library, tmp_path, options, said):
    before = files_in(tmp_path)
    told(adjust(*options), said)
    assert files_in(tmp_path) == before


def test_what_fuse_refuses_is_not_added_either(adjust, base, library, tmp_path):
    strewn = random_concept(base, "nox", 6)
    replace(strewn, card={"settings": {"scatter": 1}}).save(library / "nox.safetensors")
    told(adjust("--add", "nox"), "nox was trained for an experiment", "without scatter")
    assert not (tmp_path / "new.safetensors").exists()


def test_a_concept_that_was_added_from_a_file_is_found_again(adjust, base, library, tmp_path):
    random_concept(base, "nox", 6).save(tmp_path / "nox.safetensors")
    assert adjust("--add", tmp_path / "nox.safetensors").exit_code == 0
    printed = run("fusion", "recipe", tmp_path / "new.safetensors").stdout
    (tmp_path / "r.toml").write_text(printed)
    out = tmp_path / "again.safetensors"
    result = run("fusion", "fuse", tmp_path / "r.toml", "--library", library, "-o", out)
    assert (
        result.exit_code == 0 and Fused.load(out).members == Fused.load(tmp_path / "new.safetensors").members
    )


def test_norm_control_is_set_by_both_commands(adjust, library, tmp_path):
    for given, cap in (("off", None), ("1.1", 1.1), ("on", 1.25)):
        assert adjust("--norm-control", given).exit_code == 0
        assert Fused.load(tmp_path / "new.safetensors").norm_cap == cap
    out = tmp_path / "x.safetensors"
    fused = run(
        "fusion", "fuse", "rex", "mia", *SUM, "--library", library, "-o", out, "--norm-control", "1.5"
    )
    assert fused.exit_code == 0 and Fused.load(out).norm_cap == 1.5


def test_an_adjusted_merge_says_what_it_is_no_longer_and_has_no_recipe(library, base, tmp_path):
    random_concept(base, "nox", 6).save(library / "nox.safetensors")
    duo, trio = (tmp_path / f"{name}.safetensors" for name in ("duo", "trio"))
    where = ("--library", library, "-o")
    assert run("fusion", "fuse", "rex", "mia", "--method", "ties", *where, duo).exit_code == 0
    added = run("fusion", "adjust", duo, "--add", "nox", *where, trio)
    assert "No longer what ties makes of them: nox was added as trained" in added.stdout
    told(run("fusion", "recipe", trio), "No recipe gives this file, for nox was added as trained after ties")
    assert (
        run("fusion", "adjust", trio, "--remove", "nox", *where, tmp_path / "back.safetensors").exit_code == 0
    )
    assert (tmp_path / "back.safetensors").read_bytes() == duo.read_bytes()


def test_every_layer_is_listed_on_request_and_what_acts_is_counted(adjust, base, base_folder, tmp_path):
    plain = adjust("--off", "mia", "--strength", "rex.text=0")
    left = [
        layer for layer in changed(Fused.load(tmp_path / "duo.safetensors").without("mia")) if "unet" in layer
    ]
    assert f"{len(left)} layers of tiny changed, all others left alone" in plain.stdout
    assert "  alone  " not in plain.stdout
    listed = adjust("--off", "mia", "--verbose", "--base", base_folder).stdout
    assert all(layer in listed for layer in base.adaptable)


@pytest.mark.parametrize("command", [("fuse", "rex"), ("adjust", "duo.safetensors")])
def test_a_base_that_cannot_be_listed_is_told_before_anything_is_written(adjust, library, tmp_path, command):
    verb, what = command
    given = tmp_path / what if verb == "adjust" else what
    out = tmp_path / "listed.safetensors"
    told(
        run("fusion", verb, given, "--library", library, "-o", out, "--verbose", "--base", tmp_path / "none"),
        "none",
    )
    assert not out.exists()


@pytest.mark.parametrize("where", ["file/new.safetensors", "x" * 300 + ".safetensors"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_done(
    library, tmp_path, monkeypatch, where
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("fusion.run.run", None)
    told(run("fusion", "fuse", "rex", "--library", library, "-o", tmp_path / where), "cannot be written")


def test_what_the_system_refuses_while_writing_is_one_sentence(library, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Fused, "save", refuse)
    out = tmp_path / "x.safetensors"
    told(run("fusion", "fuse", "rex", "--library", library, "-o", out), out, "Read-only", "another place")


def test_blocks_and_options_are_said_on_the_command_line(library, tmp_path):
    out = tmp_path / "x.safetensors"
    arguments = ("rex", "mia", "--library", library, "-o", out)
    result = run(
        "fusion", "fuse", *arguments, "--method", "ties", "--option", "density=1", "--strength", "rex.mid=0"
    )
    assert result.exit_code == 0, (result.output, result.exception)
    fused = Fused.load(out)
    assert fused.made == {"method": "ties", "options": {"density": 1}} and fused.member("rex").blocks == {
        "mid": 0
    }
    told(run("fusion", "fuse", *arguments, "--option", "density"), "'density' is not name=number")
    twice = ("--option", "density=1", "--option", "density=0.5")
    told(run("fusion", "fuse", *arguments, *twice), "--option is given twice for density")
    told(run("fusion", "fuse", *arguments, "--strength", "bob.mid=1"), "given for bob, which is not among")


def test_the_methods_are_listed(tmp_path):
    lines = run("fusion", "methods").stdout.splitlines()
    assert lines[0].startswith("spectral    the paper's  the exact sum")
    assert [line.split()[0] for line in lines] == list(METHODS)


def test_baking_from_the_command_line_tells_how_to_write_the_words(library, base_folder, tmp_path):
    out, baked = tmp_path / "duo.safetensors", tmp_path / "baked"
    assert run("fusion", "fuse", "rex", "mia", *SUM, "--library", library, "-o", out).exit_code == 0
    told(run("fusion", "bake", out, "-o", baked, "--base", base_folder), "layer-wise")
    assert not baked.exists()
    result = run("fusion", "bake", out, "-o", baked, "--base", base_folder, "--mean-words", "--dtype", "fp32")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "write <rex-1> <rex-2> for <rex>" in result.stdout and (baked / "model_index.json").exists()
    told(run("fusion", "bake", out, "-o", baked, "--base", base_folder, "--mean-words"), "baked", "exists")
