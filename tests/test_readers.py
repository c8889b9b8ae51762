"""diffusers alone draws from what was exported the pictures that our own runtime draws, and nothing goes online."""

import socket

import numpy as np
import pytest
import torch
from command_line import run
from conftest import random_concept

from fusion.fuse import fuse
from spectral_diffusion.base import load_base
from spectral_diffusion.export import Options, export
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, generate, make_sampler
from spectral_diffusion.merged import save_checkpoint

REQUEST = Request("a photo of <rex> and <mia> in the snow", "a cat", seed=3, steps=3)


@pytest.fixture(scope="module")
def duo(base):
    concepts = [random_concept(base, "rex", 0), random_concept(base, "mia", 3, "rotational", 1)]
    return fuse(concepts, {"rex": 8, "mia": 8}, norm_control=False)  # seen in a picture of an untrained base


@pytest.fixture(scope="module")
def ours(base, duo):
    return pixels(generate(base, REQUEST, duo)[0].image)


@pytest.fixture(scope="module")
def words(duo, tmp_path_factory):
    return export(duo, "embedding", tmp_path_factory.mktemp("words") / "words", Options(torch.float32))


def pixels(image):
    return np.asarray(image).astype(int)


def drawn_by_diffusers(pipeline, words):
    """The request's picture by the pipeline alone; its tokenizer learns the exported words from their files."""
    for file in words:
        pipeline.load_textual_inversion(str(file), token=f"<{file.stem}>")
    pipeline.scheduler = make_sampler(pipeline, REQUEST.sampler)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        REQUEST.prompt, negative_prompt=REQUEST.negative, num_inference_steps=REQUEST.steps,
        guidance_scale=REQUEST.guidance, generator=torch.Generator().manual_seed(REQUEST.seed),
    ).images  # fmt: skip
    return pixels(images[0])


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_lora_with_its_words_draws_our_picture(base, base_folder, duo, ours, words, tmp_path, form):
    export(duo, form, tmp_path / "duo.safetensors", Options(torch.float32))
    pipeline = load_base(str(base_folder)).pipeline
    pipeline.load_lora_weights(str(tmp_path), weight_name="duo.safetensors")
    assert abs(drawn_by_diffusers(pipeline, words) - ours).max() <= 1
    assert abs(drawn_by_diffusers(load_base(str(base_folder)).pipeline, words) - ours).max() > 10


def test_peft_s_adapters_draw_our_picture(base_folder, duo, ours, words, tmp_path):
    from peft import PeftModel

    export(duo, "peft", tmp_path / "duo", Options(torch.float32))
    pipeline = load_base(str(base_folder)).pipeline
    for part in ("unet", "text_encoder"):
        adapted = PeftModel.from_pretrained(getattr(pipeline, part), tmp_path / "duo" / part)
        setattr(pipeline, part, adapted.merge_and_unload())
    assert abs(drawn_by_diffusers(pipeline, words) - ours).max() <= 1


@pytest.mark.parametrize("prediction", [None, "v_prediction"])
def test_the_merged_checkpoint_read_by_diffusers_draws_our_picture(
    base, base_folder, duo, words, tmp_path, prediction
):
    from diffusers import StableDiffusionPipeline

    over = load_base(str(base_folder), prediction=prediction)
    export(duo, "checkpoint", file := tmp_path / "duo.safetensors", Options(torch.float32, over))
    theirs = StableDiffusionPipeline.from_single_file(
        str(file), config=str(base_folder), local_files_only=True, safety_checker=None
    )
    wanted = pixels(generate(over, REQUEST, duo)[0].image)
    if prediction:
        theirs.scheduler.register_to_config(prediction_type=prediction)
    assert abs(drawn_by_diffusers(theirs, words) - wanted).max() <= 1


def test_a_file_with_bundled_words_is_refused_by_diffusers(base_folder, duo, tmp_path):
    export(duo, "kohya", tmp_path / "duo.safetensors", Options(torch.float32, bundle=True))
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        load_base(str(base_folder)).pipeline.load_lora_weights(str(tmp_path), weight_name="duo.safetensors")


def test_drawing_and_exporting_never_go_online(base, duo, tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("somebody went online")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    save_checkpoint(base, None, checkpoint := tmp_path / "base.safetensors", torch.float32)
    Fused.save(duo, file := tmp_path / "duo.safetensors")
    commands = [("generate", file, "a <rex>", "--steps", 1, "-o", tmp_path / "out")]
    commands += [
        ("export", file, "--format", form, "-o", tmp_path / f"{form}{suffix}")
        for form, suffix in (
            ("kohya", ".safetensors"),
            ("peft", ""),
            ("checkpoint", ".safetensors"),
            ("folder", ""),
        )
    ]
    for command in commands:
        result = run("spectral_diffusion", *command, "--base", checkpoint)
        assert result.exit_code == 0, (command, result.output, result.exception)
    assert len(list((tmp_path / "out").iterdir())) == 1
