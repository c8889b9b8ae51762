"""All methods on the same concepts, each at its own best strength, with equal trials: table, plot and sheet.

Every method gets the same grid of strengths (one for all its concepts) on held-in seeds; its best is drawn again
on held-out seeds, which is what is reported. A method that cannot take these concepts is left out by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fusion.cells import Cell, Cells, Key
from fusion.fuse import as_part, check_together, fuse
from fusion.measure import PLACES, show
from fusion.methods import METHODS, method_of
from fusion.photos import digest, read_photos
from fusion.retention import Tell, reference_vectors
from fusion.sheets import sheet
from fusion.standings import HALVES, Standing, as_csv, best_strength, plot, standing
from spectral_diffusion.activations import Recording
from spectral_diffusion.base import Base
from spectral_diffusion.concept import Concept
from spectral_diffusion.errors import InputError
from spectral_diffusion.files import atomic_write
from spectral_diffusion.fused import Fused
from spectral_diffusion.judges import Judges, bundled_for

_KEPT = 2  # pictures of a cell that are kept for the sheet


@dataclass(frozen=True)
class Plan:
    """What is compared and how it is drawn."""

    methods: tuple[str, ...] = tuple(METHODS)
    strengths: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25)
    choose: tuple[int, ...] = (101, 102)  # held-in seeds
    report: tuple[int, ...] = (201, 202)  # held-out seeds
    steps: int = 20
    places: tuple[str, ...] = PLACES

    def __post_init__(self) -> None:
        for method in self.methods:
            method_of(method)
        if not self.methods or not self.strengths or not self.choose or not self.report:
            raise InputError("A comparison needs a method, a strength and a seed for each half.")
        if set(self.choose) & set(self.report):
            raise InputError("The seeds that choose and those that are reported must differ.")
        for strength in self.strengths:
            if not 0 < strength < float("inf"):
                raise InputError(f"A strength of the grid must be a number above 0, not {strength}.")

    @classmethod
    def of(cls, methods: Sequence[str] | None, strengths: str, seeds: int, steps: int) -> Plan:
        """From a command line: `"0.5,1"` and a number of seeds for each half."""
        try:
            grid = tuple(dict.fromkeys(float(number) for number in strengths.split(",")))
        except ValueError as error:
            raise InputError(f"--strengths {strengths!r} is no list of numbers, such as 0.5,1.") from error
        halves = (tuple(range(first, first + seeds)) for first in (101, 20001))
        return cls(tuple(methods or METHODS), grid, *halves, steps)

    def seeds(self, half: str) -> tuple[int, ...]:
        return {"choose": self.choose, "report": self.report}[half]


def compare_methods(
    base: Base,
    concepts: Sequence[Concept | Fused],
    photos: Mapping[str, Path],
    plan: Plan,
    folder: Path | str,
    tell: Tell = lambda line: None,
    encoders: Judges | None = None,
    recording: Recording | None = None,
) -> list[Path]:
    """Runs, or goes on with, the comparison in `folder`; returns the CSV, JSON, plot and sheet it wrote.

    What is drawn already is not drawn again, and no method is taught again for it.
    Raises InputError for concepts without photos, a base without encoders, or a folder of another comparison.
    """
    check_together(concepts)
    parts = [as_part(concept) for concept in concepts]
    encoders = encoders or bundled_for(base)
    settled = about(base, parts, photos, plan, recording, encoders)
    run = _Run(base, parts, photos, plan, Path(folder), tell, encoders, settled)
    fusions, left_out = _fusions(run, recording)
    for half in HALVES:
        run.baselines(half)
    standings = []
    for method, fused in fusions.items():
        run.method(method, fused)
        whose = METHODS[method].whose
        standings.append(standing(run.cells, method, whose, plan.strengths, run.classes))
        tell(_said(standings[-1]))
    standings.sort(key=lambda one: -one.retention.value)
    return run.write(standings, left_out)


def about(
    base: Base,
    concepts: Sequence[Concept | Fused],
    photos: Mapping[str, Path],
    plan: Plan,
    recording: Recording | None = None,
    encoders: Judges | None = None,
) -> dict[str, Any]:
    """All that the figures depend on, JSON-able: a comparison goes on only with the same. Methods may join later.

    Raises InputError for concepts without photos.
    """
    members = [as_part(concept).members[0] for concept in concepts]
    if without := sorted({member.name for member in members} - set(photos)):
        raise InputError(f"There are no photos of {', '.join(without)}: give --photos name=folder.")
    others = {} if encoders is None or encoders.bundled else {"measured_by": encoders.names}
    return {
        **others,
        "base": base.known_by,
        "concepts": {member.name: member.sha256 for member in members},
        "photos": {member.name: digest(photos[member.name]) for member in members},
        "plan": {key: value for key, value in asdict(plan).items() if key != "methods"},
        "recording": recording and recording.facts(),
        "methods": {name: [dict(m.options), dict(m.recording), m.norm_cap] for name, m in METHODS.items()},
    }


def _said(one: Standing) -> str:
    edge = f", the {one.edge} of the grid: a wider grid may do better" if one.edge else ""
    return (
        f"{one.method}: retention {one.retention}, least {one.worst} {one.worst_retention:.2f}, "
        f"at strength {one.strength:g}{edge}"
    )


def _fusions(run: _Run, recording: Recording | None) -> tuple[dict[str, Fused | None], dict[str, str]]:
    """method -> fused file at strength 1, None where all of it is drawn; and why others cannot take these concepts."""
    fusions: dict[str, Fused | None] = {}
    left_out, tell = {}, run.tell
    for method in run.plan.methods:
        if not run.lacks(method):
            fusions[method] = None
            continue
        if METHODS[method].needs_base:
            tell(f"looking at what the base and the concepts do, for {method}")
        try:
            fusions[method] = fuse(
                list(run.parts.values()), method=method, base=run.base, recording=recording
            )
        except InputError as error:
            left_out[method] = str(error)
            tell(f"{method} is left out: {error}")
    if not fusions:
        raise InputError("None of the methods can take these concepts.")
    return fusions, left_out


class _Run:
    """One comparison's base, photos and records."""

    def __init__(
        self,
        base: Base,
        parts: Sequence[Fused],
        photos: Mapping[str, Path],
        plan: Plan,
        folder: Path,
        tell: Tell,
        encoders: Judges | None,
        settled: Mapping[str, Any],
    ) -> None:
        self.base, self.plan, self.folder, self.tell = base, plan, folder, tell
        self.parts = {part.names[0]: part for part in parts}
        self.classes = {name: part.classes[name] for name, part in self.parts.items()}
        if encoders is None:
            raise InputError(
                f"{base.name} has no encoders to compare by, only the bundled base has: give a CLIP model with --judge."
            )
        self.encoders = encoders
        read = {name: read_photos(photos[name]) for name in self.parts}
        self.references = reference_vectors(self.encoders, read)
        self.cells = Cells(folder / "cells.jsonl", settled)

    def baselines(self, half: str) -> None:
        """Every concept alone, and the bare base on every class."""
        for name, part in self.parts.items():
            self._cell(Key("alone", 1.0, half, name), f"<{name}>", lambda part=part: part)
        for word in sorted(set(self.classes.values())):
            self._cell(Key("base", 0.0, half, word), f"a {word}", lambda: None)

    def lacks(self, method: str) -> bool:
        """Whether something of a method is still to be drawn."""
        for strength in self.plan.strengths:
            if not all(self.cells.get(Key(method, strength, "choose", name)) for name in self.parts):
                return True
        best, _ = best_strength(self.cells, method, self.plan.strengths, self.classes)
        return not all(self.cells.get(Key(method, best, "report", name)) for name in self.parts)

    def method(self, method: str, fused: Fused | None) -> None:
        """The whole grid on the held-in seeds, then the best of it on the held-out ones; None: it is all there."""
        for strength in self.plan.strengths:
            self._fused(method, fused, strength, "choose")
        # the choice looks at the held-in half only; the other half is read for the best strength alone
        best, _ = best_strength(self.cells, method, self.plan.strengths, self.classes)
        self._fused(method, fused, best, "report")

    def _fused(self, method: str, fused: Fused | None, strength: float, half: str) -> None:
        def at() -> Fused:
            assert fused is not None, "only where nothing is left to be drawn"
            return fused.with_strengths({m.name: m.strength * strength for m in fused.members})

        for name in self.parts:
            self._cell(Key(method, strength, half, name), f"<{name}>", at)

    def _cell(self, key: Key, subject: str, source: Callable[[], Fused | None]) -> None:
        if self.cells.get(key):
            return
        self.tell(f"{key.source} at {key.strength:g}, {subject}, {key.half}")
        plan = self.plan
        shown = show(
            self.base,
            source(),
            subject,
            self.references,
            self.classes,
            plan.seeds(key.half),
            plan.steps,
            self.encoders,
            plan.places,
        )
        identity = {name: values.tolist() for name, values in shown.identity.items()}
        self.cells.put(key, Cell(identity, shown.alignment.tolist(), self._keep(key, shown.images)))

    def _keep(self, key: Key, images: Sequence[Image.Image]) -> list[str]:
        """Writes a few pictures of different places for the sheet; only the reported half is shown."""
        if key.half != "report":
            return []
        every = max(1, len(images) // _KEPT)
        names = []
        for i, image in enumerate(images[::every][:_KEPT]):
            names.append(f"pictures/{key.source}-{key.strength:g}-{key.subject}-{i}.png".replace(" ", "_"))
            with atomic_write(self.folder / names[-1]) as file:
                image.save(file, "PNG")
        return names

    def write(self, standings: Sequence[Standing], left_out: Mapping[str, str]) -> list[Path]:
        """compare.csv, .json, .svg and .jpg."""
        data: dict[str, Any] = {
            "standings": [asdict(one) for one in standings],
            "left_out": dict(left_out),
            "plan": asdict(self.plan),
            "base": self.base.name,
            "measured_by": self.encoders.names,
            "concepts": self.classes,
        }
        texts = {
            "csv": as_csv(standings),
            "json": json.dumps(data, indent=1),
            "svg": plot(standings),
        }
        files = [self.folder / f"compare.{suffix}" for suffix in (*texts, "jpg")]
        for file, text in zip(files, texts.values(), strict=False):
            with atomic_write(file) as out:
                out.write(text.encode())
        with atomic_write(files[-1]) as out:
            self._sheet(standings).save(out, "JPEG", quality=90)
        return files

    def _sheet(self, standings: Sequence[Standing]) -> Image.Image:
        rows = {
            "alone": ("alone", 1.0),
            **{f"{s.method} at {s.strength:g}": (s.method, s.strength) for s in standings},
        }
        shown = {}
        for label, (source, strength) in rows.items():
            cells = [self.cells[Key(source, strength, "report", name)] for name in self.parts]
            shown[label] = [Image.open(self.folder / file) for cell in cells for file in cell.pictures]
        return sheet(shown, most=_KEPT * len(self.parts))
