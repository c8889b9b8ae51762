"""What is refused, and what is said, before anything slow begins."""

from __future__ import annotations

from collections.abc import Sequence

from concepts import previews
from concepts.dataset import Example
from concepts.lesson import PREDICTIONS
from concepts.previews import Judges
from concepts.settings import Settings
from spectral_diffusion.base import Base
from spectral_diffusion.errors import InputError
from spectral_diffusion.words import check_words, expand


def check(base: Base, examples: Sequence[Example], settings: Settings, judges: Judges | None = None) -> None:
    """Refuses what can be refused before a slice is taken."""
    if not examples:
        raise InputError(f"There is no photo of {settings.name} to learn from.")
    check_words(settings.name, settings.class_word, base.pipeline.tokenizer)
    for example in examples:
        expand(example.caption, [settings.name])
    kind = base.pipeline.scheduler.config.prediction_type
    if kind not in PREDICTIONS:
        raise InputError(
            f"{base.name} predicts {kind!r}: a base that predicts noise or velocity can be taught."
        )
    previews.split(examples, settings)
    if settings.measures and judges is None:
        raise InputError(
            f"keep_best and patience need encoders that know {base.name}: there are none but for the bundled base."
        )


def notes(examples: Sequence[Example], settings: Settings) -> list[str]:
    """What is switched off because of the photos, in sentences to show before the training."""
    found = []
    if settings.attention_weight and not any(example.mask for example in examples):
        found.append("no photo has a mask, so the attention regulariser is off.")
    elif settings.attention_weight and settings.background >= 1:
        found.append("background is 1, so masks tell nothing and the attention regulariser is off.")
    return found
