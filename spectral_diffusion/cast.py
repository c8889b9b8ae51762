"""Who is on the stage: a request's concepts, suited to the base, at their strengths, and told of by the picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from spectral_diffusion import hardware, loras
from spectral_diffusion.base import Base
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.request import Request, Shot
from spectral_diffusion.words import expand

_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^>]*>")


def made_with(base: Base, fused: Fused | None, request: Request) -> dict[str, Any]:
    """Base, concepts at the request's strengths, and LoRAs, as a picture's metadata tell them.

    `portable`: the concepts were made over another base.
    """
    members = dressed(fused, request).members if fused is not None else ()
    return {
        "base": base.name,
        "base_fingerprint": base.fingerprint,
        **hardware.told(base.pipeline),
        "prediction": base.prediction,
        "portable": fused is not None and fused.portable,
        "concepts": [member.facts() for member in members],
        "lora_hashes": loras.facts(request.loras),
    }


def suited(fused: Fused | None, base: Base, portable: bool = False) -> Fused | None:
    """The concepts as they may act on `base`: as they are on their own, as plain LoRAs on another if `portable`.

    Raises BaseMismatch for another base without `portable`, or one that is no Stable Diffusion 1.x.
    """
    if fused is not None:
        if portable and fused.relation(base) == "other":
            fused = fused.on_any_base()
        fused.check_base(base)
    return fused


def dressed(fused: Fused | None, request: Request) -> Fused | None:
    """The concepts at the request's strengths, everywhere and by block.

    Raises InputError for a strength of a concept, or of a block, that is not there.
    """
    if fused is None:
        if request.strengths or request.blocks:
            raise InputError("Strengths are given, but no concept is loaded.")
        return None
    fused = fused.with_strengths(request.strengths)
    for name, blocks in request.blocks.items():
        fused = fused.with_blocks(name, blocks)
    return fused


def check_shots(request: Request, shots: Sequence[Shot], names: Sequence[str]) -> None:
    """Raises InputError for a prompt, or a region of the request, with a concept that is not among `names`, and
    for A1111's `<lora:…>`, which would be read as plain text."""
    for region in request.regions:
        for name in region.concepts:
            expand(f"<{name}>", names)
    for shot in shots:
        for text in (shot.prompt, shot.negative, *(text for pair in shot.regions for text in pair)):
            expand(text, names)
            if found := _NETWORK.search(text):
                raise InputError(
                    f"The prompt has {found[0]!r}, which is no LoRA that was found: give its folder with "
                    "--lora-folder, or its file with --lora."
                )


def look(request: Request) -> tuple[Any, ...]:
    """What `staged` sets up for a request: requests of equal looks can share a stage."""
    inside = sorted({name for region in request.regions for name in region.concepts})
    blocks = sorted((name, sorted(table.items())) for name, table in request.blocks.items())
    files = request.vae, sorted(request.loras.items()), request.guide
    return sorted(request.strengths.items()), blocks, inside, *files
