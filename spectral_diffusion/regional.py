"""Regions in attention: each region's text and each concept's weight change act inside it, in one forward pass.

- Cross-attention: a pixel's query meets the keys and values of its region's text; pixels that several
  texts share get the mean of the answers by their shares. Keys and values do not change from step to step,
  so they are made once.
- Every other adapted layer reads pixels: y = Wx + mask * strength * P Q^T x, with the concept's mask at that
  layer's resolution. Outside the mask the layer's output is the base's, bit for bit.

Cross-attention per region is Mix-of-Show's (Gu et al., NeurIPS 2023); there the weights are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_diffusion.base import Base
from spectral_diffusion.fused import Fused
from spectral_diffusion.hardware import awake
from spectral_diffusion.regions import Region, shares
from spectral_diffusion.words import cross_attention_layers

_TEXT_SIDE = (".attn2.to_k", ".attn2.to_v")


@contextmanager
def regional(
    base: Base,
    local: Fused | None,
    regions: Sequence[Region],
    texts: Sequence[Tensor],
    layers: int,
    size: tuple[int, int],
) -> Iterator[None]:
    """While active, the UNet draws with regions; `local` are the concepts that act in regions only.

    `texts`: the request's own encoding, then one for each region, each (rows, layers * tokens, width) with
    the rows the UNet will be given. `size`: width and height of the picture in pixels.
    """
    unet = awake(base.pipeline.unet)  # its layers are asked for keys and values before it is called
    like = next(unet.parameters())
    masks, parts = (_levels(maps.to(like), base.pipeline.vae_scale_factor) for maps in shares(regions, *size))
    change = LocalChange(local, regions, masks)
    shared = {count: _indexed(part) for count, part in parts.items()}
    paths = {module: path for path, module in unet.named_modules()}
    with ExitStack() as stack:
        for key in change.layers():
            if not key.endswith(_TEXT_SIDE):
                stack.callback(change.hook(key, base.adaptable[key]).remove)
        for i, module in enumerate(cross_attention_layers(unet)):
            read = [text.chunk(layers, dim=1)[i] if layers > 1 else text for text in texts]
            pairs = [
                tuple(
                    change.of_text(f"unet.{paths[module]}.{side}", getattr(module, side), text, k - 1)
                    for side in ("to_k", "to_v")
                )
                for k, text in enumerate(read)
            ]
            stack.callback(module.set_processor, module.processor)
            module.set_processor(SharedAttention(pairs, shared))
        yield


class LocalChange:
    """The weight changes that act in regions only, as stacked factors: columns belong to members.

    `masks`: pixels of a layer -> the regions' masks (regions, pixels) at its resolution.
    """

    def __init__(self, local: Fused | None, regions: Sequence[Region], masks: dict[int, Tensor]) -> None:
        # in the order of the columns, so that the order of concepts and regions changes no bit
        self.members = sorted(local.members, key=lambda m: m.order) if local else []
        self.local = local
        self.inside = [[member.name in region.concepts for region in regions] for member in self.members]
        # a concept in several regions acts wherever one of them is
        self.masks = {
            count: [mask[torch.tensor(where)].amax(0) for where in self.inside]
            for count, mask in masks.items()
        }

    def layers(self) -> list[str]:
        """Keys of the UNet's layers that are changed."""
        return [key for key in self.local.layers() if key.startswith("unet.")] if self.local else []

    def factors(self, key: str, region: int | None = None) -> tuple[Tensor, Tensor, list[int]] | None:
        """P (out, w) times the strengths, Q (in, w), and the member of each column; of one region or of all."""
        gain, _ = self.local.acting(key) if self.local else (1.0, [])
        found = [
            (i, gain * member.at(key), *self.local.factors[member.name][key])
            for i, member in enumerate(self.members)
            if key in self.local.factors[member.name] and (region is None or self.inside[i][region])
        ]
        if not found:
            return None
        owners = [i for i, _, p, _ in found for _ in range(p.shape[1])]
        stacked = torch.cat([strength * p for _, strength, p, _ in found], dim=1)
        return stacked, torch.cat([q for *_, q in found], dim=1), owners

    def of_text(self, key: str, layer: nn.Module, text: Tensor, region: int) -> Tensor:
        """What `layer` makes of a region's text; `region` -1 is the request's own text, which has no change."""
        found = self.factors(key, region) if region >= 0 else None
        plain = layer(text)
        if found is None:
            return plain
        p, q, _ = (part.to(text) if torch.is_tensor(part) else part for part in found)
        return plain + F.linear(F.linear(text, q.T), p)

    def hook(self, key: str, layer: nn.Module) -> Any:
        """Adds the masked change to what `layer` (rows, pixels, in) -> (rows, pixels, out) answers."""
        p, q, owners = self.factors(key)
        p, q = p.to(layer.weight), q.to(layer.weight)
        inside: dict[int, Tensor] = {}

        def columns(count: int) -> Tensor:
            """(pixels, w): the mask of each column's member."""
            if count not in inside:
                inside[count] = torch.stack([self.masks[count][i] for i in owners], dim=1)
            return inside[count]

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            picture = args[0].ndim == 4  # what a 1x1 convolution reads: (rows, in, height, width)
            pixels = args[0].flatten(2).mT if picture else args[0]
            change = F.linear(F.linear(pixels, q.T) * columns(pixels.shape[1]), p)
            return output + (change.mT.reshape(output.shape) if picture else change)

        return layer.register_forward_hook(add)


class SharedAttention:
    """A cross-attention processor: pixels attend to the texts they belong to, by their shares.

    `pairs`: keys and values (rows, tokens, inner) of each text; `shared`: pixels of a layer -> for each text
    its share and the index of the pixels that have one, both (n,).
    """

    def __init__(
        self, pairs: Sequence[tuple[Tensor, Tensor]], shared: dict[int, list[tuple[Tensor, Tensor]]]
    ) -> None:
        self.pairs, self.shared = pairs, shared

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """(rows, pixels, width) -> the same shape; the text the UNet passes on is not read."""
        query = attn.to_q(hidden_states)
        mixed = torch.zeros_like(query)
        for (key, value), (share, where) in zip(self.pairs, self.shared[query.shape[1]], strict=True):
            if len(where):
                answer = _attend(query[:, where], key, value, attn.heads)
                mixed.index_add_(1, where, answer * share[:, None])
        return attn.to_out[1](attn.to_out[0](mixed))


def _indexed(part: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(share[share > 0], (share > 0).nonzero()[:, 0]) for share in part]


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _levels(maps: Tensor, scale: int) -> dict[int, Tensor]:
    """Pixels of a UNet level -> the maps (n, height, width) at that level, (n, pixels).

    The UNet halves the latent picture, rounding up, at each of its levels.
    """
    height, width = maps.shape[1] // scale, maps.shape[2] // scale
    found = {}
    while True:
        found[height * width] = F.adaptive_avg_pool2d(maps[None], (height, width))[0].flatten(1)
        if height == width == 1:
            return found
        height, width = -(-height // 2), -(-width // 2)
