"""Checks that concepts can live together, then fuses them by a named method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from fusion.methods import METHODS
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import BaseMismatch, InputError, SliceTaken
from spectral_diffusion.fused import Fused
from spectral_diffusion.ledger import check_name, free_run


def open_concepts(names: Sequence[str], library: Path | str) -> list[Concept]:
    """The named concepts: each a name in `library`, or a path to a concept file.

    Raises InputError for an unknown one, listing those the library has.
    """
    return [Concept.load(_file_of(name, Path(library))) for name in names]


def _file_of(name: str, library: Path) -> Path:
    if "/" in name or "." in name:
        return Path(name)
    file = library / f"{check_name(name)}.safetensors"
    if not file.exists():
        known = ", ".join(sorted(f.stem for f in library.glob("*.safetensors"))) or "nothing"
        raise InputError(f"The library {library} has no concept {name}; it has {known}.")
    return file


def fuse(
    concepts: Sequence[Concept], strengths: Mapping[str, float] | None = None, method: str = "spectral"
) -> Fused:
    """Fuses concepts of one base in disjoint slices.

    Raises InputError (nothing to fuse, a name twice, an unknown method or strength), BaseMismatch or SliceTaken.
    """
    strengths = dict(strengths or {})
    if method not in METHODS:
        raise InputError(f"There is no method {method!r}; there are {', '.join(METHODS)}.")
    check_together(concepts)
    if unknown := sorted(set(strengths) - {concept.name for concept in concepts}):
        raise InputError(f"A strength is given for {', '.join(unknown)}, which is not among the concepts.")
    return METHODS[method](concepts, strengths)


def check_together(concepts: Sequence[Concept]) -> None:
    """Raises unless the concepts share one base, have different names and own disjoint slices."""
    if not concepts:
        raise InputError("There is nothing to fuse: name at least one concept.")
    twice = [name for name, count in Counter(c.name for c in concepts).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice: name every concept once.")
    for one, two in combinations(concepts, 2):
        if one.base_fingerprint != two.base_fingerprint:
            raise BaseMismatch(
                f"{one.name} was trained on {one.base_name} ({one.base_fingerprint[:12]}) and {two.name} on "
                f"{two.base_name} ({two.base_fingerprint[:12]}): only concepts of one base can be fused."
            )
        if one.slice.overlaps(two.slice):
            raise SliceTaken(
                f"{one.name} (columns {one.slice}) and {two.name} (columns {two.slice}) overlap: "
                f"train {two.name} again {_way_out(concepts, two)}."
            )


def _way_out(concepts: Sequence[Concept], moved: Concept) -> str:
    """Where `moved` could go: columns that exist in every layer and that none of the other concepts has."""
    width = min(min(len(layer["U"]), len(layer["V"])) for layer in moved.layers.values())
    others = [concept.slice for concept in concepts if concept is not moved]
    if run := free_run(others, moved.slice.rank, width):
        return f"with --start {run.start}, which leaves columns {run} to it"
    return f"with a lower rank than {moved.slice.rank}, for no such run of columns is free"
