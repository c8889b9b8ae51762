"""A recipe run to a fused file, and the recipe of a fused file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from fusion.fuse import as_part, fuse, is_path, open_concepts, since_made
from fusion.methods import Progress, check_options, method_of
from fusion.recipe import Ingredient, Recipe
from spectral_diffusion.activations import Recording
from spectral_diffusion.base import Base
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError, SpectralError
from spectral_diffusion.fused import Fused
from spectral_diffusion.lora_member import lora_member


def run(
    recipe: Recipe,
    libraries: Sequence[Path | str],
    base: Callable[[], Base] | None = None,
    progress: Progress | None = None,
) -> Fused:
    """Fuses what the recipe says. `base` is called, once, only for LoRAs and for methods that work on it.

    `progress`: see `fuse`. Raises what `open_concepts` and `fuse` raise, and InputError for a concept that is not the
    one the recipe was made with.
    """
    check_options(recipe.method, recipe.options)  # before anything is opened, as the next line
    method = method_of(recipe.method)
    how = Recording.of({**method.recording, **recipe.recording})
    base = base and cache(base)
    parts = [_part(one, recipe.libraries or libraries, base) for one in recipe.concepts]
    fused = fuse(
        parts,
        method=recipe.method,
        options=recipe.options,
        norm_control=recipe.norm_control,
        base=base() if base is not None and method.needs_base and len(parts) > 1 else None,
        recording=how,
        progress=progress,
    )
    return replace(fused, made={**fused.made, **_sources(recipe)})


def _sources(recipe: Recipe) -> dict[str, Any]:
    """Where its concepts come from, as far as it says so, for `Fused.made`: paths that hold from any folder."""
    told = {
        "files": {one.name: _whole(one.file) for one in recipe.concepts if one.file},
        "loras": {
            one.name: {"lora": _whole(one.lora), "class_word": one.class_word, "trigger": one.trigger}
            for one in recipe.concepts
            if one.lora
        },
        "libraries": [_whole(folder) for folder in recipe.libraries],
    }
    return {what: sources for what, sources in told.items() if sources}


def with_source(fused: Fused, name: str, given: str) -> Fused:
    """The fused file with where a concept that was added comes from: a file, or as a name from a library."""
    if not fused.made:
        return fused
    made = {key: value for key, value in fused.made.items() if key not in ("files", "loras")}
    sources = {key: dict(fused.made.get(key, {})) for key in ("files", "loras")}
    for known in sources.values():
        known.pop(name, None)
    if is_path(given):
        sources["files"][name] = _whole(given)
    return replace(fused, made=made | {key: known for key, known in sources.items() if known})


def _whole(path: str) -> str:
    return str(Path(path).absolute())


def _part(one: Ingredient, libraries: Sequence[Path | str], base: Callable[[], Base] | None) -> Fused:
    if one.lora:
        if base is None:
            raise InputError(f"{one.name} is a LoRA, which can only be read beside its base: give the base.")
        part = lora_member(base(), one.lora, one.name, one.class_word, one.trigger)
    else:
        files = [Path(folder) for folder in libraries]
        (concept,) = [Concept.load(one.file)] if one.file else open_concepts([one.name], files)
        if concept.name != one.name:
            raise InputError(f"{one.file or one.name} holds the concept {concept.name}, not {one.name}.")
        part = as_part(concept)
    part = part.with_strengths({one.name: one.strength}).with_blocks(one.name, one.blocks)
    part = part.switched(one.name, one.on)
    if one.sha256 and part.members[0].sha256 != one.sha256:
        raise InputError(
            f"{one.name} is not the concept the recipe was made with: it was trained again since."
        )
    return part


def recipe_of(fused: Fused) -> Recipe:
    """The recipe that gives this fused file, from the same concepts. Raises InputError if none does any more."""
    made = fused.made
    if since := since_made(fused):
        raise InputError(
            f"No recipe gives this file, for {since} after {made['method']} had made it: fuse the concepts anew."
        )
    return Recipe(
        concepts=tuple(
            Ingredient(
                m.name,
                m.strength,
                dict(m.blocks),
                m.on,
                file=made.get("files", {}).get(m.name),
                sha256=m.sha256,
                **made.get("loras", {}).get(m.name, {}),
            )
            for m in fused.members
        ),
        method=made.get("method", "sum"),
        options=dict(made.get("options", {})),
        norm_control=False if fused.norm_cap is None else fused.norm_cap,
        libraries=tuple(made.get("libraries", ())),
        recording=dict(made.get("recording", {})),
    )


def originals(fused: Fused, libraries: Sequence[Path | str]) -> dict[str, Fused]:
    """The members as they were trained, at full strength, of those that the libraries still have unchanged."""
    found = {}
    for member in fused.members:
        for folder in libraries:
            try:
                alone = Fused.of(Concept.load(Path(folder) / f"{member.name}.safetensors"))
            except SpectralError:
                continue  # not there, or not to be trusted: the member itself has to do
            if alone.members[0].sha256 == member.sha256:
                found[member.name] = alone
    return found


def named(
    names: Sequence[str], strengths: dict[str, float], method: str, options: dict[str, float]
) -> Recipe:
    """The recipe of a command line: names in the library, or concept files."""
    concepts = []
    for name in names:
        if is_path(name):
            concepts.append(Ingredient(Concept.load(name).name, file=name))
        else:
            concepts.append(Ingredient(name))
    if not concepts:
        raise InputError("There is nothing to fuse: name at least one concept.")
    if unknown := sorted(set(strengths) - {one.name for one in concepts}):
        raise InputError(f"A strength is given for {', '.join(unknown)}, which is not among the concepts.")
    given = tuple(replace(one, strength=strengths.get(one.name, 1.0)) for one in concepts)
    return Recipe(given, method, options)
