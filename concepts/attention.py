"""The attention regulariser: the words of a concept look at the concept, where a mask says where it is.

Every cross-attention layer gives each pixel a distribution over the prompt's tokens. Of the attention that
goes to the concept's own tokens, the share that lies outside the mask is the loss: 0 to 1, never NaN. It
cannot be 0 for an all-black mask, so photos come with masks that are checked (`concepts.dataset`).
The idea is Mix-of-Show's (Gu et al., 2023); its released form divides by an empty mask when there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_diffusion.words import cross_attention_layers

_LEAST_SIDE = 4  # coarser maps cannot tell inside from outside


def outside_share(maps: Tensor, inside: Tensor) -> Tensor:
    """The share of attention outside a mask.

    `maps` (batch, h, w), each 0 or more; `inside` (batch, 1, H, W), 1 on the concept, 0 elsewhere.
    Returns (batch,) in 0..1.
    """
    fitted = F.interpolate(inside, size=maps.shape[-2:], mode="area")[:, 0]
    total = maps.sum(dim=(1, 2)).clamp(min=1e-6)
    return ((maps * (1 - fitted)).sum(dim=(1, 2)) / total).clamp(0, 1)


def attention_to(module: nn.Module, hidden: Tensor, text: Tensor, ours: Tensor) -> Tensor:
    """How much each pixel attends to the tokens where `ours` (batch, tokens) is true: (batch, pixels), 0..1.

    `module` is a diffusers `Attention`, `hidden` (batch, pixels, width), `text` (batch, tokens, width).
    """
    query, key = (
        projected.unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for projected in (module.to_q(hidden), module.to_k(text))
    )
    scores = (query @ key.mT).float() * module.scale
    return (scores.softmax(-1) * ours[:, None, None]).sum(-1).mean(1)


@contextmanager
def watched(unet: UNet2DConditionModel, ours: Tensor, aspect: tuple[int, int]) -> Iterator[list[Tensor]]:
    """Yields a list that fills with one map (batch, h, w) per cross-attention layer during a forward pass.

    `ours` (batch, tokens) marks the concept's tokens, `aspect` is the (height, width) of the latents.
    Layers whose maps are too coarse are left out. The batch may be larger than `ours`: the rest is not looked at.
    """
    maps: list[Tensor] = []

    def look(module: nn.Module, args: Sequence[Tensor], kwargs: dict[str, Tensor]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        side = round((hidden.shape[1] * aspect[0] / aspect[1]) ** 0.5)
        if side < _LEAST_SIDE or side * (hidden.shape[1] // side) != hidden.shape[1]:
            return
        text, count = kwargs["encoder_hidden_states"], len(ours)
        seen = attention_to(module, hidden[:count], text[:count], ours)
        maps.append(seen.unflatten(1, (side, -1)))

    hooks = [
        module.register_forward_pre_hook(look, with_kwargs=True) for module in cross_attention_layers(unet)
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def words_outside(maps: Sequence[Tensor], inside: Tensor) -> Tensor:
    """Mean over the layers' maps of the share outside the mask `inside` (batch, 1, H, W): (batch,)."""
    if not maps:
        return inside.new_zeros(len(inside))
    return torch.stack([outside_share(seen, inside) for seen in maps]).mean(0)
