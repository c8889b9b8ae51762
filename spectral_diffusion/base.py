"""A base: a Stable Diffusion 1.x model, found, checked, loaded and known by its fingerprint.

A base is `toybox`, a diffusers folder, one `.safetensors` file in the original layout, or a hub id that is in
the hub's cache already. Nothing ever goes online. Loads in fp32 on the CPU by default.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from spectral_diffusion import hardware
from spectral_diffusion.errors import InputError
from spectral_diffusion.folder import check_folder, load_folder
from spectral_diffusion.model_file import Prediction, base_layout, check_prediction
from spectral_diffusion.quiet import quiet

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from torch import nn

TOYBOX = Path(__file__).parent / "toybox"
TARGETS = ("attention", "feed_forward", "proj")
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")


def find_base(base: str) -> Path:
    """What `base` names: the diffusers folder of `toybox`, a folder, a checkpoint file, or a cached hub id.

    A hub id is `owner/name`, or `owner/name@revision`. Raises InputError for anything else, telling what it is
    and what to do, and DamagedFile for a truncated checkpoint; only headers and configs are read.
    """
    path = place_of(base)
    if path.is_file():
        base_layout(path)
    else:
        check_folder(base, path)
    return path


def place_of(base: str) -> Path:
    """The file or folder that `base` names, whatever it is. Raises InputError if there is none."""
    path = TOYBOX / "pipeline" if base == "toybox" else Path(base)
    return path if path.is_file() or path.is_dir() else _cached(base)


def _cached(base: str) -> Path:
    """The folder of a hub id in the hub's cache."""
    match = _HUB_ID.fullmatch(base)
    if not match:
        raise InputError(
            f"There is no base {base!r}: give 'toybox', a .safetensors file, a diffusers folder, or a hub id."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repo, revision = match.groups()
    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        pinned = f" --revision {revision}" if revision else ""
        raise InputError(
            f"There is no base {base!r} here: nothing is downloaded by itself; for a hub id, run "
            f"`hf download {repo}{pinned}` once, else give 'toybox', a .safetensors file or a diffusers folder."
        ) from error


@dataclass(frozen=True)
class Base:
    """A loaded base. `pipeline` holds the pristine weights; whoever changes them puts them back."""

    name: str
    pipeline: StableDiffusionPipeline
    source: Path | None = None  # the folder or file it was loaded from

    @cached_property
    def layers(self) -> dict[str, nn.Module]:
        """The attention layers, by key (`unet.…`, `text_encoder.…`): see `adapted_layers`. They are fingerprinted."""
        return adapted_layers(self.pipeline)

    @cached_property
    def adaptable(self) -> dict[str, nn.Module]:
        """Every layer that a concept can adapt, by key: `layers`, then those of the other `targets`."""
        return {**self.layers, **further_layers(self.pipeline)}

    def targeted(self, targets: str) -> dict[str, nn.Module]:
        """The layers of `targets`, by key, such as `attention+feed_forward`. Raises InputError for no such targets."""
        wanted = check_targets(targets)
        return {key: layer for key, layer in self.adaptable.items() if target_of(key) in wanted}

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits; equal for the same weights in fp32 and fp16."""
        return fingerprint({key: layer.weight for key, layer in self.layers.items()})

    @property
    def prediction(self) -> str:
        """What its UNet answers with, as it was loaded: `epsilon` or `v_prediction`."""
        return self.pipeline.scheduler.config.get("prediction_type", "epsilon")

    @property
    def known_by(self) -> str:
        """The fingerprint, and what it predicts if that is not noise: other pictures come of the same weights then."""
        return self.fingerprint if self.prediction == "epsilon" else f"{self.fingerprint}-{self.prediction}"

    @property
    def file(self) -> Path | None:
        """The one file that it was loaded from, if it was."""
        return self.source if self.source and self.source.is_file() else None

    @cached_property
    def width(self) -> int:
        """Columns of the spectrum that every adapted layer has."""
        return min(min(layer.weight.shape[:2]) for layer in self.layers.values())

    @property
    def size(self) -> int:
        """The side in pixels of the pictures this base was trained on."""
        return self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor


def load_base(
    base: str,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    *,
    vae: str | Path | None = None,
    prediction: Prediction | None = None,
    offload: str = "none",
    attention: str = "auto",
) -> Base:
    """Loads a base as `find_base` finds it, in `dtype` (fp32 if None), without going online.

    `device` may be `auto`. `vae` is a file with another VAE, for a checkpoint file that has none; `prediction`
    overrides what the base says that it predicts; `offload` and `attention`: see `hardware`. Raises InputError or
    DamagedFile in one sentence for what cannot be loaded, or not so.
    """
    import torch

    check_prediction(prediction)
    hardware.check(device, offload, attention)
    place, dtype = find_base(base), dtype or torch.float32
    if place.is_file():
        from spectral_diffusion.single_file import load_single_file

        with quiet():
            pipeline = load_single_file(place, dtype, None if vae is None else Path(vae), prediction)
    elif vae is not None:
        raise InputError(f"{base} has its own VAE: --vae is for checkpoint files.")
    else:
        pipeline = load_folder(base, place, dtype)
        if prediction:
            pipeline.scheduler.register_to_config(prediction_type=prediction)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        part.requires_grad_(False).eval()
    hardware.place(pipeline, hardware.picked(device), offload, attention)
    return Base(_name(base, place), pipeline, place)


def _name(base: str, place: Path) -> str:
    """What a concept file notes as its base: a hub id comes with the revision that was loaded."""
    if base == "toybox":
        return base
    if place.is_file():
        return place.stem
    pinned = _HUB_ID.fullmatch(base)
    return f"{pinned[1]}@{place.name}" if pinned and not Path(base).is_dir() else place.name


def adapted_layers(pipeline: StableDiffusionPipeline) -> dict[str, nn.Module]:
    """Every Linear or 1x1 convolution inside the UNet's `Attention` and the text encoder's `CLIPAttention`.

    176 layers in SD 1.x (paper, section 5: 128 of the UNet, 48 of the text encoder).
    """
    from diffusers.models.attention_processor import Attention
    from transformers.models.clip.modeling_clip import CLIPAttention

    found: dict[str, nn.Module] = {}
    for prefix, part, kind in (
        ("unet", pipeline.unet, Attention),
        ("text_encoder", pipeline.text_encoder, CLIPAttention),
    ):
        for path, module in part.named_modules():
            if isinstance(module, kind):
                found |= {
                    f"{prefix}.{path}.{name}": layer
                    for name, layer in module.named_modules()
                    if _adaptable(layer)
                }
    return found


def further_layers(pipeline: StableDiffusionPipeline) -> dict[str, nn.Module]:
    """What surrounds attention: feed-forward layers of the UNet and the text encoder, and the UNet's proj_in, proj_out.

    88 layers in SD 1.x: 32 of 16 feed-forward networks, 32 projections, 24 of the text encoder's 12 networks.
    """
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from transformers.models.clip.modeling_clip import CLIPMLP

    return {
        f"{prefix}.{path}.{name}": layer
        for prefix, part, kind in (
            ("unet", pipeline.unet, Transformer2DModel),
            ("text_encoder", pipeline.text_encoder, CLIPMLP),
        )
        for path, module in part.named_modules()
        if isinstance(module, kind)
        for name, layer in module.named_modules()
        if _adaptable(layer) and target_of(f"{path}.{name}") != "attention"
    }


def target_of(layer: str) -> str:
    """Which of `TARGETS` a layer key belongs to."""
    if layer.endswith((".proj_in", ".proj_out")):
        return "proj"
    return "feed_forward" if ".ff." in layer or ".mlp." in layer else "attention"


def check_targets(targets: str) -> list[str]:
    """The parts of `attention+feed_forward`. Raises InputError unless each is one of `TARGETS`, once."""
    parts = targets.split("+")
    if set(parts) - set(TARGETS) or len(set(parts)) < len(parts):
        raise InputError(
            f"targets = {targets!r} is not possible: give {', '.join(TARGETS)}, or some joined by +, each once."
        )
    return parts


def _adaptable(layer: nn.Module) -> bool:
    from torch import nn

    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def fingerprint_of(base: str) -> str:
    """The fingerprint of the base that `base` names, whether it has a VAE or not. Raises as `load_base` does."""
    import torch

    place = find_base(base)
    if not place.is_file():
        return load_base(base).fingerprint
    from spectral_diffusion.single_file import load_adapted

    with quiet():
        layers = adapted_layers(SimpleNamespace(**load_adapted(place, torch.float32)))
    return fingerprint({key: layer.weight for key, layer in layers.items()})


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and the weights rounded to fp16, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for key in sorted(weights):
        weight = weights[key].detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{key}{list(weight.shape)}".encode())
        digest.update(weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()
