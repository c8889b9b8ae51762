"""A base: a Stable Diffusion 1.x model, found, checked, loaded and known by its fingerprint.

Loads offline and in fp32 on the CPU by default. Not covered yet: single-file checkpoints and hub ids;
both are refused with a sentence that says how to convert them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral_diffusion.errors import InputError
from spectral_diffusion.files import refuse_foreign

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from torch import nn

TOYBOX = Path(__file__).parent / "toybox"
_PARTS = ("unet", "text_encoder", "vae", "tokenizer", "scheduler")


def find_base(base: str) -> Path:
    """The diffusers folder that `base` names: `toybox`, or a path.

    Raises InputError for anything else, telling what it is and what to do.
    """
    folder = TOYBOX / "pipeline" if base == "toybox" else Path(base)
    if folder.is_file():
        refuse_foreign(folder)
        raise InputError(
            f"{base} is a single file: convert it to a diffusers folder first "
            "(StableDiffusionPipeline.from_single_file(...).save_pretrained(...))."
        )
    if not folder.is_dir():
        raise InputError(f"There is no base {base!r}: give 'toybox' or a diffusers folder.")
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"{base} is no diffusers folder: it has no model_index.json.")
    listed = _index(index)
    if (kind := listed.get("_class_name")) != "StableDiffusionPipeline":
        raise InputError(
            f"{base} is a {kind}, not a StableDiffusionPipeline: only Stable Diffusion 1.x is a base."
        )
    if missing := [part for part in _PARTS if not (folder / part).is_dir() or part not in listed]:
        raise InputError(f"{base} is no Stable Diffusion 1.x folder: {', '.join(missing)} missing.")
    return folder


def _index(file: Path) -> dict[str, Any]:
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}): download the base again.") from error
    if not isinstance(listed, dict):
        raise InputError(f"{file} is damaged: it is no table of the pipeline's parts.")
    return listed


@dataclass(frozen=True)
class Base:
    """A loaded base. `pipeline` holds the pristine weights; whoever changes them puts them back."""

    name: str
    pipeline: StableDiffusionPipeline

    @cached_property
    def layers(self) -> dict[str, nn.Module]:
        """The layers that concepts adapt, by key (`unet.…`, `text_encoder.…`): see `adapted_layers`."""
        return adapted_layers(self.pipeline)

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits; equal for the same weights in fp32 and fp16."""
        return fingerprint({key: layer.weight for key, layer in self.layers.items()})

    @cached_property
    def width(self) -> int:
        """Columns of the spectrum that every adapted layer has."""
        return min(min(layer.weight.shape[:2]) for layer in self.layers.values())

    @property
    def size(self) -> int:
        """The side in pixels of the pictures this base was trained on."""
        return self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor


def load_base(base: str, dtype: torch.dtype | None = None, device: str = "cpu") -> Base:
    """Loads a base by name or folder, in `dtype` (fp32 if None), without going online."""
    import torch
    from safetensors import SafetensorError

    folder = find_base(base)
    try:
        with quiet():
            from diffusers import StableDiffusionPipeline

            pipeline = StableDiffusionPipeline.from_pretrained(
                folder,
                dtype=dtype or torch.float32,
                local_files_only=True,
                use_safetensors=True,  # never a pickle
                safety_checker=None,
                feature_extractor=None,
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        # whatever a damaged or foreign folder makes the loaders stumble over
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{base} cannot be loaded as a Stable Diffusion 1.x folder ({reason}).") from error
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        part.requires_grad_(False).eval()
    return Base(base if base == "toybox" else folder.name, pipeline.to(device))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the loaders' bars and their advice to install torchvision, which would drown our own sentences."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    found = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bars in found:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


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


def _adaptable(layer: nn.Module) -> bool:
    from torch import nn

    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and the weights rounded to fp16, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for key in sorted(weights):
        weight = weights[key].detach().to("cpu", torch.float16).contiguous()
        digest.update(f"{key}{list(weight.shape)}".encode())
        digest.update(weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()
