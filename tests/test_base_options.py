"""Every command that loads a base takes --vae for a file without one, and --prediction for one that does not tell."""

import shutil

import pytest
import torch
from command_line import run, told
from conftest import random_concept
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_lora_member import write_lora
from typer.testing import CliRunner

import app
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


@pytest.fixture
def bases(bare, base_folder, tmp_path):
    """Bases to choose from: two files without a VAE, of which `told` says what it predicts, and a folder."""
    (folder := tmp_path / "bases").mkdir()
    shutil.copy(bare / "bare.safetensors", folder / "told.safetensors")
    with safe_open(folder / "told.safetensors", "pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if k != "modelspec.prediction_type"}
    save_file(load_file(folder / "told.safetensors"), folder / "silent.safetensors", metadata)
    shutil.copytree(base_folder, folder / "whole")
    return folder


def test_the_page_loads_every_base_so_where_it_makes_sense(bare, bases, base, tmp_path):
    from pages.studio import Studio

    vae = bare / "vae.safetensors"
    home = (tmp_path / "library", tmp_path / "out")
    studio = Studio(*home, str(bare / "bare.safetensors"), bases, "cpu", vae, "v_prediction", "none", "plain")
    studio.start()
    both = [f"--vae={vae}", "--prediction=v_prediction"]
    wanted = {
        "bare.safetensors": ("v_prediction", both),
        "silent.safetensors": ("v_prediction", both),
        "told.safetensors": ("epsilon", both[:1]),
        "whole": ("epsilon", []),
    }
    for name, (prediction, words) in wanted.items():
        studio.use(name)
        pipeline = studio.base().pipeline
        assert pipeline.scheduler.config.prediction_type == prediction, name
        given = torch.allclose(
            pipeline.vae.decoder.conv_in.weight, base.pipeline.vae.decoder.conv_in.weight, atol=1e-3
        )
        assert given, name
        assert studio.given.words[1:] == words, name
        assert type(pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor).__name__ == (
            "AttnProcessor"
        )
    assert studio.given_of("toybox").words == ["--base=toybox"]


def test_trainings_of_the_page_get_them_too(bare, tmp_path, photo_folder):
    from dataclasses import replace

    from pages.commands import train_command
    from pages.jobs import Jobs
    from pages.studio import Studio

    vae = bare / "vae.safetensors"
    studio = Studio(
        tmp_path / "l", tmp_path / "o", str(bare / "bare.safetensors"), None, "cpu", vae, "v_prediction"
    )
    jobs = Jobs(studio.library)
    job = replace(jobs.draft(), name="bob", class_word="owl", **vars(studio.given))
    again = jobs.get(jobs.enqueue(job).id)  # as it is read from its file
    options = {"steps": 1, "rank": 2, "prior_weight": 0, "previews": 0}
    _, package, *command = train_command(replace(again, options=options), photo_folder, jobs.library)
    result = run(package, *command)
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (("--prediction", "x0"), "'x0' is none of epsilon, v_prediction"),
        (("--vae", "nowhere.safetensors"), "There is no file nowhere.safetensors"),
        (("--offload", "model", "--device", "cpu"), "--offload model needs a GPU"),
        (("--attention", "flash"), "'flash' is none of auto, sliced, plain"),
    ],
)
def test_the_page_is_not_started_with_what_cannot_be(how, said, tmp_path):
    places = ("--library", tmp_path / "library", "--output", tmp_path / "out")
    told(CliRunner().invoke(app.app, [str(part) for part in (*how, *places)]), said)
