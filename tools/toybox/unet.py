"""Stage `unet`: the SD 1.x UNet in miniature and its text encoder, on latents of the scene pool.

The text encoder is trained along, at a third of the rate.

Trained with the classic attention processor: at two heads its backward is faster on a CPU than
scaled-dot-product attention's. Compiled (five minutes at the first start), a step takes a sixth less.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from tools.toybox import loop, scenes
from tools.toybox.pool import Pool
from tools.toybox.vae import to_unit

BATCH, EMPTY, SNR_GAMMA, SNR_FLOOR = 16, 0.1, 5.0, 0.15
PLAN = loop.Plan(steps=3000, lr=1e-3, warmup=100, hold=0.35, seed=4, save_seconds=240)  # of 2 processes


class Denoiser(nn.Module):
    """What is trained together: the UNet and the text encoder it reads."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder


def new_unet() -> UNet2DConditionModel:
    """The untrained UNet: three cross-attention levels and a plain one, 16 cross-attention layers."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=2,
        block_out_channels=(64, 96, 128, 128), attention_head_dim=2, norm_num_groups=16, cross_attention_dim=128,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip


def new_schedule() -> DDPMScheduler:
    """SD 1.x's noise schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,  # as SD 1.x; diffusers warns about 0 at every load
    )


@torch.no_grad()
def pool_latents(vae: AutoencoderKL, pool: Pool, file: Path) -> torch.Tensor:
    """Latent means of the whole pool, float32 (count, 4, 16, 16), unscaled; kept in `file`.

    The processes of a group share the work.
    """
    if not file.exists():
        rank, world = loop.processes()
        vae.to(memory_format=torch.channels_last)  # twice as fast here
        rows = torch.zeros(len(pool.facts), 4, scenes.SIZE // 8, scenes.SIZE // 8)
        for start in range(64 * rank, len(rows), 64 * world):
            x = to_unit(torch.from_numpy(pool.pictures[start : start + 64].copy()))
            x = x.to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                rows[start : start + 64] = vae.encode(x).latent_dist.mean.float()
        if world > 1:
            dist.all_reduce(rows)
        if rank == 0:
            loop.save(rows, file)
        return rows
    return torch.load(file, weights_only=True)


def scaling_factor(latents: torch.Tensor) -> float:
    """What brings the latents to unit spread."""
    return round(1 / float(latents.std()), 5)


def _loss(unet, text_encoder, tokenizer, schedule, latents, pool: Pool, step, rng, noise):
    rows = rng.integers(len(latents), size=BATCH)
    captions = ["" if rng.uniform() < EMPTY else c for c in pool.captions(rng, rows)]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    clean = latents[torch.from_numpy(rows)]
    eps = torch.randn(clean.shape, generator=noise)
    t = torch.randint(schedule.config.num_train_timesteps, (BATCH,), generator=noise)
    noisy = schedule.add_noise(clean, eps, t)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = text_encoder(ids).last_hidden_state
        predicted = unet(noisy, t, hidden).sample
    error = F.mse_loss(predicted.float(), eps, reduction="none").mean(dim=(1, 2, 3))
    alpha = schedule.alphas_cumprod[t]
    snr = alpha / (1 - alpha)
    # min-SNR gives what is decided in nearly pure noise (place, which thing, where) hardly any weight
    value = (error * (snr.clamp(max=SNR_GAMMA) + SNR_FLOOR) / snr).mean()
    return value, {"mse": float(error.mean().detach())}


def pipeline(unet, vae, text_encoder, tokenizer) -> StableDiffusionPipeline:
    """The parts as the pipeline that `from_pretrained` will load."""
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=new_schedule(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


PREVIEWS = [
    "a photo of a cat on the beach", "a drawing of a dog in the snow", "a photo of a robot in space",
    "a drawing of a fox and a car in the city", "a photo of an apple and a panda on the grass",
    "a drawing of a rocket, a cow and a pizza in a room",
]  # fmt: skip


def _preview(folder: Path, vae, tokenizer, denoiser: Denoiser) -> None:
    from diffusers import DPMSolverMultistepScheduler

    denoiser.eval()
    pipe = pipeline(denoiser.unet, vae, denoiser.text_encoder, tokenizer)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    with torch.autocast("cpu", torch.bfloat16):
        images = pipe(
            PREVIEWS, num_inference_steps=16, guidance_scale=5.0, generator=torch.Generator().manual_seed(0)
        ).images
    sheet = Image.new("RGB", (128 * len(images), 128))
    for i, image in enumerate(images):
        sheet.paste(image, (128 * i, 0))
    sheet.save(folder / f"preview_{len(list(folder.glob('preview_*'))):03d}.png")


def run(
    work: Path,
    pool: Pool,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    denoiser: Denoiser,
    plan: loop.Plan = PLAN,
) -> Denoiser:
    """Trains (or resumes) `denoiser`; sets the VAE's scaling factor; returns the averaged weights."""
    torch.manual_seed(plan.seed)
    latents = pool_latents(vae, pool, work / "latents.pt")
    vae.register_to_config(scaling_factor=scaling_factor(latents))
    latents = latents * vae.config.scaling_factor
    denoiser.unet.set_attn_processor(AttnProcessor())
    loss = partial(
        _loss,
        torch.compile(denoiser.unet),
        denoiser.text_encoder,
        tokenizer,
        new_schedule(),
        latents,
        pool,
    )
    preview = partial(_preview, work / "unet", vae, tokenizer)
    matrices = [
        weight
        for name, weight in denoiser.unet.named_parameters()
        if weight.ndim > 1 and not name.startswith(("conv_in", "conv_out"))
    ]
    return loop.train(
        work / "unet", denoiser, loss, plan, preview, slower=denoiser.text_encoder, matrices=matrices
    )
