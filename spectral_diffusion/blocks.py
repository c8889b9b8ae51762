"""Blocks of a base as users know them: `text`, `down.0`, `mid`, `up.1`, and the kinds `attn1`, `attn2`.

A layer is in several groups; `text_encoder.…layers.3.self_attn.q_proj` is in `text` and `text.3`,
`unet.down_blocks.0.….attn2.to_k` in `down`, `down.0` and `attn2`. A strength per block is a factor on the
strength of the concept; where several groups of a layer have one, they multiply, so that `up` at .5 with
`attn2` at 0 means what it says in whatever order it is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod

from spectral_diffusion.errors import InputError

_UNET = re.compile(r"unet\.(?:(down|up)_blocks\.(\d+)|(mid)_block)\.")
_TEXT = re.compile(r"text_encoder\..*?layers\.(\d+)\.")
_KIND = re.compile(r"\.(attn[12])\.")


@lru_cache(maxsize=4096)
def blocks_of(layer: str) -> tuple[str, ...]:
    """The groups of a layer key, the widest first; empty for a layer that no block of SD 1.x holds."""
    if text := _TEXT.match(layer):
        return "text", f"text.{text[1]}"
    if not (unet := _UNET.match(layer)):
        return ()
    side, number, mid = unet.groups()
    groups = (mid,) if mid else (side, f"{side}.{number}")
    kind = _KIND.search(layer)
    return (*groups, kind[1]) if kind else groups


def factor_of(layer: str, blocks: Mapping[str, float]) -> float:
    """What per-block strengths make of a strength in this layer: the product over the layer's groups."""
    return prod((blocks[group] for group in blocks_of(layer) if group in blocks), start=1.0)


def known_blocks(layers: Iterable[str]) -> list[str]:
    """Every group that some of the layers is in, sorted."""
    return sorted({group for layer in layers for group in blocks_of(layer)})


def check_blocks(name: str, blocks: Mapping[str, float], layers: Iterable[str]) -> None:
    """Raises InputError for a block that no layer of the member `name` is in."""
    known = known_blocks(layers)
    if strangers := sorted(set(blocks) - set(known)):
        raise InputError(f"{name} has no block {strangers[0]!r}; it has {', '.join(known)}.")
