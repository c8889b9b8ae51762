"""A LoRA as a member of a fused file: its factors as they are, beside spectral concepts.

Reads safetensors in the keys of kohya (`lora_unet_….lora_down.weight`), of PEFT and of diffusers
(`unet.….lora_A.weight`, `….lora.down.weight`). Per layer dW = (alpha / rank) up down, so P = (alpha / rank) up
(out, r) and Q = down^T (in, r). A LoRA owns no columns of the spectrum and knows neither its base nor its words:
the caller says which base it is for and what it listens to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from spectral_diffusion.base import Base
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import BaseMismatch, DamagedFile, InputError, NameTaken
from spectral_diffusion.files import refuse_foreign
from spectral_diffusion.fused import Fused
from spectral_diffusion.members import Member
from spectral_diffusion.slices import check_name
from spectral_diffusion.words import tokens_of

SIDES = {  # how a key ends -> which side of the change it is
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}


def lora_concept(base: Base, path: Path | str, name: str, class_word: str, trigger: str) -> Concept:
    """One LoRA as a concept of form `lora`, for a library; arguments and errors as of `lora_member`.

    Layers of a lower rank than others get columns of zeros, which act as nothing.
    """
    if name != check_name(name) or name in class_word.lower().split():
        raise NameTaken(f"{name!r} is already the class word: pick a name of its own, such as my_{name}.")
    member = lora_member(base, path, name, class_word, trigger)
    rank = member.members[0].rank
    layers = {
        layer: {"P": _widened(P, rank), "Q": _widened(Q, rank)}
        for layer, (P, Q) in member.factors[name].items()
    }
    facts = (name, class_word, "lora", None, base.fingerprint, base.name, layers, dict(member.words))
    return Concept(*facts, {"imported": Path(path).name, "trigger": trigger}).rounded()


def _widened(side: Tensor, rank: int) -> Tensor:
    return torch.nn.functional.pad(side, (0, rank - side.shape[1]))


def lora_member(base: Base, path: Path | str, name: str, class_word: str, trigger: str) -> Fused:
    """The fused file of one LoRA: `<name>` in a prompt stands for the first and last word of `trigger`.

    Raises InputError or DamagedFile for what is no LoRA, BaseMismatch for one that changes layers which the base
    has not, or which concepts do not adapt (see `Base.adaptable`): it is not cut down silently.
    """
    tensors = read_lora(Path(path))
    sides = _by_layer(tensors, base, path)
    factors = {layer: _factors(parts, layer, base, path) for layer, parts in sides.items()}
    rank = max(p.shape[1] for p, _ in factors.values())
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].float().contiguous().numpy().data)
    member = Member(name, class_word, "lora", None, rank, 1.0, digest.hexdigest())
    return Fused(base.name, base.fingerprint, (member,), {name: factors}, _words(base, name, trigger))


def read_lora(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    refuse_foreign(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DamagedFile(f"{path} is no readable safetensors file: copy or download it again.") from error
    if not any(key.endswith((".lora_down.weight", ".lora_A.weight", ".lora.down.weight")) for key in tensors):
        raise InputError(f"{path} is no LoRA: it has no pair of down and up weights.")
    if bad := next((key for key, tensor in tensors.items() if not tensor.isfinite().all()), None):
        raise DamagedFile(f"{path} is damaged: {bad} holds a number that is not finite.")
    return tensors


def _by_layer(tensors: Mapping[str, Tensor], base: Base, path: Path | str) -> dict[str, dict[str, Tensor]]:
    """Layer of the base -> side -> tensor."""
    known = {plain_key(layer): layer for layer in base.adaptable}
    found: dict[str, dict[str, Tensor]] = {}
    strangers: set[str] = set()
    for key, tensor in tensors.items():
        ending = next((ending for ending in SIDES if key.endswith(ending)), None)
        stem = plain_key(key.removesuffix(ending)) if ending else ""
        # a PEFT file of one model does not say which one of the pipeline it is
        layer = next(
            (known[k] for k in (stem, f"unet_{stem}", plain_key(f"text_encoder_{stem}")) if k in known), None
        )
        if layer is None:
            strangers.add(key)
        else:
            found.setdefault(layer, {})[SIDES[ending]] = tensor.float()
    if strangers:
        raise BaseMismatch(
            f"{path} is no LoRA for {base.name}, or changes what concepts do not ({len(strangers)} tensors, such as "
            f"{min(strangers)}): only attention, feed-forward and projection layers of an SD 1.x "
            "base can be adapted."
        )
    return found


def plain_key(key: str) -> str:
    """A layer's name in any of the spellings, brought to one: `unet_down_blocks_0_…_to_q`."""
    key = re.sub(r"^lora_te1?_", "text_encoder_", re.sub(r"^lora_unet_", "unet_", key.replace(".", "_")))
    key = (
        key.replace("base_model_model_", "").replace("_processor", "").replace("to_out_lora", "to_out_0_lora")
    )
    # transformers writes the prefix or leaves it out, depending on its version
    return key.replace("text_encoder_text_model_", "text_encoder_")


def _factors(parts: Mapping[str, Tensor], layer: str, base: Base, path: Path | str) -> tuple[Tensor, Tensor]:
    if not {"down", "up"} <= parts.keys():
        raise DamagedFile(f"{path} is damaged: layer {layer} has only one of its two factors.")
    down, up = (parts[side].flatten(1) for side in ("down", "up"))
    out, width = base.adaptable[layer].weight.shape[:2]
    if len(down) != up.shape[1] or up.shape[0] != out or down.shape[1] != width:
        raise BaseMismatch(
            f"{path} does not fit {base.name}: layer {layer} is {up.shape[0]} x {down.shape[1]}, "
            f"not {out} x {width}."
        )
    alpha = float(parts["alpha"]) if "alpha" in parts else float(len(down))
    return alpha / len(down) * up, down.T.contiguous()


def _words(base: Base, name: str, trigger: str) -> dict[str, Tensor]:
    """Both of the name's tokens read what the base reads for the trigger's first and last token."""
    ids = base.pipeline.tokenizer(trigger, add_special_tokens=False).input_ids
    if not ids:
        raise InputError(f"The trigger of {name} is empty: give the words the LoRA was trained with.")
    table = base.pipeline.text_encoder.get_input_embeddings().weight.detach().float().cpu()
    first, second = tokens_of(name)
    return {first: table[ids[:1]].clone(), second: table[ids[-1:]].clone()}
