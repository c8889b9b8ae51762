"""Other people's LoRAs in one request, stacked on our concepts: style, detail, LCM.

Unlike a LoRA in a fused file (`lora_member`) it has no name in the prompt, and may change any linear layer or
convolution of the UNet and the text encoder; dW = weight * scale * up down, as `lora_file` reads it; embeddings in
the file are not used. In prompts as A1111 writes them, `<lora:name:weight>` means `name.safetensors` of a folder
that is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spectral_diffusion.errors import BaseMismatch, InputError
from spectral_diffusion.lora_file import Factors, by_layer, read_lora
from spectral_diffusion.plain import autov3

if TYPE_CHECKING:
    from spectral_diffusion.base import Base

_TAG = re.compile(r"\s*<lora:([^:<>]+)(?::([^<>]*))?>")


def taken_out(prompt: str, folder: Path | str | None) -> tuple[str, dict[str, float]]:
    """A prompt without its `<lora:name:weight>`, and file -> weight (1 if none is given).

    Raises InputError for a file that is not in the folder, and for a weight that is no number.
    """
    found: dict[str, float] = {}
    for name, weight in _TAG.findall(prompt):
        if folder is None:
            raise InputError(f"The prompt has <lora:{name}>: give the folder it is in with --lora-folder.")
        file = Path(folder) / f"{name}.safetensors"
        if Path(name).name != name or not file.is_file():
            raise InputError(f"There is no LoRA {name}.safetensors in {folder}.")
        try:
            found[str(file)] = float(weight or 1)
        except ValueError as error:
            raise InputError(
                f"<lora:{name}:{weight}> has no weight: write a number after the name."
            ) from error
    return (_TAG.sub("", prompt).strip() if found else prompt), found


def parse_loras(pairs: list[str]) -> dict[str, float]:
    """`["style.safetensors=0.8"]` -> `{"style.safetensors": 0.8}`; the weight may be left out: 1."""
    found = {}
    for pair in pairs:
        file, equals, weight = pair.rpartition("=")
        try:
            found[file if equals else pair] = float(weight) if equals else 1.0
        except ValueError as error:
            raise InputError(f"--lora {pair!r} is not file=weight, such as style.safetensors=0.8.") from error
    return found


def facts(loras: Mapping[str, float]) -> list[dict[str, Any]]:
    """Name, weight and hash (Civitai's AutoV3) of each, as a picture's metadata tell them."""
    return [{"name": Path(f).stem, "weight": w, "autov3": _hash(f)} for f, w in sorted(loras.items())]


@contextmanager
def worn(base: Base, loras: Mapping[str, float]) -> Iterator[None]:
    """Adds the LoRAs to the base's weights as they stand while active; then restores bit for bit.

    Raises InputError or DamagedFile for what is no LoRA, BaseMismatch for one that does not fit the base.
    """
    if loras:
        base.fingerprint  # noqa: B018 - before the weights are changed
    layers = _layers(base) if loras else {}
    changes = [(weight, _changes(file, layers)) for file, weight in sorted(loras.items()) if weight]
    kept = {key: layers[key].weight.data for _, change in changes for key in change}
    try:
        for key, own in kept.items():
            total = sum(weight * torch.mm(*change[key]) for weight, change in changes if key in change)
            layers[key].weight.data = (own.float() + total.reshape(own.shape).to(own.device)).to(own.dtype)
        yield
    finally:
        for key, own in kept.items():
            layers[key].weight.data = own.to(layers[key].weight.device)  # as in `fused.applied`


def _layers(base: Base) -> dict[str, nn.Module]:
    """Every layer that a LoRA can change, by its key."""
    parts = {"unet": base.pipeline.unet, "text_encoder": base.pipeline.text_encoder}
    return {
        f"{part}.{path}": layer
        for part, model in parts.items()
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def _changes(file: str, layers: Mapping[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> up (out, r) times its scale, down (r, in * height * width)."""
    if not Path(file).is_file():
        raise InputError(f"There is no LoRA {file}.")
    found, strangers = by_layer(read_lora(file), layers)
    if strangers:
        raise BaseMismatch(
            f"{file} is no plain LoRA for Stable Diffusion 1.x: there is nothing that its {min(strangers)} could "
            "change."
        )
    return {name: _sized(file, name, factors, layers[name].weight) for name, factors in found.items()}


def _sized(file: str, name: str, factors: Factors, weight: Tensor) -> tuple[Tensor, Tensor]:
    up, down = factors.up.flatten(1), factors.down
    if up.shape != (len(weight), len(down)) or down[0].numel() != weight[0].numel():
        raise BaseMismatch(f"{file} does not fit this base: its layer {name} has another size.")
    return factors.scale * up, down.flatten(1)


def _hash(file: str) -> str | None:
    """None for a file that is not there: that is told when it is to be read."""
    path = Path(file)
    if not path.is_file():
        return None
    about = path.stat()
    return _hash_of(file, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=64)
def _hash_of(file: str, time: int, size: int) -> str:
    return autov3(file)
