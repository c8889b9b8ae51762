"""Another VAE for a base, for as long as it is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spectral_diffusion.base import quiet
from spectral_diffusion.errors import InputError
from spectral_diffusion.folder import load_part

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline


@contextmanager
def other_vae(pipeline: StableDiffusionPipeline, place: str | None) -> Iterator[None]:
    """While active, the pipeline draws with another VAE: a .safetensors file or a folder in diffusers' layout.

    None: with its own. A file is read as one of the size of the base's own VAE.
    Raises InputError for what is no such thing, or a VAE of other latent pictures.
    """
    if place is None:
        yield
        return
    own = pipeline.vae
    vae = _from_file(place, own) if Path(place).is_file() else _from_folder(place, own)
    levels = (len(v.config.block_out_channels) for v in (own, vae))
    if vae.config.latent_channels != own.config.latent_channels or len(set(levels)) > 1:
        raise InputError(f"The VAE {place} has other latent pictures than the base's: use one of SD 1.x.")
    pipeline.vae = vae.to(own.device).eval().requires_grad_(False)
    pipeline.maybe_free_model_hooks()  # offload holds for whom it found
    try:
        yield
    finally:
        pipeline.vae = own
        pipeline.maybe_free_model_hooks()


def _from_file(file: str, own: AutoencoderKL) -> AutoencoderKL:
    from spectral_diffusion.single_file import load_vae

    with quiet():
        return load_vae(file, own.dtype, own.config)


def _from_folder(folder: str, own: AutoencoderKL) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    if not (Path(folder) / "config.json").is_file():
        raise InputError(
            f"{folder} is no VAE's file, nor its folder in diffusers' layout: it has no config.json."
        )
    try:
        with quiet():
            how = {"dtype": own.dtype, "local_files_only": True, "use_safetensors": True}
            return load_part(AutoencoderKL, Path(folder), how)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"The VAE {folder} cannot be loaded ({reason}).") from error
