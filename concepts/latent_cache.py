"""The VAE's answers on disk: mean and log-variance of a photo's crops, one safetensors file a photo.

An entry's name is a hash of all that decides its numbers: the exact pixels shown to the VAE (so photo, crop,
size, mirroring), the VAE's weights and its dtype. Editing one photo makes exactly that one entry anew, and a
stale entry cannot be read. A damaged one is made again, with a warning. Least recently used entries go first
when the folder outgrows its limit.

`text_cache` keeps prompts in the same way, and the prior's answers have a cache of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from spectral_diffusion.base import fingerprint
from spectral_diffusion.cache import folder_of, kept

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

KIND = "latents"
LIMIT = 2 * 2**30  # bytes; a photo of six crops at 512 pixels takes 768 KiB


class Posterior(NamedTuple):
    """What a VAE says of n pictures, unscaled fp32: `mean` and `logvar`, each (n, 4, h, w)."""

    mean: torch.Tensor
    logvar: torch.Tensor


def default_dir() -> Path:
    """The folder of cached latents beside that of cached spectra."""
    return folder_of("latents")


def vae_key(vae: AutoencoderKL) -> str:
    """A hash of the VAE's encoder and of the dtype it computes in; 64 hex digits."""
    parts = {"encoder": vae.encoder, "quant": getattr(vae, "quant_conv", None)}
    weights = {
        f"{prefix}.{key}": value
        for prefix, part in parts.items()
        if part is not None
        for key, value in part.state_dict().items()
    }
    return hashlib.sha256(f"{fingerprint(weights)} {vae.dtype}".encode()).hexdigest()


def entry_name(vae: str, pixels: np.ndarray) -> str:
    """The file of `pixels` (n, h, w, 3) uint8 under the VAE of that `vae_key`."""
    digest = hashlib.sha256(f"{vae} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels))
    return f"{digest.hexdigest()[:40]}.safetensors"


def cached(path: Path, shape: tuple[int, ...], make: Callable[[], Posterior]) -> Posterior:
    """The entry at `path` if it holds posteriors of `shape`, else what `make` gives, put there."""
    shapes = dict.fromkeys(Posterior._fields, shape)
    return Posterior(**kept(path, KIND, shapes, lambda: make()._asdict()))
