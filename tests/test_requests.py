"""A fused file is adjusted, listed and baked from the command line, and what is wrong is told in one sentence."""

import pytest
from command_line import files_in, run, told

from fusion.methods import METHODS
from spectral_diffusion.fused import Fused


@pytest.fixture
def adjust(library, tmp_path):
    duo = tmp_path / "duo.safetensors"
    assert run("fusion", "fuse", "rex", "mia", "--library", library, "-o", duo).exit_code == 0

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
])  # fmt: skip
def test_a_wrong_adjustment_is_told_and_nothing_is_written(adjust, library, tmp_path, options, said):
    before = files_in(tmp_path)
    told(adjust(*options), said)
    assert files_in(tmp_path) == before


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
    told(run("fusion", "fuse", *arguments, "--strength", "bob.mid=1"), "given for bob, which is not among")


def test_the_methods_are_listed(tmp_path):
    lines = run("fusion", "methods").stdout.splitlines()
    assert lines[0].startswith("spectral    the paper's  the exact sum")
    assert [line.split()[0] for line in lines] == list(METHODS)


def test_baking_from_the_command_line_tells_how_to_write_the_words(library, base_folder, tmp_path):
    out, baked = tmp_path / "duo.safetensors", tmp_path / "baked"
    assert run("fusion", "fuse", "rex", "mia", "--library", library, "-o", out).exit_code == 0
    told(run("fusion", "bake", out, "-o", baked, "--base", base_folder), "layer-wise")
    assert not baked.exists()
    result = run("fusion", "bake", out, "-o", baked, "--base", base_folder, "--mean-words", "--fp32")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "write <rex-1> <rex-2> for <rex>" in result.stdout and (baked / "model_index.json").exists()
    told(run("fusion", "bake", out, "-o", baked, "--base", base_folder, "--mean-words"), "baked", "exists")
