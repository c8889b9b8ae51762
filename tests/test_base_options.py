"""Every command that loads a base takes --vae for a file without one, and --prediction for one that does not tell."""

import pytest
from command_line import run, told
from conftest import random_concept
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_lora_member import write_lora

from fusion.fuse import fuse
from spectral_diffusion.merged import save_checkpoint

VAE = "first_stage_model."


@pytest.fixture(scope="module")
def bare(base, tmp_path_factory):
    """The base as one file without its VAE, and that VAE as another."""
    folder = tmp_path_factory.mktemp("bare")
    save_checkpoint(base, None, whole := folder / "whole.safetensors")
    with safe_open(whole, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(whole)
    save_file(
        {k: t for k, t in tensors.items() if not k.startswith(VAE)}, folder / "bare.safetensors", metadata
    )
    save_file({k: t for k, t in tensors.items() if k.startswith(VAE)}, folder / "vae.safetensors")
    whole.unlink()
    return folder


@pytest.fixture
def commands(base, bare, photo_folder, tmp_path):
    rex = random_concept(base, "rex", 0)
    rex.save(tmp_path / "rex.safetensors")
    fuse([rex]).save(fused := tmp_path / "fused.safetensors")
    write_lora(base, lora := tmp_path / "lora.safetensors")
    library = ("--library", tmp_path / "library")
    few = ("--steps", 1, "--rank", 2, "--prior-weight", 0, "--set", "previews=0")
    return {
        "train": ("concepts", "train", photo_folder, "--name", "bob", "--class", "owl", *few, *library),
        "import": ("concepts", "import", lora, "--name", "sks", "--class", "dog", *library),
        "reserve": ("concepts", "reserve", "amy", *library),
        "bake": ("fusion", "bake", fused, "-o", tmp_path / "baked"),
        "fuse": (
            "fusion",
            "fuse",
            tmp_path / "rex.safetensors",
            "--verbose",
            "-o",
            tmp_path / "x.safetensors",
        ),
        "generate": (
            "spectral_diffusion",
            "generate",
            fused,
            "a <rex>",
            "--steps",
            1,
            "-o",
            tmp_path / "out",
        ),
        "export": ("spectral_diffusion", "export", fused, "--format", "folder", "-o", tmp_path / "folder"),
    }


@pytest.mark.parametrize("name", ["train", "import", "reserve", "bake", "fuse", "generate", "export"])
def test_a_base_without_a_vae_is_told_how_and_then_taken(commands, bare, name):
    command = (*commands[name], "--base", bare / "bare.safetensors")
    told(run(*command), "has no VAE baked in: give one with --vae FILE")
    how = () if name == "reserve" else ("--prediction", "v_prediction")
    result = run(*command, "--vae", bare / "vae.safetensors", *how)
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.mark.parametrize("name", ["train", "import", "bake", "generate", "export"])
def test_a_prediction_that_is_none_is_told(commands, base_folder, name):
    told(
        run(*commands[name], "--base", base_folder, "--prediction", "x0"),
        "'x0' is none of epsilon, v_prediction",
    )
