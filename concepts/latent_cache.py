"""The VAE's answers on disk: mean and log-variance of a photo's crops, one safetensors file a photo.

An entry's name is a hash of all that decides its numbers: the exact pixels shown to the VAE (so photo, crop,
size, mirroring), the VAE's weights and its dtype. Editing one photo makes exactly that one entry anew, and a
stale entry cannot be read. A damaged one is made again, with a warning. Least recently used entries go first
when the folder outgrows its limit.

`text_cache` keeps prompts in the same way, and the prior's answers have a cache of their own.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from spectral_diffusion.base import fingerprint
from spectral_diffusion.errors import DamagedFile, SpectralError
from spectral_diffusion.files import load_tensors, save_tensors
from spectral_diffusion.spectrum import default_cache_dir

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
    return default_cache_dir().parent / "latents"


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


def kept(
    path: Path,
    kind: str,
    shapes: Mapping[str, tuple[int, ...]],
    make: Callable[[], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """The fp32 tensors in the file `path` of that kind, if they have these shapes, else what `make` gives, put there.

    A damaged file, and a disk that cannot be written, cost a warning and time, not the training.
    """
    if path.exists():
        try:
            found = _read(path, kind, shapes)
            os.utime(path)  # used now: see `prune`
            return found
        except (SpectralError, OSError) as error:
            warnings.warn(f"{error} It is encoded again.", stacklevel=2)
    made = make()
    try:
        save_tensors(path, made, {"sha256": _checksum(made)}, kind=kind)
    except OSError as error:
        warnings.warn(f"{path.parent} cannot be written ({error.strerror}): nothing is cached.", stacklevel=2)
    return made


def prune(folder: Path, limit: int = LIMIT) -> None:
    """Removes the least recently used entries until `folder` holds at most `limit` bytes."""
    entries = []
    for path in folder.glob("*.safetensors"):
        try:
            entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        except FileNotFoundError:  # another process prunes too
            continue
    excess = sum(size for _, size, _ in entries) - limit
    for _, size, path in sorted(entries):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size


def _read(path: Path, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    tensors, header = load_tensors(path, kind=kind, expected=lambda _: dict(shapes))
    if header.get("sha256") != _checksum(tensors):
        raise DamagedFile(f"{path} is damaged: its numbers are not those that were written.")
    return tensors


def _checksum(tensors: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].cpu().contiguous().numpy())
    return digest.hexdigest()
