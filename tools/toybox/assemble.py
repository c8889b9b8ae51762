"""The trained parts as package data: fp16 safetensors, loadable by diffusers and transformers as they are."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL

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


def write_latest(work: Path, target: Path) -> None:
    """Writes `pipeline/`, `clip/` and `identity/` under `target` from the last checkpoints in `work`."""
    vae = vae_stage.new_vae()
    load_average(vae, work / "vae")
    latents = torch.load(work / "latents.pt", weights_only=True)
    vae.register_to_config(scaling_factor=scaling_factor(latents))
    set_posterior_noise(vae)
    tokenizer = build_tokenizer(work / "tokenizer")
    student = new_student(tokenizer)
    load_average(student, work / "clip_vision")
    unet = new_unet()
    load_average(unet, work / "unet")
    classifier = new_classifier(work)
    load_average(classifier, work / "identity")
    for folder in ("pipeline", "clip", "identity"):
        shutil.rmtree(target / folder, ignore_errors=True)
    whole = pipeline(unet, vae, text_encoder_of(student.clip), tokenizer)
    whole.to(dtype=torch.float16).save_pretrained(target / "pipeline")
    student.clip.half().save_pretrained(target / "clip")
    classifier.encoder.half().save_pretrained(target / "identity")
