"""A base from a folder in diffusers' layout, as strictly checked as one from a single file.

diffusers and transformers load a folder whose weights are incomplete, not finite or zero without a word (a tensor
that is missing becomes random numbers), so what they loaded is checked. Nothing ever goes online, no pickle is opened.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.quiet import quiet
from spectral_diffusion.single_file import PARTS, check_numbers

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from torch import nn

_NEEDED = (*PARTS, "tokenizer", "scheduler")
_UNPICKLE = (  # takes pickles only for the parts that have nothing else
    'python -c "import sys; from diffusers import StableDiffusionPipeline as P; f = sys.argv[1]; '
    "P.from_pretrained(f, safety_checker=None, local_files_only=True).save_pretrained(f + '-safetensors')\""
)


def check_folder(base: str, folder: Path) -> None:
    """Raises InputError unless `folder` is Stable Diffusion 1.x in diffusers' layout, with safetensors."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"{base} is no diffusers folder: it has no model_index.json.")
    listed = read_json(index)
    if (kind := listed.get("_class_name")) != "StableDiffusionPipeline":
        raise InputError(
            f"{base} is a {kind}, not a StableDiffusionPipeline: only Stable Diffusion 1.x is a base."
        )
    if missing := [part for part in _NEEDED if not (folder / part).is_dir() or part not in listed]:
        raise InputError(f"{base} is no Stable Diffusion 1.x folder: {', '.join(missing)} missing.")
    config = folder / "unet" / "config.json"
    unet = read_json(config) if config.is_file() else {}
    if unet.get("cross_attention_dim") == 1024 or unet.get("in_channels", 4) != 4:
        raise InputError(
            f"{base} is not Stable Diffusion 1.x but 2.x or made for inpainting: give a plain 1.x one."
        )
    for part in PARTS:
        if not any((folder / part).glob("*.safetensors")) and any((folder / part).glob("*.bin")):
            raise InputError(
                f"{base} has pickles (.bin) for its weights, and pickles are never opened: if you trust it, "
                f"convert it with: {_UNPICKLE} {shlex.quote(str(folder))}"
            )


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a base. Raises InputError if it is none."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}): download the base again.") from error
    if not isinstance(listed, dict):
        raise InputError(f"{file} is damaged: it is no JSON object; download the base again.")
    return listed


def load_folder(base: str, folder: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    """The pipeline in `folder`, in `dtype`, on the CPU.

    Raises InputError for what cannot be loaded, DamagedFile for weights that are incomplete, not finite or zero.
    """
    from safetensors import SafetensorError

    halved = (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file() and not (
        folder / "unet" / "diffusion_pytorch_model.safetensors"
    ).is_file()
    how = {
        "dtype": dtype,
        "variant": "fp16" if halved else None,  # a download of the half-precision files alone
        "local_files_only": True,
        "use_safetensors": True,  # never a pickle
    }
    try:
        with quiet():
            from diffusers import StableDiffusionPipeline

            models = _models(folder, how)
            return StableDiffusionPipeline.from_pretrained(
                folder, **models, **how, safety_checker=None, feature_extractor=None
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        # whatever a damaged or foreign folder makes the loaders stumble over
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{base} cannot be loaded as a Stable Diffusion 1.x folder ({reason}).") from error


def _models(folder: Path, how: dict[str, Any]) -> dict[str, nn.Module]:
    """The three parts with weights, each whole and sound."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    kinds = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "vae": AutoencoderKL}
    return {part: load_part(kind, folder / part, how) for part, kind in kinds.items()}


def load_part(kind: type[Any], folder: Path, how: dict[str, Any]) -> Any:
    """The model of one folder by its class's own loader. Raises DamagedFile unless it is whole, finite and not zero."""
    model, told = kind.from_pretrained(folder, **how, output_loading_info=True)
    if missing := sorted(told["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DamagedFile(f"{folder} is not whole: {missing[0]}{more} missing; download it again.")
    for name, tensor in model.state_dict().items():
        check_numbers(folder, name, tensor, tensor)
    return model
