"""A concept or fused file as a LoRA of exact rank, in the keys that other programs read.

dW = P Q^T is already a product of two thin matrices, without a small difference of large numbers; it becomes
`up` (out, R) times `down` (R, in), R = 2r for an additive concept and r for a rotational one, with alpha = R,
so that no program scales it. Strengths are multiplied in. Two matching columns are balanced by a power of
two, which is exact, so that half precision costs both the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused

TEXT = "text_encoder."


class Pair(NamedTuple):
    """The two matrices of one layer, fp32: dW = up @ down."""

    up: Tensor  # (out, R)
    down: Tensor  # (R, in)


def lora_pairs(fused: Fused) -> dict[str, Pair]:
    """Layer -> its pair, strengths and norm control included; members that do not act take no rank.

    Raises InputError if nothing is left.
    """
    if not fused.layers():
        raise InputError(
            f"{', '.join(fused.names)} changes no layer, for only its words were trained: export --format embedding."
        )
    pairs = {}
    for layer in fused.layers():
        scale, parts = fused.acting(layer)
        if parts:
            up = scale * torch.cat([p for p, _ in parts], dim=1)
            pairs[layer] = balanced(up, torch.cat([q for _, q in parts], dim=1).mT)
    if not pairs:
        raise InputError("Every concept is off or at strength 0: there is nothing to export.")
    return pairs


def balanced(up: Tensor, down: Tensor) -> Pair:
    """The same product, bit for bit in fp32, with every column of `up` about as long as its row of `down`."""
    long, short = up.norm(dim=0), down.norm(dim=1)
    ratio = torch.where((long > 0) & (short > 0), short / long, 1.0)
    factor = torch.exp2((ratio.log2() / 2).round())
    return Pair(up * factor, (down / factor[:, None]).contiguous())


def stored_error(pairs: Mapping[str, Pair], dtype: torch.dtype) -> float:
    """The largest relative error (Frobenius) of a layer's dW after storing its pair in `dtype`."""
    worst = 0.0
    for up, down in pairs.values():
        exact = up @ down
        stored = up.to(dtype).float() @ down.to(dtype).float()
        size = exact.norm().item()
        worst = max(worst, (stored - exact).norm().item() / size if size else 0.0)
    return worst


def _split(layer: str) -> tuple[bool, str]:
    """Whether a layer is of the text encoder, and its path in the way all programs call it."""
    if not layer.startswith(TEXT):
        return False, layer.removeprefix("unet.")
    return True, f"text_model.{layer.removeprefix(TEXT).removeprefix('text_model.')}"


def kohya_name(layer: str) -> str:
    """`unet.a.to_out.0` -> `lora_unet_a_to_out_0`, `text_encoder.…` -> `lora_te_text_model_…`."""
    text, path = _split(layer)
    return f"lora_{'te' if text else 'unet'}_{path.replace('.', '_')}"


def diffusers_name(layer: str) -> str:
    """`unet.<path>`, or `text_encoder.text_model.<path>`."""
    text, path = _split(layer)
    return f"{'text_encoder' if text else 'unet'}.{path}"


def kohya_tensors(pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
    """The tensors of a LoRA that A1111, Forge, ComfyUI, InvokeAI and diffusers read."""
    tensors = {}
    for layer, pair in pairs.items():
        name, (up, down) = kohya_name(layer), _shaped(layer, pair)
        tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"] = up, down
        tensors[f"{name}.alpha"] = torch.tensor(float(len(down)))
    return tensors


def diffusers_tensors(pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
    """The tensors of a LoRA in diffusers' keys; without an alpha, which then is the rank."""
    return _lettered({diffusers_name(layer): _shaped(layer, pair) for layer, pair in pairs.items()})


def peft_tensors(pairs: Mapping[str, Pair], part: str) -> dict[str, Tensor]:
    """The tensors of a PEFT adapter of one part, `unet` or `text_encoder`, by the module paths of today."""
    chosen = {k.removeprefix(f"{part}."): pair for k, pair in pairs.items() if k.startswith(f"{part}.")}
    return _lettered({f"base_model.model.{path}": _shaped(path, pair) for path, pair in chosen.items()})


def _shaped(layer: str, pair: Pair) -> Pair:
    """The pair as others expect it: four dimensions for proj_in and proj_out, which are 1x1 convolutions in SD 1.x."""
    conv = layer.endswith((".proj_in", ".proj_out"))
    return Pair(*(side[..., None, None] for side in pair)) if conv else pair


def _lettered(pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
    down = {f"{name}.lora_A.weight": pair.down for name, pair in pairs.items()}
    return down | {f"{name}.lora_B.weight": pair.up for name, pair in pairs.items()}


KEYS: dict[str, Callable[[Mapping[str, Pair]], dict[str, Tensor]]] = {
    "kohya": kohya_tensors,
    "diffusers": diffusers_tensors,
}


def lora_metadata(
    fused: Fused, pairs: Mapping[str, Pair], dtype: torch.dtype, preview: str | None = None
) -> dict[str, str]:
    """ModelSpec's, kohya's and our own entries of the header. `preview` is a data URL."""
    active = [member for member in fused.members if member.on and member.strength]
    triggers = ", ".join(member.name for member in active)
    rank = max(len(pair.down) for pair in pairs.values())
    strengths = {member.name: member.strength for member in active}
    facts = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": fused.base_name,
        "ss_output_name": "-".join(strengths),
        "ss_tag_frequency": json.dumps({name: {name: 1} for name in strengths}),
        **_predicting(fused),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": triggers,
        "modelspec.trigger_phrase": triggers,
        "modelspec.description": f"Spectral concepts on {fused.base_name}: {_described(fused)}",
        "spectral.base_fingerprint": fused.base_fingerprint,
        "spectral.strengths": json.dumps(strengths),
        "spectral.relative_error": f"{stored_error(pairs, dtype):.2e}",
    }
    return facts | ({"modelspec.thumbnail": preview} if preview else {})


def _predicting(fused: Fused) -> dict[str, str]:
    """kohya's and ModelSpec's entries of what its base predicts, if that is known."""
    if fused.prediction is None:
        return {}
    velocity = fused.prediction == "v_prediction"
    return {
        "ss_v_parameterization": str(velocity),
        "modelspec.prediction_type": "v" if velocity else "epsilon",
    }


def _described(fused: Fused) -> str:
    return ", ".join(f"{member.name} ({member.class_word})" for member in fused.members if member.on)
