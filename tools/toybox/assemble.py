"""The trained parts as package data: fp16 safetensors, loadable by diffusers and transformers as they are."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTokenizer

from tools.toybox import vae as vae_stage
from tools.toybox.clip import build_tokenizer, new_student
from tools.toybox.identity import new_classifier
from tools.toybox.loop import load_average
from tools.toybox.unet import new_unet, pipeline, scaling_factor, text_encoder_of


def set_posterior_noise(vae: AutoencoderKL) -> None:
    """Fixes the encoder's log-variance, which training by the mean leaves undefined, at the noise it used."""
    with torch.no_grad():
        half = vae.quant_conv.weight.shape[0] // 2
        vae.quant_conv.weight[half:] = 0
        vae.quant_conv.bias[half:] = 2 * math.log(vae_stage.NOISE)


def averaged_vae(folder: Path) -> AutoencoderKL:
    """The autoencoder of a stage's last checkpoint."""
    vae = vae_stage.new_vae()
    load_average(vae, folder)
    return vae


def averaged_clip(work: Path, folder: Path) -> tuple[nn.Module, CLIPTokenizer]:
    """The CLIP (with its naming heads) of a stage's last checkpoint, and the tokenizer."""
    tokenizer = build_tokenizer(work / "tokenizer")
    student = new_student(tokenizer)
    load_average(student, folder)
    return student, tokenizer


def _latest(work: Path, *stages: str) -> Path:
    """The folder of the last of `stages` that has a checkpoint."""
    return [work / stage for stage in stages if (work / stage / "checkpoint.pt").exists()][-1]


def write_latest(work: Path, target: Path) -> None:
    """Writes `pipeline/`, `clip/` and `identity/` under `target` from the last checkpoints in `work`."""
    vae = averaged_vae(_latest(work, "vae", "decoder"))
    vae.register_to_config(scaling_factor=scaling_factor(torch.load(work / "latents.pt", weights_only=True)))
    set_posterior_noise(vae)
    student, tokenizer = averaged_clip(work, _latest(work, "clip", "clip_vision"))
    unet, classifier = new_unet(), new_classifier(work)
    load_average(unet, work / "unet")
    load_average(classifier, work / "identity")
    for folder in ("pipeline", "clip", "identity"):
        shutil.rmtree(target / folder, ignore_errors=True)
    whole = pipeline(unet, vae, text_encoder_of(student.clip), tokenizer)
    whole.to(dtype=torch.float16).save_pretrained(target / "pipeline")
    student.clip.half().save_pretrained(target / "clip")
    classifier.encoder.half().save_pretrained(target / "identity")
