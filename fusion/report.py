"""The report of a fused file: one HTML page to look at and one JSON with every figure on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fusion import interference
from fusion.fuse import since_made
from fusion.measure import PLACES
from fusion.page import page
from fusion.photos import read_photos
from fusion.retention import (
    Drawn,
    Figures,
    Setting,
    Tell,
    draw_all,
    figures,
    pairs_left_out,
    reference_vectors,
)
from fusion.sheets import sheet
from fusion.verdict import judge
from spectral_diffusion.base import Base
from spectral_diffusion.blocks import blocks_of
from spectral_diffusion.errors import InputError
from spectral_diffusion.files import atomic_write
from spectral_diffusion.fused import Fused
from spectral_diffusion.judges import Judges, bundled_for


@dataclass(frozen=True)
class Wish:
    """What to draw and measure against; `alone`: the concepts as trained, where they are still at hand."""

    photos: Mapping[str, Path]
    seeds: tuple[int, ...] = (11, 12)
    steps: int = 20
    alone: Mapping[str, Fused] = field(default_factory=dict)
    places: tuple[str, ...] = PLACES

    def __post_init__(self) -> None:
        if not self.seeds or not self.places:
            raise InputError("A report needs at least one seed and one place.")


def write_report(
    fused: Fused,
    path: Path | str,
    base: Base | None,
    wish: Wish,
    tell: Tell = lambda line: None,
    encoders: Judges | None = None,
) -> tuple[Path, Path]:
    """Writes the page to `path` and the JSON beside it; returns both paths.

    `base` None: nothing is drawn. Without encoders (the bundled base has its own), or without photos, pictures are
    shown but not measured, and the page says why.
    Raises InputError for photos of a stranger or a wrong place, BaseMismatch for another base.
    """
    path = _checked_path(Path(path))
    if strangers := sorted(set(wish.photos) - set(fused.names)):
        raise InputError(
            f"Photos are given for {', '.join(strangers)}, which is not in this fused file; "
            f"it has {', '.join(fused.names)}."
        )
    # who is switched off is not drawn, and nobody can look like them
    photos = {name: read_photos(folder) for name, folder in wish.photos.items() if fused.member(name).on}
    if base is not None:
        fused.check_base(base)
    encoders, missing = _means(fused, base, wish, encoders)
    drawn = None
    if base is not None:
        vectors = reference_vectors(encoders, photos) if encoders else {}
        setting = Setting(wish.seeds, wish.steps, wish.places)
        drawn = draw_all(base, fused, wish.alone, vectors, encoders, setting, tell)
    found = figures(drawn, fused.classes) if drawn and encoders else None
    data = report_data(fused, base, found, missing, wish)
    data["measured_by"] = encoders.names if found else None
    data["pairs_left_out"] = pairs_left_out(drawn) if drawn else ""
    with atomic_write(path) as file:
        file.write(page(data, fused.members, _pictures(drawn) if drawn else {}).encode())
    with atomic_write(path.with_suffix(".json")) as file:
        file.write(json.dumps(data, indent=1).encode())
    return path, path.with_suffix(".json")


def _checked_path(path: Path) -> Path:
    if path.suffix not in (".html", ".htm"):
        raise InputError(f"{path} must end in .html, which is what a report is.")
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file.")
    beside = path.with_suffix(".json")
    if beside.exists() and not _is_report(beside):
        raise InputError(
            f"{beside} exists and is no report, and is not overwritten: give the page another name."
        )
    return path


def _is_report(file: Path) -> bool:
    """Whether a file is the JSON of a report, as `report_data` makes it."""
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"base_fingerprint", "members", "interference"} <= data.keys()


def _means(fused: Fused, base: Base | None, wish: Wish, encoders: Judges | None) -> tuple[Judges | None, str]:
    """The encoders to measure with, or None and why."""
    if base is None:
        return None, "Nothing was drawn: the report was asked for from the weights only."
    if without := [m.name for m in fused.members if m.on and m.name not in wish.photos]:
        return None, (
            f"Nothing was measured: there are no photos of {', '.join(without)} to compare with; "
            "give them with --photos name=folder."
        )
    encoders = encoders or bundled_for(base)
    if encoders is None:
        return None, (
            f"Nothing was measured: {base.name} has no encoders for identity and text, only the bundled base toybox "
            "brings its own; give a CLIP model with --judge. The pictures and the figures from the weights are below."
        )
    return encoders, ""


def report_data(
    fused: Fused, base: Base | None, found: Figures | None, missing: str, wish: Wish
) -> dict[str, Any]:
    """Everything on the page but the pictures, JSON-able."""
    widths = [min(len(p), len(q)) for layers in fused.factors.values() for p, q in layers.values()]
    return {
        "base": fused.base_name,
        "base_fingerprint": fused.base_fingerprint,
        "method": fused.made.get("method", "none"),
        "since": since_made(fused),
        "options": dict(fused.made.get("options", {})),
        "norm_cap": fused.norm_cap,
        "members": [member.facts() for member in fused.members],
        "width": base.width if base else min(widths, default=0),
        "energy": interference.energies(fused),
        "interference": _interference(fused),
        "missing": missing,
        "seeds": list(wish.seeds),
        "steps": wish.steps,
        **(_measured(fused, found, wish) if found else {}),
    }


def _measured(fused: Fused, found: Figures, wish: Wish) -> dict[str, Any]:
    method = fused.made.get("method", "")
    concepts = {
        name: {**asdict(concept), "verdict": asdict(judge(name, found, method))}
        for name, concept in found.concepts.items()
    }
    return {
        "pictures_per_cell": len(wish.places) * len(wish.seeds),
        "alone_is": {n: "as trained" if n in wish.alone else "as in this file" for n in found.concepts},
        "concepts": concepts,
        "confusion": found.confusion,
        "confusion_alone": found.confusion_alone,
        "chance": found.chance,
        "drift": {word: asdict(value) for word, value in found.drift.items()},
        "together": {f"{one} and {two}": asdict(value) for (one, two), value in found.together.items()},
    }


def _interference(fused: Fused) -> dict[str, Any]:
    """Pair, as `rex and mia`, -> means by block, and every layer."""
    result = {}
    for (one, two), layers in interference.pairs(fused).items():
        blocks: dict[str, dict[str, interference.Overlap]] = {}
        for layer, overlap in layers.items():
            groups = [group for group in blocks_of(layer) if group not in ("up", "down")] or ["elsewhere"]
            blocks.setdefault("text" if "text" in groups else groups[0], {})[layer] = overlap
        result[f"{one} and {two}"] = {
            "all": asdict(interference.summary(layers)),
            "blocks": {
                block: asdict(interference.summary(inside)) for block, inside in sorted(blocks.items())
            },
            "layers": {layer: asdict(overlap) for layer, overlap in layers.items()},
        }
    return result


def _pictures(drawn: Drawn) -> dict[str, tuple[Image.Image, str]]:
    """Contact sheets: each concept alone and fused, prompts without a concept, pairs."""
    found = {}
    for name in drawn.fused:
        rows = {"alone": drawn.alone[name].images, "fused": drawn.fused[name].images}
        found[f"<{name}>"] = sheet(rows), f"Pictures of {name}: alone above, fused below, same seeds"
    for word, shown in drawn.plain.items():
        rows = {"the base": shown.images, "with the fusion": drawn.beside[word].images}
        found[f"a {word}, no concept"] = (
            sheet(rows),
            f"Pictures of a {word}: the base above, the fusion below",
        )
    if drawn.pairs:
        rows = {f"<{one}> and <{two}>": shown.images for (one, two), shown in drawn.pairs.items()}
        found["Together"] = sheet(rows), "Two concepts in one picture, a row per pair"
    return found
