"""What a command line says about strengths, blocks, options and changes of a fused file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fusion.fuse import as_part, open_concepts
from fusion.recipe import Recipe
from fusion.run import with_source
from spectral_diffusion.errors import InputError
from spectral_diffusion.fused import Fused, parse_strengths, refuse_twice
from spectral_diffusion.slices import check_name

Blocks = dict[str, dict[str, float]]  # concept -> block -> factor


def blocks_and_strengths(pairs: Sequence[str]) -> tuple[dict[str, float], Blocks]:
    """`["rex=0.8", "rex.up.1=0.5"]` -> `{"rex": 0.8}`, `{"rex": {"up.1": 0.5}}`. Raises InputError."""
    refuse_twice("--strength", (pair.partition("=")[0] for pair in pairs))
    blocks: Blocks = {}
    plain = []
    for pair in pairs:
        name, dot, block = pair.partition("=")[0].partition(".")
        if not dot:
            plain.append(pair)
            continue
        try:
            blocks.setdefault(check_name(name), {})[block] = float(pair.partition("=")[2])
        except (InputError, ValueError) as error:
            raise InputError(
                f"--strength {pair!r} is not name.block=number, such as rex.up.1=0.5."
            ) from error
    return parse_strengths(plain), blocks


def with_blocks(recipe: Recipe, blocks: Blocks) -> Recipe:
    """The recipe with factors per block. Raises InputError for a concept it has not."""
    if unknown := sorted(set(blocks) - {one.name for one in recipe.concepts}):
        raise InputError(f"A strength is given for {', '.join(unknown)}, which is not among the concepts.")
    concepts = tuple(replace(one, blocks=blocks.get(one.name, one.blocks)) for one in recipe.concepts)
    return replace(recipe, concepts=concepts)


def parse_options(pairs: Sequence[str]) -> dict[str, float]:
    """`["neutral=2"]` -> `{"neutral": 2}`; whole numbers stay whole. Raises InputError for anything else."""
    refuse_twice("--option", (pair.partition("=")[0] for pair in pairs))
    options: dict[str, float] = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        try:
            options[name] = int(number) if number.strip().isdecimal() else float(number)
        except ValueError as error:
            raise InputError(f"--option {pair!r} is not name=number, such as neutral=2.") from error
    return options


def parse_norm_control(text: str | None) -> bool | float | None:
    """`on`, `off` or a cap such as `1.1`, as a recipe has it; None stays None. Raises InputError."""
    if text in (None, "on", "off"):
        return text and text == "on"
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"--norm-control {text!r} is neither on nor off nor a cap, such as 1.1.") from error


def parse_photos(pairs: Sequence[str]) -> dict[str, Path]:
    """`["rex=photos/rex"]` -> `{"rex": Path("photos/rex")}`. Raises InputError for anything else."""
    refuse_twice("--photos", (pair.partition("=")[0] for pair in pairs))
    found = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        if not (name and folder):
            raise InputError(f"--photos {pair!r} is not name=folder, such as rex=docs/samples/rex.")
        found[name] = Path(folder)
    return found


def adjusted(fused: Fused, changes: Mapping[str, Sequence[str]], libraries: Sequence[Path | str]) -> Fused:
    """The fused file after `remove`, `add`, `strength`, `on` and `off`, in this order; `changes` has all five.

    Raises InputError for a stranger or a contradiction, and what `as_part` and `Fused.with_member` raise.
    """
    if both := sorted(set(changes["on"]) & set(changes["off"])):
        raise InputError(f"{both[0]} is to be both on and off: say one of them.")
    for name in changes["remove"]:
        fused = fused.without(name)
    for given in changes["add"]:
        (concept,) = open_concepts([given], [Path(folder) for folder in libraries])
        fused = with_source(fused.with_member(as_part(concept)), concept.name, given)
    if not fused.members:
        raise InputError("Nothing would be left: a fused file has at least one concept.")
    plain, blocks = blocks_and_strengths(changes["strength"])
    fused = fused.with_strengths(plain)
    for name, factors in blocks.items():
        fused = fused.with_blocks(name, {**fused.member(name).blocks, **factors})
    for name, on in [*((n, True) for n in changes["on"]), *((n, False) for n in changes["off"])]:
        fused = fused.switched(name, on)
    return fused
