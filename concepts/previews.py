"""Pictures on the way: fixed prompts and seeds, drawn by generation's own sampler, and how good they are."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from concepts.dataset import Example
from concepts.settings import Settings
from concepts.stopping import Point
from spectral_diffusion import metrics
from spectral_diffusion.base import Base
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused
from spectral_diffusion.generate import Request, generate, sample
from spectral_diffusion.judges import Judges
from spectral_diffusion.words import Words, spoken

LEAST_TO_HOLD_OUT = 5  # photos; with fewer, each one is needed to learn from


@dataclass(frozen=True)
class Drawn:
    """Pictures by prompt, and the step they were drawn after."""

    step: int
    images: dict[str, list[Image.Image]]

    def sheet(self) -> Image.Image:
        """All pictures: a row per prompt."""
        rows = list(self.images.values())
        width, height = rows[0][0].size
        sheet = Image.new("RGB", (max(map(len, rows)) * width, len(rows) * height))
        for y, row in enumerate(rows):
            for x, image in enumerate(row):
                sheet.paste(image, (x * width, y * height))
        return sheet

    def save(self, folder: Path) -> Path:
        """Writes the sheet as `step-00040.png`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{self.step:05d}.png"
        self.sheet().save(path)
        return path


def split(examples: Sequence[Example], settings: Settings) -> tuple[list[Example], list[Example]]:
    """The photos to train on and those held out to measure against.

    Raises InputError if nothing would be left to train on.
    """
    count = settings.held_out
    if count is None:
        count = int(settings.measures and len(examples) >= LEAST_TO_HOLD_OUT)
    if count >= len(examples):
        raise InputError(f"held_out = {count} leaves none of the {len(examples)} photos to train on.")
    cut = len(examples) - count
    return list(examples[:cut]), list(examples[cut:])


def due(settings: Settings) -> set[int]:
    """The steps after which previews are drawn: `previews` of them, evenly, the last one at the end."""
    return {round(settings.steps * (i + 1) / settings.previews) for i in range(settings.previews)}


def draw(base: Base, words: Words, settings: Settings, step: int, how: Mapping[str, int]) -> Drawn:
    """Draws with the adapter as it stands, so always with its own slice. `how` are options of `Request`."""
    images = {}
    for text in settings.preview_prompts:
        prompt = text.replace("{}", f"<{settings.name}>")
        images[prompt] = sample(base.pipeline, words, Request(prompt, **how), [settings.name])
    return Drawn(step, images)


class Measure:
    """Identity against photos, and text alignment with the prompts in plain words."""

    def __init__(self, judges: Judges, photos: Sequence[Example], settings: Settings) -> None:
        self.judges, self.classes = judges, {settings.name: settings.class_word}
        self.reference = metrics.references(
            judges.identity, [e.image for e in photos], [e.mask for e in photos]
        )

    @torch.no_grad()
    def __call__(self, drawn: Drawn) -> Point:
        """The means over all pictures."""
        alike, faithful = [], []
        for prompt, images in drawn.images.items():
            alike.append(metrics.identity(self.judges.identity, images, self.reference))
            faithful.append(self.judges.text.alignment(images, spoken(prompt, self.classes)))
        identity, text = (float(torch.cat(values).mean()) for values in (alike, faithful))
        return Point(drawn.step, round(identity, 6), round(text, 6))


def judged(
    base: Base, concept: Concept, photos: Sequence[Example], judges: Judges | None, how: Mapping[str, int]
) -> Concept:
    """The finished concept with a preview and, if there are judges, its identity in the card, and by whom.

    `photos` it is compared with; `how` it is drawn are options of `Request`.
    """
    request = Request(f"a photo of <{concept.name}> on the beach", **how)
    images = [picture.image for picture in generate(base, request, Fused.of(concept))]
    blob = io.BytesIO()
    images[0].save(blob, "JPEG", quality=90)
    card = dict(concept.card)
    if judges:
        reference = metrics.references(judges.identity, [e.image for e in photos], [e.mask for e in photos])
        card["identity"] = round(float(metrics.identity(judges.identity, images, reference).mean()), 4)
        card["identity_of_photos"] = round(metrics.ceiling(reference), 4) if len(photos) > 1 else None
        card["identity_by"] = judges.name
    return replace(concept, card=card, preview=blob.getvalue())
