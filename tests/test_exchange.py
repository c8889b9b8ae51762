"""The command `export` refuses what cannot be before anything slow, and tells what an export loses."""

import pytest
from command_line import run, told
from conftest import random_concept
from safetensors.torch import load_file

from fusion.fuse import fuse


@pytest.fixture(scope="module")
def duo(base):
    concepts = [random_concept(base, "rex", 0), random_concept(base, "mia", 3, "rotational", 1)]
    return fuse(concepts, {"rex": 0.5, "mia": 0.75})


def test_the_command_exports_each_or_refuses_before_anything_is_written(duo, tmp_path):
    duo.switched("rex", False).save(file := tmp_path / "duo.safetensors")
    how = ("spectral_diffusion", "export", file, "--format", "kohya", "-o", tmp_path / "out")
    told(run(*how, "--each", "--strength", "mia=0.5"), "--each writes every concept at strength 1")
    result = run(*how, "--each")
    assert result.exit_code == 0, (result.output, result.exception)
    assert (
        "note: rex left out: switched off" in result.stderr
        and "fp16 rounds the weight change" in result.stderr
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mia.safetensors"]
    duo.save(file)
    (tmp_path / "out" / "rex.safetensors").mkdir()
    (tmp_path / "out" / "mia.safetensors").unlink()
    told(run(*how, "--each"), "rex.safetensors is a folder")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rex.safetensors"]
    told(
        run(*how[:-1], tmp_path / "x.safetensors", "--dtype", "fp8"),
        "--dtype 'fp8' is none of fp16, bf16, fp32",
    )
    told(run(*how[:-1], tmp_path / "x.safetensors", "--base", "nowhere"), "There is no base 'nowhere'")


def test_the_command_merges_a_v_prediction_base_and_tells_what_rounding_takes(base_folder, duo, tmp_path):
    duo.save(file := tmp_path / "duo.safetensors")
    how = ("--format", "checkpoint", "--base", base_folder, "-o", tmp_path / "m.safetensors", "--mean-words")
    result = run(
        "spectral_diffusion", "export", file, *how, "--prediction", "v_prediction", "--dtype", "bf16"
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert "v_pred" in load_file(tmp_path / "m.safetensors")
    assert "note: bf16 rounds the weight change by" in result.stderr
    told(run("spectral_diffusion", "export", file, *how, "--prediction", "x"), "--prediction 'x' is none of")
