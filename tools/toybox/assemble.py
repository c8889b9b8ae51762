"""The trained parts as package data: fp16 safetensors, loadable by diffusers and transformers as they are."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from spectral_diffusion.base import TOYBOX, load_base
from tools.toybox import vae as vae_stage
from tools.toybox.clip import Reader, new_clip, new_student
from tools.toybox.identity import new_classifier
from tools.toybox.loop import load_average
from tools.toybox.unet import Denoiser, new_unet, pipeline, scaling_factor
from tools.toybox.vocabulary import build_tokenizer


def set_posterior_noise(vae: AutoencoderKL) -> None:
    """Fixes the encoder's log-variance, which training by the mean leaves undefined, at the noise it used."""
    with torch.no_grad():
        half = vae.quant_conv.weight.shape[0] // 2
        vae.quant_conv.weight[half:] = 0
        vae.quant_conv.bias[half:] = 2 * math.log(vae_stage.NOISE)


def _latest(work: Path, *stages: str) -> Path | None:
    """The folder of the first of `stages` that has a checkpoint."""
    return next((work / stage for stage in stages if (work / stage / "checkpoint.pt").exists()), None)


def autoencoder(work: Path) -> AutoencoderKL:
    """The autoencoder as far as it is trained: of the stages' last checkpoint, else the package's."""
    vae = vae_stage.new_vae()
    if stage := _latest(work, "decoder", "vae"):
        load_average(vae, stage)
    else:
        vae.load_state_dict(load_base("toybox").pipeline.vae.state_dict())
    return vae


def student(work: Path) -> tuple[nn.Module, CLIPTokenizer]:
    """The CLIP with its naming heads and the tokenizer: of the stages' last checkpoint, else the package's.

    Its text tower is the one trained with the UNet, where there is one.
    """
    tokenizer = build_tokenizer(work / "tokenizer")
    student = new_student(tokenizer)
    if stage := _latest(work, "clip_vision", "clip"):
        load_average(student, stage)
    else:
        student.clip = CLIPModel.from_pretrained(TOYBOX / "clip", dtype=torch.float32)
    if _latest(work, "unet"):
        both, _ = denoiser(work, shipped=False)
        student.clip.text_model.load_state_dict(both.text_encoder.state_dict())
    return student, tokenizer


def text_encoder(work: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """The text tower that the UNet starts with: of the stages `text` or `clip`, else the package's."""
    tokenizer = build_tokenizer(work / "tokenizer")
    tower = CLIPTextModel(new_clip(tokenizer).config.text_config)
    if stage := _latest(work, "text"):
        load_average(Reader(tower), stage)
    elif stage := _latest(work, "clip"):
        clip = new_student(tokenizer)
        load_average(clip, stage)
        tower.load_state_dict(clip.clip.text_model.state_dict())
    else:
        tower.load_state_dict(load_base("toybox").pipeline.text_encoder.state_dict())
    return tower, tokenizer


def denoiser(work: Path, shipped: bool) -> tuple[Denoiser, CLIPTokenizer]:
    """UNet, text encoder and tokenizer: of the last checkpoint, else those to start the stage from.

    The UNet to start from is the package's, if `shipped` (for machines with none of the build's checkpoints),
    or a new one.
    """
    tower, tokenizer = text_encoder(work)
    unet = load_base("toybox").pipeline.unet.requires_grad_(True) if shipped else new_unet()
    both = Denoiser(unet, tower)
    if stage := _latest(work, "unet"):
        load_average(both, stage)
    return both, tokenizer


def write_latest(work: Path, target: Path) -> None:
    """Writes `pipeline/`, `clip/` and `identity/` under `target` from the last checkpoints in `work`."""
    vae = autoencoder(work)
    vae.register_to_config(scaling_factor=scaling_factor(torch.load(work / "latents.pt", weights_only=True)))
    set_posterior_noise(vae)
    named, tokenizer = student(work)
    both, _ = denoiser(work, shipped=False)
    whole = pipeline(both.unet, vae, both.text_encoder, tokenizer)
    for folder in ("pipeline", "clip"):
        shutil.rmtree(target / folder, ignore_errors=True)
    whole.to(dtype=torch.float16).save_pretrained(target / "pipeline")
    named.clip.half().save_pretrained(target / "clip")
    if stage := _latest(work, "identity"):
        classifier = new_classifier(work)
        load_average(classifier, stage)
        classifier.encoder.half().save_pretrained(target / "identity")
