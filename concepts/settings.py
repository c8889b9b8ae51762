"""How a concept is trained: one frozen dataclass that refuses what cannot work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spectral_diffusion.errors import InputError, NameTaken
from spectral_diffusion.ledger import Slice, check_name


@dataclass(frozen=True)
class Settings:
    """Settings of one training.

    A small weight rate beside a large word rate, and the teacher prior, are what lets concepts be summed
    at full strength later; the paper's own rates are in its appendix and erase each other when summed.
    """

    name: str
    class_word: str
    rank: int = 4
    start: int | None = None  # first column of the slice; None: the next free one of the ledger
    form: Literal["additive", "rotational"] = "additive"
    steps: int = 160
    batch: int = 4
    weight_rate: float = 1e-3
    word_rate: float = 1e-2
    layerwise: bool = False  # one embedding per cross-attention layer for each word, instead of one
    prior_weight: float = 5.0  # 0 switches the teacher prior off
    prior_batch: int = 4
    prior_pictures: int = 64  # prepared once per base and class
    crops: int = 6  # jittered crops of each photo, encoded once
    warmup: int = 10
    clip: float = 1.0
    slice_aware: bool = True  # let deep slices learn as fast as the top one
    background: float = 0.2  # weight of the loss outside the mask, where there is one
    seed: int = 0
    previews: int = 3  # how many times pictures are drawn during training

    def __post_init__(self) -> None:
        check_name(self.name)
        Slice(self.start or 0, self.rank)  # checks both
        for option in ("steps", "batch", "crops", "prior_pictures", "prior_batch"):
            if getattr(self, option) < 1:
                raise InputError(f"{option} must be at least 1, not {getattr(self, option)}.")
        for option in (
            "weight_rate",
            "word_rate",
            "prior_weight",
            "background",
            "clip",
            "warmup",
            "previews",
        ):
            if not 0 <= getattr(self, option) < float("inf"):
                raise InputError(f"{option} must be a number from 0 on, not {getattr(self, option)}.")
        if self.form not in ("additive", "rotational"):
            raise InputError(f"form must be additive or rotational, not {self.form!r}.")
        if not self.class_word.strip():
            raise InputError("class is empty: give the plain word for what the photos show, such as 'dog'.")


def free_path(library: Path, name: str) -> Path:
    """Where the concept `name` will be written. Raises NameTaken if a file is there."""
    path = library / f"{check_name(name)}.safetensors"
    if path.exists():
        raise NameTaken(f"{path} exists already: pick another name, or remove it first.")
    return path
