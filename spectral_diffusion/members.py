"""One member of a fused file: what it is and how strongly it acts, layer by layer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch

from spectral_diffusion import card
from spectral_diffusion.blocks import factor_of
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError, SliceTaken
from spectral_diffusion.slices import Slice, check_name
from spectral_diffusion.tuner.maths import FORMS

# the full share that a merge left of a concept; its `start`, if any, is where the concept was trained
DENSE = "dense"


@dataclass(frozen=True)
class Member:
    """One concept inside a fused file. `start` is None for a form that owns no columns.

    In a layer the member acts with `strength` times the factors of the layer's blocks (`blocks.factor_of`),
    or not at all if it is switched off. Building one raises InputError for a strength that is no number from
    0 on, ValueError for facts that make no sense.
    """

    name: str
    class_word: str
    form: str
    start: int | None
    rank: int
    strength: float
    sha256: str  # of the concept's trained numbers and words
    blocks: Mapping[str, float] = field(default_factory=dict)
    on: bool = True

    def __post_init__(self) -> None:
        check_name(self.name)
        if not all(isinstance(fact, str) and fact.strip() for fact in (self.class_word, self.sha256)):
            raise ValueError(f"the class word and the hash of {self.name} must be texts")
        if self.form not in (*FORMS, *card.FREE_FORMS, DENSE):
            raise ValueError(f"form {self.form!r} is unknown")
        if self.form != DENSE and (self.start is None) != (self.form in card.FREE_FORMS):
            raise ValueError(f"{self.name} is {self.form} and starts at {self.start}")
        Slice(0 if self.start is None else self.start, self.rank)  # checks both
        if type(self.on) is not bool:
            raise ValueError(f"{self.name} is neither on nor off but {self.on!r}")
        for what, strength in {"": self.strength, **{f" in {b}": s for b, s in self.blocks.items()}}.items():
            check_strength(f"The strength of {self.name}{what}", strength)

    @property
    def slice(self) -> Slice | None:
        """The columns it owns, if its form owns any."""
        return None if self.start is None else Slice(self.start, self.rank)

    @property
    def width(self) -> int | None:
        """Columns of its factors in every layer; None if that differs from layer to layer."""
        return self.rank * FORMS[self.form].rank_factor if self.form in FORMS else None

    def at(self, layer: str) -> float:
        """The strength it acts with in a layer."""
        return self.strength * factor_of(layer, self.blocks) if self.on else 0.0

    @property
    def order(self) -> tuple[bool, int, str]:
        """Sorts members by column, those without one last: sums are taken in this order, whatever the list."""
        return self.start is None, self.start or 0, self.name

    def facts(self) -> dict[str, Any]:
        """Itself as JSON-able data."""
        return {**vars(self), "blocks": dict(self.blocks)}


def check_strength(what: str, value: Any) -> None:
    """Raises InputError, which says `what`, unless `value` is a number from 0 on that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{what} must be a number, not {value!r}.")
    if not (finite(value) and value >= 0):
        said = value if finite(value) or isinstance(value, float) else "one of hundreds of digits"
        raise InputError(f"{what} must be a number from 0 on, not {said}.")


def finite(number: float) -> bool:
    """Whether a float can hold it: a whole number may be too large."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def check_columns(members: Iterable[Member], new: Member) -> None:
    """Raises SliceTaken if `new` owns a column that one of the members has."""
    for member in members:
        if member.slice and new.slice and member.slice.overlaps(new.slice):
            raise SliceTaken(
                f"{member.name} (columns {member.slice}) and {new.name} (columns {new.slice}) overlap: "
                f"train {new.name} again in other columns."
            )


def overlapping(members: Iterable[Member]) -> tuple[Member, Member] | None:
    """The first two members that own the same column, if any do."""
    owners = [member for member in members if member.slice]
    pairs = combinations(owners, 2)
    return next(((one, two) for one, two in pairs if one.slice.overlaps(two.slice)), None)


def content_hash(concept: Concept) -> str:
    """SHA-256 of a concept's trained numbers and words, in the order of their names."""
    digest = hashlib.sha256()
    flat = {f"{layer}/{key}": t for layer, numbers in concept.layers.items() for key, t in numbers.items()}
    for key, tensor in sorted({**flat, **concept.words}.items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
