"""What every concept keeps in a fusion, from pictures: identity, leakage, text alignment; same seeds for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from spectral_diffusion import metrics
from spectral_diffusion.base import Base
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, generate
from spectral_diffusion.judges import Judges, bundled
from spectral_diffusion.words import spoken

# places that the bundled samples were not taught in
PLACES = ("on the beach", "in space", "in front of a mountain", "at night")


@dataclass(frozen=True)
class Shown:
    """Pictures of one concept and, per picture, what they measure."""

    images: list[Image.Image]
    identity: dict[str, torch.Tensor]  # concept -> cosine of these pictures with its photos, (images,)
    alignment: torch.Tensor  # cosine with the prompt in plain words, (images,)

    def mean(self, name: str) -> float:
        """Mean likeness of these pictures to the photos of `name`."""
        return float(self.identity[name].mean())


def show(
    base: Base,
    fused: Fused | None,
    subject: str,
    references: Mapping[str, torch.Tensor],
    classes: Mapping[str, str],
    seeds: Sequence[int],
    steps: int = 20,
    encoders: Judges | None = None,
    places: Sequence[str] = PLACES,
) -> Shown:
    """Draws `subject` ("<rex>", or plain words) in each of `places` with each seed and measures all references.

    `references`: concept -> (photos, width) vectors of `metrics.references`; `encoders`: the bundled ones if None.
    """
    encoders = encoders or bundled()
    images = draw(base, fused, subject, seeds, steps, places)
    per_place = [images[i : i + len(seeds)] for i in range(0, len(images), len(seeds))]
    said = [spoken(f"a photo of {subject} {place}", classes) for place in places]
    alignment = [encoders.text.alignment(shown, text) for shown, text in zip(per_place, said, strict=True)]
    likeness = {
        name: metrics.identity(encoders.identity, images, vectors) for name, vectors in references.items()
    }
    return Shown(images, likeness, torch.cat(alignment))


def draw(
    base: Base,
    fused: Fused | None,
    subject: str,
    seeds: Sequence[int],
    steps: int = 20,
    places: Sequence[str] = PLACES,
) -> list[Image.Image]:
    """Pictures of `subject`, place after place, each with every seed."""
    requests = (
        Request(f"a photo of {subject} {place}", seed=s, steps=steps) for place in places for s in seeds
    )
    return [picture.image for request in requests for picture in generate(base, request, fused)]


@dataclass(frozen=True)
class Kept:
    """One concept before and after a fusion; all but `retention` are mean cosines."""

    identity_alone: float
    identity_fused: float
    retention: float  # fused / alone
    leakage: dict[str, float]  # other concept -> likeness to it, above that of a plain picture of the class
    alignment_alone: float
    alignment_fused: float
    alignment_base: float  # of the base's own pictures of the class, in the same places


def kept(name: str, alone: Shown, fused: Shown, plain: Shown) -> Kept:
    """Compares a concept's pictures alone, fused, and the base's plain pictures of its class (chance level)."""
    before, after = alone.mean(name), fused.mean(name)
    return Kept(
        identity_alone=before,
        identity_fused=after,
        retention=after / before,
        leakage={other: fused.mean(other) - plain.mean(other) for other in fused.identity if other != name},
        alignment_alone=float(alone.alignment.mean()),
        alignment_fused=float(fused.alignment.mean()),
        alignment_base=float(plain.alignment.mean()),
    )
