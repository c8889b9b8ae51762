"""How the base computes while something is trained on it; what it computes stays the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from spectral_diffusion.base import Base

_FEW_PIXELS = 32 * 32  # of the latents; beyond, whole attention maps no longer fit the caches


def small_on_cpu(base: Base) -> bool:
    """Whether its operations are so small that what surrounds them takes a good part of the time."""
    return base.pipeline.device.type == "cpu" and base.pipeline.unet.config.sample_size**2 <= _FEW_PIXELS


@contextmanager
def recomputing(base: Base, wanted: bool) -> Iterator[None]:
    """Gradient checkpointing of the UNet, off again afterwards."""
    if wanted:
        base.pipeline.unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if wanted:
            base.pipeline.unet.disable_gradient_checkpointing()


@contextmanager
def plain_attention(base: Base) -> Iterator[None]:
    """Small pictures on a processor: attention as two matrix products, whose backward pass is quicker.

    torch's fused attention spends three times as long backward as forward on a CPU: 30 % of a step on toybox, and
    another 4 % in the text encoder.
    """
    if not small_on_cpu(base):
        yield
        return
    from diffusers.models.attention_processor import AttnProcessor  # slow to import

    unet, text_encoder = base.pipeline.unet, base.pipeline.text_encoder
    before, spoken = unet.attn_processors, text_encoder.config._attn_implementation
    unet.set_attn_processor(AttnProcessor())
    text_encoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        unet.set_attn_processor(before)
        text_encoder.set_attn_implementation(spoken)


def half_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype that the frozen model multiplies in, None for fp32; `auto` asks what the device does natively."""
    if precision != "auto":
        return {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    if device.type == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
