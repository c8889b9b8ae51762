"""Somebody's LoRA file, whichever program wrote it: its layers in one spelling, and how strongly each acts.

Reads safetensors in the keys of kohya (`lora_unet_….lora_down.weight`), of PEFT and diffusers
(`unet.….lora_A.weight`, `….lora.down.weight`) and of the diffusers of 2023 (`….processor.to_q_lora.down.weight`).
Per layer dW = scale * up down, scale = alpha / rank. Alpha is, in this order, a tensor beside the two; what diffusers
wrote into the header (`lora_adapter_metadata`) or PEFT beside its file (`adapter_config.json`), with their patterns
and rsLoRA; the rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.files import finite, refuse_foreign
from spectral_diffusion.model_file import BUNDLED, LORA_DOWNS, LORA_SIDES

_PEFT = "base_model.model."
Configs = Mapping[str, Mapping[str, Any]]  # part, "" for a file of one model -> PEFT's config


class Factors(NamedTuple):
    """What a LoRA does to one layer: dW = scale * up down, both fp32 and as the file has them."""

    up: Tensor  # (out, r, …)
    down: Tensor  # (r, in, …)
    scale: float


class LoraFile(NamedTuple):
    """A LoRA file's tensors, the words bundled with them (name -> (vectors, width)), and PEFT's configs."""

    path: Path
    tensors: dict[str, Tensor]
    words: dict[str, Tensor]
    configs: Configs


def read_lora(path: Path | str) -> LoraFile:
    """The whole file. Raises InputError or DamagedFile for what is no LoRA."""
    path = Path(path)
    refuse_foreign(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFile(f"{path} is no readable safetensors file: copy or download it again.") from error
    if not any(key.endswith(LORA_DOWNS) for key in tensors):
        raise InputError(f"{path} is no LoRA: it has no pair of down and up weights.")
    if bad := next((k for k, t in tensors.items() if t.is_floating_point() and not finite(t)), None):
        raise DamagedFile(f"{path} is damaged: {bad} holds a number that is not finite.")
    bundled = {key: tensors.pop(key) for key in sorted(tensors) if key.startswith(BUNDLED)}
    words = {key.split(".")[1]: rows.float() for key, rows in bundled.items() if rows.ndim == 2}
    return LoraFile(path, tensors, words, _configs(path, metadata, tensors))


def by_layer(lora: LoraFile, known: Iterable[str]) -> tuple[dict[str, Factors], set[str]]:
    """Layer, as `known` calls it -> what it does to it; and the keys of tensors that belong to no known layer.

    Raises DamagedFile for a layer with one side only.
    """
    layers = {plain_key(layer): layer for layer in known}
    found: dict[str, dict[str, Tensor]] = {}
    strangers, modules = set(), {}
    for key, tensor in lora.tensors.items():
        ending = next((ending for ending in LORA_SIDES if key.endswith(ending)), None)
        module = key.removesuffix(ending) if ending else ""
        # a file of one model does not say which one of the pipeline it is
        spellings = (plain_key(f"{part}{module}") for part in ("", "unet_", "text_encoder_"))
        layer = next((layers[name] for name in spellings if name in layers), None)
        if layer is None:
            strangers.add(key)
        else:
            found.setdefault(layer, {})[LORA_SIDES[ending]] = tensor.float()
            modules[layer] = module
    return {layer: _factors(lora, modules[layer], sides) for layer, sides in found.items()}, strangers


def plain_key(key: str) -> str:
    """A layer's name in any of the spellings, brought to one: `unet_down_blocks_0_…_to_q`."""
    key = re.sub(r"^lora_te1?_", "text_encoder_", re.sub(r"^lora_unet_", "unet_", key.replace(".", "_")))
    key = key.replace("base_model_model_", "").replace("_processor_", "_")
    key = re.sub(r"_self_attn_to_([qkv])$", r"_self_attn_\1_proj", key)
    key = re.sub(r"_self_attn_to_out$", "_self_attn_out_proj", key)
    key = re.sub(r"_to_out$", "_to_out_0", key)
    # transformers writes the prefix or leaves it out, depending on its version
    return key.replace("text_encoder_text_model_", "text_encoder_")


def _factors(lora: LoraFile, module: str, sides: Mapping[str, Tensor]) -> Factors:
    if not {"down", "up"} <= sides.keys():
        raise DamagedFile(f"{lora.path} is damaged: layer {module} has only one of its two factors.")
    rank = len(sides["down"])
    scale = sides["alpha"].item() / rank if "alpha" in sides else _told_scale(lora, module, rank)
    return Factors(sides["up"], sides["down"], scale)


def _told_scale(lora: LoraFile, module: str, rank: int) -> float:
    """By the config of the layer's model; 1 if there is none."""
    part, _, path = module.partition(".")
    config, path = (lora.configs[part], path) if part in lora.configs else (lora.configs.get(""), module)
    if config is None:
        return 1.0
    try:
        patterns = config.get("alpha_pattern") or {}
        fitting = (a for p, a in patterns.items() if re.fullmatch(rf"(.*\.)?({p})", path.removeprefix(_PEFT)))
        alpha = float(next(fitting, config.get("lora_alpha", rank)))
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise DamagedFile(f"{lora.path} is damaged: what PEFT notes of its alpha makes no sense.") from error
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)


def _configs(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Configs:
    """PEFT's config of each part, from the header or from beside the file; none from a file of other keys."""
    beside = path.with_name("adapter_config.json")
    try:
        if text := metadata.get("lora_adapter_metadata"):
            configs: dict[str, dict[str, Any]] = {}
            for key, value in json.loads(text).items():
                part, _, name = key.partition(".")
                configs.setdefault(part, {})[name] = value
            return configs
        if beside.is_file() and all(key.startswith(_PEFT) for key in tensors):
            return {"": dict(json.loads(beside.read_text(encoding="utf-8")))}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: PEFT's config of it is no JSON object.") from error
    return {}
