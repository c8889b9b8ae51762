"""Checks that concepts can live together, then fuses them by a named method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from fusion.methods import METHODS, Progress, check_options, method_of
from fusion.recorded import Recorded, gather
from spectral_diffusion.activations import Recording
from spectral_diffusion.base import Base
from spectral_diffusion.blocks import blocks_of
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import BaseMismatch, InputError, SliceTaken
from spectral_diffusion.fused import Fused
from spectral_diffusion.fused_file import check_sizes
from spectral_diffusion.members import overlapping
from spectral_diffusion.norms import DEFAULT_CAP
from spectral_diffusion.portable import check_one_prediction
from spectral_diffusion.slices import check_name, free_run

_MANY = 8  # concepts at which the filters were measured to keep more than the sum (docs/fusion.md)


def open_concepts(names: Sequence[str], library: Path | str | Sequence[Path | str]) -> list[Concept]:
    """The named concepts: each a name in `library` (one folder or several), or a path to a concept file.

    Raises InputError for an unknown one, listing those the library has, and for one in two libraries.
    """
    folders = [library] if isinstance(library, (str, Path)) else library
    return [Concept.load(_file_of(name, [Path(folder) for folder in folders])) for name in names]


def is_path(name: str) -> bool:
    """Whether it is no name but a file's path."""
    return "/" in name or "." in name


def _file_of(name: str, libraries: Sequence[Path]) -> Path:
    if is_path(name):
        return Path(name)
    stem = f"{check_name(name)}.safetensors"
    files = [folder / stem for folder in libraries if (folder / stem).exists()]
    if len(files) > 1:
        raise InputError(f"{name} is in two libraries: give the file you mean, {files[0]} or {files[1]}.")
    if not files:
        where = " and ".join(str(folder) for folder in libraries)
        known = ", ".join(sorted({f.stem for folder in libraries for f in folder.glob("*.safetensors")}))
        raise InputError(f"The library {where} has no concept {name}; it has {known or 'nothing'}.")
    return files[0]


def fuse(
    concepts: Sequence[Concept | Fused],
    strengths: Mapping[str, float] | None = None,
    method: str = "spectral",
    *,
    options: Mapping[str, Any] | None = None,
    norm_control: bool | float | None = None,
    base: Base | None = None,
    recording: Recording | None = None,
    recorded: Recorded | None = None,
    progress: Progress | None = None,
    regardless: bool = False,
) -> Fused:
    """Fuses concepts (or fused files of one, such as LoRAs) of one base in disjoint slices.

    `options` of the method: see `methods.METHODS`. `norm_control`: a cap (see `spectral_diffusion.norms`), True for
    the default one, False for none, None for what the method has. `base`: for methods that record inputs on it (in the
    way of `recording`, None for the method's own), or are taught on it; `recorded`: inputs that are there already.
    `progress(what, done, total)` is called while that lasts. One concept alone is left as it is, whatever the method.
    `regardless`, for experiments: concepts in the same slice, or in scattered columns, are fused as well; what comes
    out is there to be measured, nothing else is promised.
    Raises InputError (nothing to fuse, a name twice, an unknown method, option or strength, inputs that are not
    recorded), BaseMismatch or SliceTaken.
    """
    strengths, options = dict(strengths or {}), check_options(method, options or {})
    if regardless:
        parts = [concept if isinstance(concept, Fused) else Fused.of(concept) for concept in concepts]
    else:
        parts = [as_part(concept) for concept in concepts]
    check_together(parts, overlap=regardless)
    if len(parts) == 1:  # there is nobody to keep it apart from
        method, options = "spectral", {}
    chosen = method_of(method)
    if unknown := sorted(set(strengths) - {part.names[0] for part in parts}):
        raise InputError(f"A strength is given for {', '.join(unknown)}, which is not among the concepts.")
    if base is None and (chosen.refine or (chosen.needs_inputs and recorded is None)):
        raise InputError(f"The method {method} works on the base itself: give the base.")
    cap = cap_of(norm_control, chosen.norm_cap)
    parts[0].with_norm_cap(cap)  # a wrong cap is told before anything is computed
    parts = [
        part.with_strengths({name: strengths[name] for name in part.names if name in strengths})
        for part in parts
    ]
    if chosen.needs_inputs and recorded is None:
        recorded = _recorded(base, parts, recording or Recording.of(chosen.recording), progress)
    fused = chosen.run(parts, options, recorded)
    made: dict[str, Any] = {"method": method, "options": options}
    if regardless and overlapping(part.members[0] for part in parts):
        made["regardless"] = True
    if chosen.needs_inputs:
        made["recording"] = recorded.how.facts()
    if chosen.refine:
        fused, made["measured"] = chosen.refine(base, parts, fused, options, progress)
    return replace(fused, made=made).with_norm_cap(cap)


def _recorded(
    base: Base, parts: Sequence[Fused], recording: Recording, progress: Progress | None
) -> Recorded:
    tell = partial(progress, "recording what the layers read") if progress else None
    return gather(base, parts, recording, progress=tell)


def as_part(concept: Concept | Fused) -> Fused:
    """The fused file of one. Raises InputError for one of several, or a concept in scattered columns."""
    if isinstance(concept, Concept) and concept.card.get("settings", {}).get("scatter") is not None:
        raise InputError(
            f"{concept.name} was trained for an experiment, in columns from all over the spectrum: train it again "
            "without scatter."
        )
    part = concept if isinstance(concept, Fused) else Fused.of(concept)
    if len(part.members) != 1:
        raise InputError(
            f"{', '.join(part.names)} are fused already: add to that file, or give the concepts."
        )
    return part


def cap_of(wish: bool | float | None, default: float | None) -> float | None:
    """The cap of norm control that a wish amounts to: None for none."""
    if wish is None:
        return default
    if isinstance(wish, bool):
        return DEFAULT_CAP if wish else None
    return wish


def check_together(concepts: Sequence[Concept | Fused], overlap: bool = False) -> None:
    """Raises unless the concepts share one base, have different names and own disjoint slices (or may `overlap`)."""
    if not concepts:
        raise InputError("There is nothing to fuse: name at least one concept.")
    parts = [concept if overlap and isinstance(concept, Fused) else as_part(concept) for concept in concepts]
    twice = [name for name, count in Counter(part.names[0] for part in parts).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice: name every concept once.")
    for one, two in combinations(parts, 2):
        if one.base_fingerprint != two.base_fingerprint:
            raise BaseMismatch(
                f"{one.names[0]} was trained on {one.base_name} ({one.base_fingerprint[:12]}) and {two.names[0]} on "
                f"{two.base_name} ({two.base_fingerprint[:12]}): only concepts of one base can be fused."
            )
        check_one_prediction(one, two)
        mine, theirs = one.members[0].slice, two.members[0].slice
        if not overlap and mine and theirs and mine.overlaps(theirs):
            raise SliceTaken(
                f"{one.names[0]} (columns {mine}) and {two.names[0]} (columns {theirs}) overlap: "
                f"train {two.names[0]} again {_way_out(parts, two)}."
            )
        check_sizes(one.factors, two.factors)


def _way_out(parts: Sequence[Fused], moved: Fused) -> str:
    """Where `moved` could go: columns that exist in every layer and that none of the other concepts has."""
    width = min(min(len(p), len(q)) for p, q in moved.factors[moved.names[0]].values())
    others = [part.members[0].slice for part in parts if part is not moved]
    rank = moved.members[0].rank
    if run := free_run([taken for taken in others if taken], rank, width):
        return f"with --start {run.start}, which leaves columns {run} to it"
    return f"with a lower rank than {rank}, for no such run of columns is free"


def touched(fused: Fused, name: str) -> dict[str, bool]:
    """Layer -> whether the member changes it: left alone is what it does not act on, or was trained to nothing."""
    member, factors = fused.member(name), sorted(fused.factors[name].items())
    # a column of P acts only through the same column of Q: an untrained slice has [0 | U] and [V S | 0]
    return {layer: bool(member.at(layer) and (p.any(0) & q.any(0)).any()) for layer, (p, q) in factors}


def changed(fused: Fused) -> list[str]:
    """Every layer that some member changes as it is now, sorted."""
    return sorted({layer for name in fused.names for layer, yes in touched(fused, name).items() if yes})


def summary(fused: Fused, verbose: bool = False, base: Base | None = None) -> list[str]:
    """What every member changes and leaves alone, a line each; with `verbose` a line per layer below it.

    With its `base` at hand also what no member has. Further lines say what the members are no longer, what teaching
    them brought, and where another method is known to keep more.
    """
    lines = [line for name in fused.names for line in _told(name, touched(fused, name), verbose)]
    if base is not None:
        rest = sorted(base.adaptable.keys() - set(fused.layers()))
        lines.append(f"No member has {len(rest)} layers of {base.name}, left alone: {_by_block(rest)}")
        lines += [f"  alone  {layer}" for layer in rest if verbose]
    if since := since_made(fused):
        method = fused.made["method"]
        lines.append(f"No longer what {method} makes of them: {since}. Fuse the concepts anew for that.")
    elif measured := fused.made.get("measured"):
        before, after = measured["error_before"], measured["error_after"]
        lines.append(f"Taught: the error beside each concept alone went from {before:.2g} to {after:.2g}.")
    if len(fused.names) >= _MANY and fused.made.get("method") == "spectral":
        lines.append(
            f"Of {_MANY} concepts or more `filtered`, and in minutes `distilled`, keep more than the sum "
            "(docs/fusion.md)."
        )
    return lines


def since_made(fused: Fused) -> str:
    """Who came and went after a method had fitted the members to each other; empty where that makes no difference."""
    method = METHODS.get(fused.made.get("method", ""))
    if method is None or method.apart:
        return ""
    said = {"added": "was added as trained", "removed": "was removed", "replaced": "was put back as trained"}
    return ", ".join(f"{name} {said[what]}" for name, what in fused.made.get("since", {}).items())


def _told(name: str, layers: Mapping[str, bool], verbose: bool) -> list[str]:
    """Counts by block, and with `verbose` every layer; `layers`: whether it is changed."""
    changed = [layer for layer, yes in layers.items() if yes]
    alone = [layer for layer, yes in layers.items() if not yes]
    line = f"<{name}> changes {len(changed)} layers: {_by_block(changed)}"
    line += f"; leaves {len(alone)} alone: {_by_block(alone)}" if alone else ""
    every = [f"  {'changed' if yes else 'alone'}  {layer}" for layer, yes in sorted(layers.items())]
    return [line, *(every if verbose else [])]


def _by_block(layers: Sequence[str]) -> str:
    counts = Counter((blocks_of(layer) or ("elsewhere",))[0] for layer in layers)
    return ", ".join(f"{block} {count}" for block, count in sorted(counts.items())) or "none"
