"""What is said about a picture: captions read, the concept named in them, varied from step to step.

Text in, text out; what is random takes the generator (`random.Random`) as an argument, so that a step's
captions depend on its seed only and a resumed training draws the same ones.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from spectral_diffusion.errors import InputError

Kind = Literal["object", "style", "person"]
PLACEHOLDER = "<TOK>"  # what Mix-of-Show's captions have for the concept's words
TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "object": (
        "a photo of {}",
        "a picture of {}",
        "a close-up photo of {}",
        "a good photo of {}",
        "a cropped photo of {}",
        "a bright photo of {}",
        "a photo of one {}",
        "a rendering of {}",
        "a depiction of {}",
        "a nice picture of {}",
        "a dark photo of {}",
        "a clear photo of {}",
        "a blurry photo of {}",
        "a small picture of {}",
        "a large picture of {}",
        "a snapshot of {}",
        "a photo showing {}",
        "{} seen from the front",
        "{} in the middle of the picture",
        "here is {}",
    ),
    "style": (
        "a painting in the style of {}",
        "a picture in the style of {}",
        "a drawing in the style of {}",
        "a rendering in the style of {}",
        "a scene in the style of {}",
        "a close-up in the style of {}",
        "a large work in the style of {}",
        "a bright picture in the style of {}",
        "a dark picture in the style of {}",
        "an illustration in the style of {}",
        "artwork in the style of {}",
        "a study in the style of {}",
    ),
    "person": (
        "a photo of {}",
        "a portrait of {}",
        "a close-up portrait of {}",
        "a candid photo of {}",
        "a photo of the face of {}",
        "a snapshot of {}",
        "a good photo of {}",
        "a picture of {}",
        "a studio portrait of {}",
        "{} looking at the camera",
        "{} standing there",
        "a half-length photo of {}",
    ),
}


@dataclass(frozen=True)
class CaptionRules:
    """How a picture's caption changes from step to step; the default changes nothing that was given.

    Tags are the parts between commas. The first `keep` tags stay in place, and neither they nor the tag
    that names the concept are ever dropped. `dropout` empties the whole caption, which teaches the
    unconditional side of guidance. `templates` ignores the captions given.
    """

    kind: Kind = "object"
    templates: bool = False
    shuffle: bool = False
    keep: int = 1
    tag_dropout: float = 0.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in TEMPLATES:
            raise InputError(f"caption kind must be one of {', '.join(get_args(Kind))}, not {self.kind!r}.")
        if self.keep < 0:
            raise InputError(f"keep must be at least 0 tags, not {self.keep}.")
        for option in ("tag_dropout", "dropout"):
            if not 0 <= getattr(self, option) < 1:
                raise InputError(f"caption {option} must be from 0 to below 1, not {getattr(self, option)}.")


def varied(caption: str | None, name: str, rules: CaptionRules, rng: random.Random) -> str:
    """The caption of one step for a picture whose own caption is `caption` (None: it has none).

    Deterministic in the state of `rng`. The result names the concept or is empty.
    """
    if rng.random() < rules.dropout:
        return ""
    if caption is None or rules.templates:
        return rng.choice(TEMPLATES[rules.kind]).format(f"<{name}>")
    return _tags_varied(caption, name, rules, rng)


def _tags_varied(caption: str, name: str, rules: CaptionRules, rng: random.Random) -> str:
    if not rules.shuffle and not rules.tag_dropout:
        return caption
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    head, tail = tags[: rules.keep], tags[rules.keep :]
    tail = [tag for tag in tail if f"<{name}>" in tag or rng.random() >= rules.tag_dropout]
    if rules.shuffle:
        rng.shuffle(tail)
    return ", ".join(head + tail)


def template(kind: Kind, name: str, number: int) -> str:
    """The caption of picture `number` of those that have none."""
    return TEMPLATES[kind][number % len(TEMPLATES[kind])].format(f"<{name}>")


def read_caption(path: Path) -> str | None:
    """The first line of a caption file (UTF-8) that is not empty, its blanks made single; None if all are.

    Raises InputError for another encoding: guessing one would train on garbled words.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: save the caption again as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): mend or remove it.") from error
    return next((clean(line) for line in lines if clean(line)), None)


def clean(text: str) -> str:
    """`text` on one line, without control characters, its blanks made single."""
    return " ".join("".join(c if c.isprintable() or c.isspace() else "" for c in text).split())


def with_name(
    caption: str,
    name: str,
    class_word: str | None = None,
    words: str | None = None,
    kind: Kind = "object",
) -> str:
    """`caption` naming the concept as `<name>`, once more calling it changes nothing.

    For `<TOK>`; else for the first of `words` (another trainer's words for the concept, such as 'sks dog')
    or of the class word, with its article; else in front. A style goes behind and replaces no class word:
    'a painting of a boat' is still a painting of a boat.
    """
    concept = f"<{name}>"
    caption = caption.replace(PLACEHOLDER, concept)
    if concept in caption:
        return caption
    for phrase in filter(None, (words, None if kind == "style" else class_word)):
        pattern = rf"(?<!\w)(?:(?:an?|the)\s+)?{re.escape(phrase)}(?!\w)"
        caption, found = re.subn(pattern, concept, caption, count=1, flags=re.IGNORECASE)
        if found:
            return caption
    return f"{caption}, in the style of {concept}" if kind == "style" else f"{concept}, {caption}"
