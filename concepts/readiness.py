"""What is refused, and what is said, before anything slow begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from concepts import previews
from concepts.dataset import Example
from concepts.lesson import PREDICTIONS
from concepts.optimise import make_optimiser, make_schedule
from concepts.settings import Settings
from spectral_diffusion.base import Base
from spectral_diffusion.errors import InputError
from spectral_diffusion.judges import Judges
from spectral_diffusion.words import Words, check_words, expand, tokens_of


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
    _check_prompts(base, settings)
    _check_optimiser(settings)
    _check_beginnings(base, examples, settings)
    if settings.gradient_checkpointing and watches(examples, settings):
        raise InputError("attention_weight needs what gradient_checkpointing throws away: switch one off.")
    previews.split(examples, settings)
    if settings.measures and judges is None:
        raise InputError(
            f"keep_best and patience need encoders that know {base.name}, and only those of the bundled base are "
            "bundled: give a CLIP model with --judge."
        )


def watches(examples: Sequence[Example], settings: Settings) -> bool:
    """Whether the attention regulariser has anything to go by: it is wished, and masks tell something."""
    masked = any(example.mask for example in examples)
    return settings.attention_weight > 0 and settings.background < 1 and masked


def _check_prompts(base: Base, settings: Settings) -> None:
    """Refuses a preview prompt that could not be drawn, which would be seen at the first preview only."""
    words = _words(base, settings)
    for text in settings.preview_prompts:
        words.tokens_in(expand(text.replace("{}", f"<{settings.name}>"), [settings.name]), weighted=True)


def _check_optimiser(settings: Settings) -> None:
    """Refuses an optimiser that cannot be had or does not take its options, before anything is made for it."""
    trained = {part: [torch.nn.Parameter(torch.zeros(1))] for part, rate in settings.rates.items() if rate}
    make_schedule(settings, make_optimiser(settings, trained))


def _check_beginnings(base: Base, examples: Sequence[Example], settings: Settings) -> None:
    """Refuses a caption that names the concept behind the tokens that are read."""
    words, said = _words(base, settings), _fixed_captions(examples, settings)
    marked = words.own_tokens([text for _, text in said]).any(dim=1).tolist() if said else []
    for (name, text), seen in zip(said, marked, strict=True):
        if not seen and tokens_of(settings.name)[0] in text:
            raise InputError(
                f"The caption of {name} names <{settings.name}> behind its first 75 tokens, and no more are read: "
                "shorten it, or move the name to the front."
            )


def _words(base: Base, settings: Settings) -> Words:
    """The tokenizer with the concept's words; their embeddings are nothing yet."""
    return Words({token: torch.zeros(1, 1) for token in tokens_of(settings.name)}, base.pipeline.tokenizer)


def _fixed_captions(examples: Sequence[Example], settings: Settings) -> list[tuple[str, str]]:
    """(file name, expanded caption) of the photos whose caption is said as it stands."""
    rules = settings.captions
    told = [] if rules.templates or rules.shuffle or rules.tag_dropout else examples
    return [(example.path.name, expand(example.caption, [settings.name])) for example in told]


def notes(base: Base, examples: Sequence[Example], settings: Settings) -> list[str]:
    """What of the photos is not used, or switched off because of them, in sentences to show before the training."""
    found = []
    words, said = _words(base, settings), _fixed_captions(examples, settings)
    if long := [name for name, text in said if len(words.tokens_in(text)) > 1]:
        found.append(
            f"of the captions of {', '.join(long[:3])} only the first 75 tokens are read ({len(long)} in all)."
        )
    if settings.attention_weight and not any(example.mask for example in examples):
        found.append("no photo has a mask, so the attention regulariser is off.")
    elif settings.attention_weight and settings.background >= 1:
        found.append("background is 1, so masks tell nothing and the attention regulariser is off.")
    return found
