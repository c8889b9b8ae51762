"""Stage `vae`: an AutoencoderKL, 8 x smaller, 4 latent channels, on 64-px crops of scenes.

The decoder sees the posterior mean plus a little fixed noise: sampling the full posterior from the
start learns several times slower.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from tools.toybox import art, loop, scenes

CROP, BATCH, POOL = 64, 16, 6000
NOISE, LATENT_WEIGHT = 0.05, 1e-3
PLAN = loop.Plan(steps=4600, lr=2e-3, warmup=200, hold=0.4)
DECODER_PLAN = loop.Plan(steps=6000, lr=1.5e-3, warmup=100, seed=8, hold=0.3)


def new_vae() -> AutoencoderKL:
    """The untrained autoencoder."""
    widths = (32, 32, 64, 128)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths, layers_per_block=1, latent_channels=4, norm_num_groups=16,
        sample_size=scenes.SIZE, mid_block_add_attention=False,
    )  # fmt: skip


def picture_pool(folder: Path, count: int, seed: int) -> torch.Tensor:
    """uint8 (count, 3, SIZE, SIZE): half scenes of the base's nouns, half any base drawing alone."""
    rng = np.random.default_rng(seed)
    everything, places = art.base_art(folder), list(scenes.PLACES)
    pool = torch.empty(count, 3, scenes.SIZE, scenes.SIZE, dtype=torch.uint8)
    for i in range(count):
        if i % 2:
            source, code = everything[rng.integers(len(everything))]
            shown = scenes.portrait(rng, folder, source, code, str(rng.choice(places)))
        else:
            shown = scenes.sample_scene(rng, folder)
        pool[i] = torch.from_numpy(np.array(shown.image)).permute(2, 0, 1)
    return pool


def to_unit(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return pictures.float() / 127.5 - 1


def _crops(pool: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    rows = []
    for i in rng.integers(len(pool), size=BATCH):
        # the lower two thirds hold the objects: look there more often than at the sky
        y = min(int(rng.integers(0, 97)), scenes.SIZE - CROP)
        x = int(rng.integers(0, scenes.SIZE - CROP + 1))
        crop = pool[i, :, y : y + CROP, x : x + CROP]
        rows.append(crop.flip(-1) if rng.uniform() < 0.5 else crop)
    return to_unit(torch.stack(rows))


def _edges(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the two pictures' horizontal and vertical gradients."""
    return sum((x.diff(dim=d) - y.diff(dim=d)).abs().mean() for d in (-1, -2))


def _loss(vae, pool, step, rng, noise):
    x = _crops(pool, rng)
    with torch.autocast("cpu", torch.bfloat16):
        mean = vae.encode(x).latent_dist.mean.float()
        y = vae.decode(mean + NOISE * torch.randn(mean.shape, generator=noise)).sample.float()
    l1, edge = (x - y).abs().mean(), _edges(x, y)
    value = l1 + 0.5 * edge + LATENT_WEIGHT * mean.square().mean()
    return value, {"psnr": psnr(x, y), "latent_std": float(mean.detach().std())}


def psnr(x: torch.Tensor, y: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1 (mean over the batch)."""
    error = (x.detach() - y.detach()).clamp(-2, 2).square().mean(dim=(1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())


def freeze_encoder(vae: AutoencoderKL) -> None:
    """Leaves only the decoder to train: the latents stay those that the UNet was trained on."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)


def _decoder_loss(vae, pool, latents, step, rng, noise):
    rows = torch.from_numpy(rng.integers(len(pool), size=BATCH // 4))
    x, z = to_unit(pool[rows]), latents[rows]
    with torch.autocast("cpu", torch.bfloat16):
        y = vae.decode(z + NOISE * torch.randn(z.shape, generator=noise)).sample.float()
    # squared error beside the absolute one: PSNR is what the softness of pictures follows
    value = (x - y).abs().mean() + 0.5 * _edges(x, y) + 2 * (x - y).square().mean()
    return value, {"psnr": psnr(x, y)}


@torch.no_grad()
def _means(vae: AutoencoderKL, pool: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([vae.encode(to_unit(part)).latent_dist.mean.float() for part in pool.split(64)])


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    """Encode to the posterior mean and decode, in batches of 16; -1..1 in and out."""
    return torch.cat([vae.decode(vae.encode(b).latent_dist.mean).sample.clamp(-1, 1) for b in x.split(16)])


def _preview(folder: Path, pictures: torch.Tensor, vae: AutoencoderKL) -> None:
    vae.eval()
    shown = reconstruct(vae, pictures)
    rows = torch.cat([torch.cat(list(pictures), -1), torch.cat(list(shown), -1)], -2)
    array = ((rows.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(folder / f"preview_{psnr(pictures, shown):.2f}.png")


def run(art_folder: Path, work: Path, plan: loop.Plan = PLAN) -> AutoencoderKL:
    """Trains (or resumes) the autoencoder; returns the averaged weights."""
    torch.manual_seed(plan.seed)
    vae, pool = new_vae(), picture_pool(art_folder, POOL, seed=1)
    pictures = to_unit(picture_pool(art_folder, 12, seed=2))
    return loop.train(
        work / "vae", vae, partial(_loss, vae, pool), plan, partial(_preview, work / "vae", pictures)
    )


def run_decoder(
    art_folder: Path, work: Path, vae: AutoencoderKL, plan: loop.Plan = DECODER_PLAN
) -> AutoencoderKL:
    """Trains the decoder of `vae` on with the encoder frozen: sharper pictures, the same latents."""
    torch.manual_seed(plan.seed)
    pool = picture_pool(art_folder, POOL, seed=3)
    freeze_encoder(vae)
    loss = partial(_decoder_loss, vae, pool, _means(vae, pool))
    pictures = to_unit(picture_pool(art_folder, 12, seed=2))
    return loop.train(work / "decoder", vae, loss, plan, partial(_preview, work / "decoder", pictures))
