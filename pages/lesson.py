"""What the page Teach asks for, as settings and files: photos looked at, captions written, columns found."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concepts.captions import PLACEHOLDER
from concepts.dataset import ReadOptions, caption_of, given_text
from concepts.inventory import SUFFIX, Columns, Listed, take_stock
from concepts.layouts import CAPTION_SUFFIXES, find_layout
from concepts.masks import plain_background
from concepts.presets import Resolved, assignments, resolve
from pages.studio import TOYBOX, Studio
from spectral_diffusion.errors import InputError, SpectralError
from spectral_diffusion.ledger import Ledger, Slice

if TYPE_CHECKING:
    from PIL import Image

    from concepts.check import Report

SAMPLES = Path(__file__).parent.parent / "docs" / "samples"
_SIZES = {TOYBOX: 128}  # until the base is loaded
_SD1 = 512
_IN_FRONT = re.compile(r"^<[^<>]*>, ")
_MOST_LETTERS = 600  # of a caption: CLIP reads no more than a hundred words


def samples() -> list[str]:
    """The bundled folders of photos, by name."""
    return sorted(path.name for path in SAMPLES.iterdir() if path.is_dir()) if SAMPLES.is_dir() else []


def sample_folder(name: str) -> Path:
    """A bundled folder of photos. Raises InputError for what is none."""
    if name not in samples():
        raise InputError(f"There are no sample photos of {name[:40]!r}; there are {', '.join(samples())}.")
    return SAMPLES / name


def copy_sample(name: str, folder: Path) -> None:
    """Copies a bundled folder of photos; its captions name the concept whatever it will be called."""
    source = sample_folder(name)
    for path in sorted(source.rglob("*")):
        if path.is_file():
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            if path.suffix in CAPTION_SUFFIXES:
                content = content.replace(f"<{name}>".encode(), PLACEHOLDER.encode())
            target.write_bytes(content)


def free_name(library: Path, name: str) -> str:
    """`name`, or `name2`, `name3`, … if the library has a concept of that name already."""
    names = (f"{name}{number}" if number > 1 else name for number in itertools.count(1))
    return next(free for free in names if not (library / f"{free}{SUFFIX}").exists())


def resolved(
    name: str, class_word: str, preset: str | None, given: Mapping[str, Any], more: str = ""
) -> tuple[Resolved, dict[str, Any]]:
    """The settings, checked, and those that were given beyond the preset, as a job keeps them.

    `more`: lines `field = value`. Raises InputError for whatever cannot work.
    """
    lines = [line for line in map(str.strip, more.splitlines()) if line and not line.startswith("#")]
    options = {key: value for key, value in given.items() if value is not None} | assignments(lines)
    if taken := {"name", "class_word"} & options.keys():
        raise InputError(f"{taken.pop()} has a field of its own on this page.")
    outcome = resolve(
        preset or None, None, {**options, "name": name.strip(), "class_word": class_word.strip()}
    )
    outcome.settings()
    return outcome, options


def look(studio: Studio, photos: Path, name: str, class_word: str, masks: bool) -> Report:
    """What a training would make of the photos."""
    from concepts.check import examine

    base = studio.ready
    size = base.size if base else _SIZES.get(studio.base_id, _SD1)
    options = ReadOptions(make_mask=plain_background if masks else None)
    report = examine(photos, size, name.strip() or None, class_word.strip() or None, options)
    hide = str(photos)
    for finding in report.findings:
        finding.error = finding.error and finding.error.replace(f"{hide}/", "")
    return report


def pictures(report: Report) -> list[tuple[Image.Image, str]]:
    """Every usable photo as it will be cropped, what its mask leaves out veiled, with a line about it."""
    from concepts.sheet import veiled

    found = []
    for finding in report.findings:
        if example := finding.example:
            mask = f", mask: {example.mask_from}" if example.mask_from else ", no mask"
            width, height = example.native
            found.append((veiled(example.image, example.mask), f"{finding.name}, {width} × {height}{mask}"))
    return found


def remarks(report: Report) -> list[str]:
    """Everything that is worth a word: errors first."""
    errors = [
        f"{finding.name} cannot be used: {finding.error}" for finding in report.findings if finding.error
    ]
    warnings = [f"{f.name}: {warning}" for f in report.findings for warning in f.warnings]
    return [*errors, *warnings, *report.notes]


def caption_rows(photos: Path, name: str, class_word: str) -> list[list[str]]:
    """(photo, caption) in the order of the layout; the caption empty where a template stands in."""
    rows = []
    for source in find_layout(photos).sources:
        try:
            text = caption_of(source, name.strip() or "concept", class_word.strip() or None)
        except InputError:  # told with the photo
            text = None
        rows.append([source.path.name, text or ""])
    return rows


def write_captions(photos: Path, name: str, class_word: str, rows: Sequence[Sequence[Any]]) -> None:
    """Writes what was changed in `caption_rows`, by its place: names that come from a page are not looked at.

    Raises InputError for captions that a table of the user's own holds.
    """
    sources = find_layout(photos).sources
    shown = caption_rows(photos, name, class_word)
    for source, old, new in zip(sources, shown, rows, strict=False):
        text = " ".join(str(new[1] if len(new) > 1 and new[1] is not None else "").split())[:_MOST_LETTERS]
        if _bare(text) == _bare(old[1]):  # shown under another name, or before there was one
            continue
        if source.text:
            raise InputError(
                f"The caption of {source.path.name} is in metadata.jsonl: change it there, and upload again."
            )
        file = source.caption or source.path.with_suffix(".txt")
        if text:
            file.write_text(text + "\n", encoding="utf-8")
        elif given_text(source):
            file.unlink()


def _bare(caption: str) -> str:
    """A caption without the concept's word that is put in front where it names none."""
    return _IN_FRONT.sub("", caption)


def columns_for(studio: Studio, name: str, rank: int, start: int | None) -> tuple[str, Columns | None]:
    """The columns a training would get, in words, and the base's map with them on it if the base is loaded."""
    base = studio.ready
    if base is None:
        return "Which columns it gets is told when the base is loaded.", None
    ledger = Ledger(studio.library, base.fingerprint, base.width, base.name)
    entry = ledger.entry(name) if name else None
    try:
        owned = (
            entry.slice if entry else (Slice(start, rank) if start is not None else ledger.next_free(rank))
        )
    except SpectralError as error:
        return str(error), None
    others: tuple[Listed, ...] = ()
    if studio.library.is_dir():
        bases = take_stock(studio.library).bases
        others = next((b.owners for b in bases if b.fingerprint == base.fingerprint), ())
    mine = Listed(name or "new", "reserved", owned, base.fingerprint, base.name)
    kept = tuple(owner for owner in others if owner.name != name)
    row = Columns(base.fingerprint, base.name, base.width, kept)
    row = replace(row, owners=tuple(sorted((*kept, mine), key=lambda owner: owner.slice)))
    word = "has" if entry else "gets"
    return f"It {word} columns {owned} of the {base.width} of {base.name}.", row
