"""Many requests: planned, drawn by an engine, written one by one, and taken up again after any interruption.

Contract. A picture's id is a hash of all that decides it: the drawn prompts, seed and settings, the base's
fingerprint, the concepts' hashes, the start picture's content, the file format. Starting again draws what is
not done yet and nothing twice; changed or added rows are new pictures, removed ones are left alone. A row or
picture that fails is noted with its reason and skipped the next time, unless failed ones are asked for.
A full disk stops the batch with all written pictures whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from spectral_diffusion.base import Base
from spectral_diffusion.cast import check_shots, look, made_with
from spectral_diffusion.engines import Engine, Item, Task
from spectral_diffusion.engines.local import LocalEngine
from spectral_diffusion.errors import InputError, SpectralError
from spectral_diffusion.files import atomic_write
from spectral_diffusion.fused import Fused
from spectral_diffusion.jobs import Job, jobs_of
from spectral_diffusion.manifest import Manifest, opened
from spectral_diffusion.request import Request
from spectral_diffusion.sheets import contact_sheet, grid_sheet
from spectral_diffusion.tables import BadRow, read_rows

Progress = Callable[[int, int, int], None]  # done, failed, of how many

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CONTACTS = 400  # pictures on the contact sheet, at most


@dataclass(frozen=True)
class Planned:
    """A picture of a job."""

    item: Item
    job: Job


@dataclass(frozen=True)
class Summary:
    """What a run of a batch came to; `made` and `kept` were drawn now and before."""

    made: int
    kept: int
    failed: tuple[tuple[int, str], ...]  # row, reason
    sheets: tuple[Path, ...]


def batch(
    file: Path | str,
    folder: Path | str,
    base: Base,
    fused: Fused | None = None,
    *,
    engine: Engine | None = None,
    kind: str = "png",
    metadata: bool = True,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Draws every row of a job file (`jobs`) into `folder`; see the module for what starting again does.

    `engine`: who draws, this process if None. `kind`: png, jpeg or webp. `progress(done, failed, total)` is
    called after every picture.
    Raises InputError for a file that is no job file, a folder in use and a full disk; BaseMismatch.
    """
    if fused is not None:
        fused.check_base(base)
    planned, bad = plan(file, base, fused, kind)
    engine = engine or LocalEngine(base, fused, kind, metadata)
    try:
        with opened(folder) as manifest:
            manifest.plan(_entry(one, kind) for one in planned)
            kept = sum(one.item.id in manifest.done for one in planned)
            for row in bad:
                manifest.fail(row.row, row.reason)
            todo = [
                one.item
                for one in planned
                if one.item.id not in manifest.done and (retry_failed or one.item.id not in manifest.failed)
            ]
            _draw(manifest, engine, todo, planned, len(bad), progress)
            failed = [(row.row, row.reason) for row in bad]
            failed += [
                (one.job.row, manifest.failed[one.item.id])
                for one in planned
                if one.item.id in manifest.failed and one.item.id not in manifest.done
            ]
            made = sum(one.item.id in manifest.done for one in planned) - kept
            return Summary(made, kept, tuple(failed), tuple(draw_sheets(manifest, planned)))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise InputError(
            f"The disk is full while writing to {folder}: free some space and start the same batch again."
        ) from error


def plan(
    file: Path | str, base: Base, fused: Fused | None = None, kind: str = "png"
) -> tuple[list[Planned], list[BadRow]]:
    """Every picture of a job file, and the rows that are no job. Nothing is drawn or written."""
    classes = fused.classes if fused else {}
    planned: list[Planned] = []
    bad: list[BadRow] = []
    seen: Counter[str] = Counter()
    _hash_of.cache_clear()  # files may have changed since the last plan
    for number, table in read_rows(file):
        if isinstance(table, BadRow):
            bad.append(table)
            continue
        try:
            jobs = jobs_of(number, table, Path(file).parent, classes)
            found = [(job, shot) for job in jobs for shot in job.request.shots()]
            for job, shot in found:
                check_shots(job.request, [shot], tuple(classes))
            ids = [_id(job.request, shot, made_with(base, fused, job.request), kind) for job, shot in found]
        except (SpectralError, TypeError) as error:
            bad.append(BadRow(number, str(error)))
            continue
        for (job, shot), id in zip(found, ids, strict=True):
            seen[id] += 1  # the same picture in two rows is two pictures
            id = id if seen[id] == 1 else f"{id}-{seen[id]}"
            planned.append(Planned(Item(id, number, job.request, shot), job))
    return planned, bad


def tasks(items: Sequence[Item]) -> list[Task]:
    """Items in runs that can be drawn at once: equal looks beside each other, then equal settings."""

    def key(item: Item) -> tuple[str, str]:
        return json.dumps(look(item.request)), json.dumps(_settings(item.request), sort_keys=True)

    found = []
    for _, group in groupby(sorted(items, key=key), key=key):
        alike = list(group)
        size = alike[0].request.batch
        found += [tuple(alike[i : i + size]) for i in range(0, len(alike), size)]
    return found


def _settings(request: Request) -> dict[str, Any]:
    """All of a request but what may differ between pictures drawn at once."""
    regions = tuple(replace(region, prompt="", negative=None) for region in request.regions)
    return replace(request, prompt="", negative="", seed=0, count=1, wildcards=None, regions=regions).plain()


def _id(request: Request, shot: Any, facts: Mapping[str, Any], kind: str) -> str:
    # contents, not paths: the same batch may be started from another folder
    files = {name: _hash_of(getattr(request, name)) for name in ("image", "vae", "guide", "guide_image")}
    settings = _settings(request) | {"batch": None, "strengths": None, "loras": None} | files
    # the base is known by its fingerprint, whatever its name
    parts = [settings, asdict(shot), {key: facts[key] for key in facts if key != "base"}, kind]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _hash_of(path: str | None) -> str | None:
    """SHA-256 of a file, or of the weights in a folder; the path itself for what is not there."""
    if path is None:
        return None
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else path


def _entry(one: Planned, kind: str) -> dict[str, Any]:
    item = one.item
    name = f"{item.row:05d}-{item.shot.seed}-{item.id}.{kind}"
    return {"id": item.id, "row": item.row, "file": name, "shot": asdict(item.shot)}


def _draw(
    manifest: Manifest,
    engine: Engine,
    todo: Sequence[Item],
    planned: Sequence[Planned],
    bad: int,
    progress: Progress | None,
) -> None:
    rows = {item.id: item.row for item in todo}
    done, failed = len(planned) - len(todo), bad
    outcomes = engine.run(tasks(todo))
    try:
        for outcome in outcomes:
            if outcome.content is None:
                manifest.fail(rows[outcome.id], outcome.reason or "no reason given", outcome.id)
                failed += 1
            else:
                manifest.store(outcome.id, outcome.content)
                done += 1
            if progress:
                progress(done, failed, len(planned) + bad)
    finally:
        close = getattr(outcomes, "close", None)
        if close:
            close()  # restores the base also when writing failed


def draw_sheets(manifest: Manifest, planned: Sequence[Planned]) -> Iterator[Path]:
    """Draws the sheets of every grid, and a contact sheet of the whole; yields their files."""
    done = [one for one in planned if one.item.id in manifest.done]

    def image(one: Planned) -> Image.Image:
        with Image.open(manifest.folder / manifest.done[one.item.id]) as opened_image:
            return opened_image.convert("RGB")

    def kept(name: str, sheet: Image.Image) -> Path:
        with atomic_write(manifest.folder / name) as file:
            sheet.save(file, "PNG")
        return manifest.folder / name

    for row, group in groupby(planned, key=lambda one: one.job.row):
        cells = list(group)
        for number, sheet in enumerate(_sheets(cells), start=1):
            title, xs, ys, places = sheet
            shown = {xy: image(one) for xy, one in places.items() if one.item.id in manifest.done}
            if shown:
                yield kept(f"sheet-{row:05d}-{number}.png", grid_sheet(shown, xs, ys, title))
    if len(done) > 1:
        few = done[:_CONTACTS]
        labels = [f"{one.job.row}: {one.item.shot.seed}" for one in few]
        yield kept("contacts.png", contact_sheet([image(one) for one in few], labels))


def _sheets(
    cells: Sequence[Planned],
) -> Iterator[tuple[str, list[str], list[str], dict[tuple[str, str], Planned]]]:
    """Title, X labels, Y labels and pictures of each sheet of one row's grid; none for a row without axes."""
    labelled = [one for one in cells if one.job.labels]

    def rest(one: Planned) -> tuple[tuple[str, str], ...]:
        return one.job.labels[2:]

    for others in dict.fromkeys(map(rest, labelled)):
        places: dict[tuple[str, str], Planned] = {}
        for one in labelled:
            if rest(one) == others:
                x, y = (*(f"{key} {value}" for key, value in one.job.labels[:2]), "", "")[:2]
                places[x, y] = one
        xs, ys = (list(dict.fromkeys(labels)) for labels in zip(*places, strict=True))
        yield ", ".join(f"{key} {value}" for key, value in others), xs, ys, places
