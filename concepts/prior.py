"""The teacher prior: on prompts without the concept, the adapted model answers as the base does.

No class photos are needed. The base draws a few latents of its own on plain prompts; noised copies and the
base's own predictions on them are prepared once and kept in the cache folder, keyed by the base,
the class and the settings. It is what lets concepts be summed later: without it each one's weight change
also acts on pictures that are not about it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectral_diffusion.base import Base, fingerprint
from spectral_diffusion.errors import SpectralError
from spectral_diffusion.files import load_tensors, save_tensors
from spectral_diffusion.generate import make_sampler
from spectral_diffusion.words import Words

_LOOKS = ("a photo of", "a drawing of", "a picture of")
CONTEXTS = (
    "on the beach",
    "on the grass",
    "in the snow",
    "in space",
    "in front of a mountain",
    "in the city",
    "in a room",
    "under water",
    "in the desert",
    "at night",
)
OTHERS = (
    "cat",
    "dog",
    "bear",
    "horse",
    "car",
    "robot",
    "apple",
    "hat",
    "guitar",
    "sunflower",
    "fish",
    "cake",
)
_STEPS = 8  # of sampling: soft pictures are good enough to ask the teacher about
KIND = "prior"
_SOME = 64  # numbers of a tensor that tell it from another training's


@dataclass(frozen=True)
class Prior:
    """Questions and the base's answers: noisy (n, 4, h, w), timesteps (n,), noise predictions, n prompts."""

    noisy: Tensor
    timesteps: Tensor
    predicted: Tensor
    prompts: list[str]


def plain_prompts(class_word: str, count: int, rng: torch.Generator) -> list[str]:
    """Prompts without the concept: half about its class, half about other things, one in eight empty."""

    def pick(options: tuple[str, ...]) -> str:
        return options[int(torch.randint(len(options), (), generator=rng))]

    prompts = []
    for i in range(count):
        thing = class_word if i % 2 else pick(OTHERS)
        other = f" and a {pick(OTHERS)}" if i % 3 == 0 else ""
        prompts.append("" if i % 8 == 7 else f"{pick(_LOOKS)} a {thing}{other} {pick(CONTEXTS)}")
    return prompts


def load_prior(
    base: Base, class_word: str, count: int, folder: Path, progress: Callable[[int, int], None] | None = None
) -> Prior:
    """The prior from the cache in `folder`, or prepared and put there. Deterministic."""
    file = folder / f"prior-{_key(base, class_word, count)}.safetensors"
    if file.exists():
        try:
            tensors, header = load_tensors(file, kind=KIND, expected=partial(_expected, base, count))
            return Prior(**tensors, prompts=header["prompts"])
        except SpectralError:
            file.unlink(missing_ok=True)  # a cache: made again below
    prior = _prepare(base, class_word, count, progress)
    tensors = {"noisy": prior.noisy, "timesteps": prior.timesteps, "predicted": prior.predicted}
    save_tensors(file, tensors, {"prompts": prior.prompts}, kind=KIND)
    return prior


def _key(base: Base, class_word: str, count: int) -> str:
    """16 hex digits of all that the answers depend on: some numbers of each weight, and how it computes."""
    pipeline = base.pipeline
    tensors = {"noise": pipeline.scheduler.alphas_cumprod}
    for part in ("unet", "text_encoder"):
        tensors |= {f"{part}.{key}": value for key, value in getattr(pipeline, part).state_dict().items()}
    some = {key: value.flatten()[:: -(-value.numel() // _SOME)] for key, value in tensors.items()}
    facts = [base.known_by, fingerprint(some), str(pipeline.unet.dtype), class_word, count, 2]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _expected(base: Base, count: int, header: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    if len(header["prompts"]) != count:
        raise ValueError(f"{len(header['prompts'])} prompts, expected {count}")
    config = base.pipeline.unet.config
    latents = (count, config.in_channels, config.sample_size, config.sample_size)
    return {"noisy": latents, "timesteps": (count,), "predicted": latents}


@torch.no_grad()
def _prepare(base: Base, class_word: str, count: int, progress: Callable[[int, int], None] | None) -> Prior:
    rng = torch.Generator().manual_seed(7)
    pipeline, words = base.pipeline, Words({}, base.pipeline.tokenizer)
    prompts = plain_prompts(class_word, count, rng)
    schedule = pipeline.scheduler
    rows = []
    pipeline.scheduler = make_sampler(pipeline, "DPM++ 2M")
    try:
        for start in range(0, count, 8):
            part = prompts[start : start + 8]
            hidden, empty = (
                words.encode(pipeline.text_encoder, part),
                words.encode(pipeline.text_encoder, [""] * len(part)),
            )
            clean = pipeline(
                prompt_embeds=hidden,
                negative_prompt_embeds=empty,
                num_inference_steps=_STEPS,
                guidance_scale=3.0,
                generator=rng,
                output_type="latent",
            ).images
            noise = torch.randn(clean.shape, generator=rng).to(clean)
            steps = torch.randint(schedule.config.num_train_timesteps, (len(part),), generator=rng).to(
                clean.device
            )
            noisy = schedule.add_noise(clean, noise, steps)
            rows.append((noisy, steps, pipeline.unet(noisy, steps, hidden).sample))
            if progress:
                progress(start + len(part), count)
    finally:
        pipeline.scheduler = schedule
    noisy, steps, predicted = (torch.cat(column).cpu() for column in zip(*rows, strict=True))
    return Prior(noisy, steps, predicted, prompts)
