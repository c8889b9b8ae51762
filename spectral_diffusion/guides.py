"""A guide: a T2I-Adapter the user has (sketch, pose, depth …), and the picture that it reads.

The adapter (Mou et al., AAAI 2024) is diffusers' own; it answers with one picture of features for each level of the
UNet, which the UNet adds to its own at every step. They are given to it by a hook, so that a guide goes with
everything else: img2img, the hires fix, regions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from spectral_diffusion.base import quiet
from spectral_diffusion.errors import InputError
from spectral_diffusion.hardware import works_on

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, T2IAdapter

_ARGUMENT = "down_intrablock_additional_residuals"  # diffusers' name for the features


def load_guide(pipeline: StableDiffusionPipeline, folder: str) -> T2IAdapter:
    """The adapter in a folder in diffusers' layout, on the pipeline's device and in its precision.

    Raises InputError for what is no such folder, or an adapter for another kind of base.
    """
    from diffusers import T2IAdapter

    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"{folder} is no T2I-Adapter's folder in diffusers' layout: it has no config.json.")
    try:
        with quiet():
            guide = T2IAdapter.from_pretrained(
                folder, torch_dtype=pipeline.unet.dtype, local_files_only=True, use_safetensors=True
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"The T2I-Adapter {folder} cannot be loaded ({reason}).") from error
    if list(guide.config.channels) != list(pipeline.unet.config.block_out_channels):
        raise InputError(f"The T2I-Adapter {folder} is for another kind of base: use one of SD 1.x.")
    return guide.to(works_on(pipeline)).eval().requires_grad_(False)


@torch.no_grad()
def features(guide: T2IAdapter, picture: Image.Image, size: tuple[int, int], strength: float) -> list[Tensor]:
    """What the guide answers for a picture at `size` (width, height in pixels), times `strength`: one tensor
    (1, channels, height, width) a level of the UNet. The picture is cut to the size's shape, not distorted."""
    grey = guide.config.in_channels == 1  # sketches
    fitted = ImageOps.fit(picture.convert("L" if grey else "RGB"), size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(fitted).copy()).float().div(255)
    pixels = pixels[None, None] if grey else pixels.permute(2, 0, 1)[None]
    like = next(guide.parameters())
    return [strength * level for level in guide(pixels.to(like.device, like.dtype))]


@contextmanager
def guided(unet: nn.Module, levels: list[Tensor] | None) -> Iterator[None]:
    """While active, the UNet adds the features, the same for every picture of a batch; None: a no-op."""
    if levels is None:
        yield
        return

    def add(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return args, {**named, _ARGUMENT: list(levels)}  # the UNet empties the list it is given

    handle = unet.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
