"""How a training folder is laid out, found without being told: which pictures, captions, masks, repeats.

Layouts: a plain folder, with captions (`.txt`, `.caption`) beside the pictures; Hugging Face's
`metadata.jsonl` (`file_name`, `text`); kohya's `10_sks dog` folders (repeats, words), alone or in `img/`; Mix-of-Show's
`image/ caption/ mask/`. In each, a mask is a picture of the same stem in `mask/` or `masks/`, or OneTrainer's
`<stem>-masklabel.png` beside it. Nothing is decoded here. What is left aside is told, never dropped silently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from concepts.captions import clean
from concepts.pictures import ACCEPTED, FORMATS
from spectral_diffusion.errors import InputError

CAPTION_SUFFIXES = (".txt", ".caption")
CAPTION_FOLDERS = ("caption", "captions")
MASK_FOLDERS = ("mask", "masks")
IMAGE_FOLDERS = ("image", "images")
MASK_ENDING = "-masklabel"
METADATA = "metadata.jsonl"
TEXT_KEYS = ("text", "caption", "prompt")  # Hugging Face's own, and what other tools write
COMPANIONS = {*CAPTION_FOLDERS, *MASK_FOLDERS}
_DEEPEST = 8  # folders in folders; a link may lead in a circle
_KOHYA = re.compile(r"(\d+)_(.*)")


@dataclass(frozen=True)
class Source:
    """One picture and what belongs to it: `text` is a caption from a table, `words` are kohya's."""

    path: Path
    caption: Path | None = None
    text: str | None = None
    mask: Path | None = None
    repeats: int = 1
    words: str | None = None


@dataclass(frozen=True)
class Layout:
    """What a folder holds: `kind` in plain words, the pictures in order, and sentences to show."""

    kind: str
    sources: list[Source]
    notes: list[str] = field(default_factory=list)

    @property
    def class_word(self) -> str | None:
        """The class that kohya's folder names agree on: the last word behind the repeats."""
        classes = {source.words.split()[-1] for source in self.sources if source.words}
        return classes.pop() if len(classes) == 1 else None


def find_layout(folder: Path) -> Layout:
    """The layout of `folder`. Raises InputError if there is no picture in it, or its table is broken."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the folder that holds the photos.")
    try:
        return _found(folder)
    except PermissionError as error:
        raise InputError(f"{error.filename} cannot be read: ask for the right to read it.") from error


def _found(folder: Path) -> Layout:
    home, notes = _project(_descended(folder))
    files, folders = _files(home), _folders(home)
    kohya = [(sub, match) for sub in folders if (match := _KOHYA.fullmatch(sub.name))]
    image = _named(home, IMAGE_FOLDERS)
    if home / METADATA in files:
        layout = _table(home / METADATA)
    elif _pictures(files) or not (kohya or image):
        layout = _plain(home)
    elif kohya:
        layout = _kohya(kohya)
    else:
        layout = _plain(image[0], "Mix-of-Show folders")
    if not layout.sources:
        found = f"only {', '.join(path.name for path in files[:3])}" if files else "no picture"
        raise InputError(f"{folder} has {found}: put a few photos there ({ACCEPTED} are read).")
    layout.notes.extend(notes)
    layout.notes.extend(_left_aside(folders, layout.sources))
    layout.notes.extend(_orphans(layout.sources))
    return layout


def _descended(folder: Path) -> Path:
    """Through folders that hold nothing but one folder, as zips and downloads have them."""
    for _ in range(_DEEPEST):
        inner = [] if _files(folder) else _folders(folder)
        if len(inner) != 1 or _KOHYA.fullmatch(inner[0].name) or inner[0].name.lower() in IMAGE_FOLDERS:
            break
        folder = inner[0]
    return folder


def _project(folder: Path) -> tuple[Path, list[str]]:
    """Where the photos are, and a note: kohya's project has them in `img/10_dog`, its class in `reg/1_dog`."""
    photos = [sub for sub in _named(folder, ("img",)) if any(_KOHYA.fullmatch(s.name) for s in _folders(sub))]
    if not photos or _pictures(_files(folder)):
        return folder, []
    others = [sub for sub in _named(folder, ("reg",)) if any(_pictures(_files(s)) for s in _folders(sub))]
    told = (
        "holds pictures of the class: to learn from them as well, name that folder with --set class_photos=…"
    )
    return photos[0], [f"{reg.name}/ {told}" for reg in others]


def _plain(folder: Path, kind: str = "plain folder", repeats: int = 1, words: str | None = None) -> Layout:
    files = _files(folder)
    pictures = _pictures(files)
    sources = [_with_companions(Source(path, repeats=repeats, words=words)) for path in pictures]
    known = {*FORMATS, *CAPTION_SUFFIXES, ".jsonl"}
    ignored = [path for path in files if path.suffix.lower() not in known]
    return Layout(kind, sources, [f"{path.name} is ignored: only {ACCEPTED} are read." for path in ignored])


def _kohya(folders: list[tuple[Path, re.Match[str]]]) -> Layout:
    layout = Layout("kohya folders", [])
    for folder, match in folders:
        repeats, words = int(match[1]), clean(match[2].replace("_", " ")) or None
        if repeats == 0:
            layout.notes.append(f"{folder.name} is ignored: its name says 0 repeats.")
            continue
        part = _plain(folder, repeats=repeats, words=words)
        layout.sources.extend(part.sources)
        layout.notes.extend(part.notes)
    return layout


def _table(path: Path) -> Layout:
    """Hugging Face's image folder: one JSON object a line, file names relative to the table."""
    sources = []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            sources.append(_row(path, number, line))
    if not sources:
        raise InputError(f"{path} lists no picture: write one JSON object a line, or remove it.")
    listed = {source.path for source in sources}
    extra = [p.name for p in _pictures(_files(path.parent)) if p not in listed]
    notes = [f"{name} is ignored: {METADATA} does not list it." for name in extra]
    return Layout(f"Hugging Face {METADATA}", sources, notes)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: save it again as UTF-8.") from error


def _row(table: Path, number: int, line: str) -> Source:
    where = f"{table} line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}): mend or remove the line.") from error
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise InputError(f'{where} has no "file_name": each line is {{"file_name": …, "text": …}}.')
    name = PurePosixPath(row["file_name"])
    if name.is_absolute() or ".." in name.parts or "\\" in row["file_name"] or "\0" in row["file_name"]:
        raise InputError(
            f"{where} names {row['file_name']!r}: only files in the table's own folder are read."
        )
    picture = table.parent / name
    if name.suffix.lower() not in FORMATS or not picture.is_file():
        raise InputError(f"{where} names {name}, which is no picture there ({ACCEPTED} are read).")
    return _with_companions(Source(picture, text=_text(where, row)))


def _text(where: str, row: dict[str, Any]) -> str | None:
    key = next((key for key in TEXT_KEYS if key in row), TEXT_KEYS[0])
    text = row.get(key)
    if text is not None and not isinstance(text, str):
        raise InputError(f'{where} has a "{key}" that is no text but {json.dumps(text)[:40]}.')
    return clean(text) or None if text else None


def _with_companions(source: Source) -> Source:
    path = source.path
    captions = [path.parent, *_homes(path, CAPTION_FOLDERS)]
    masks = [home / f"{path.stem}{suffix}" for home in _homes(path, MASK_FOLDERS) for suffix in FORMATS]
    masks.append(path.with_name(f"{path.stem}{MASK_ENDING}.png"))
    caption = _first(home / f"{path.stem}{suffix}" for home in captions for suffix in CAPTION_SUFFIXES)
    return Source(path, caption, source.text, _first(masks), source.repeats, source.words)


def _homes(picture: Path, folders: tuple[str, ...]) -> list[Path]:
    """Where companions of `picture` lie: in folders beside it or, for `image/`, beside its own folder."""
    homes = _named(picture.parent, folders)
    if picture.parent.name.lower() in IMAGE_FOLDERS:
        homes += _named(picture.parent.parent, folders)
    return homes


def _left_aside(folders: list[Path], sources: list[Source]) -> list[str]:
    """A sentence for each folder that holds pictures and is not read."""
    read = {parent for source in sources for parent in source.path.parents}
    aside = [sub for sub in folders if sub not in read and sub.name.lower() not in COMPANIONS]
    counts = [(sub, len(_pictures(_files(sub)))) for sub in aside]
    return [f"{sub.name}/ is not read: its {n} pictures are beside those in use." for sub, n in counts if n]


def _orphans(sources: list[Source]) -> list[str]:
    """A sentence for each caption or mask whose picture is missing."""
    used = {path for source in sources for path in (source.path, source.caption, source.mask)}
    stems = {(source.path.parent, source.path.stem) for source in sources}
    homes = {source.path.parent for source in sources}
    notes = []
    for home in sorted(homes):
        probe = home / "x"
        here = [path for path in _files(home) if path.suffix.lower() in CAPTION_SUFFIXES]
        folders = _homes(probe, CAPTION_FOLDERS) + _homes(probe, MASK_FOLDERS)
        for path in here + [path for folder in folders for path in _files(folder)]:
            if path not in used and (home, path.stem) not in stems:
                notes.append(f"{path.parent.name}/{path.name} belongs to no picture.")
    return notes


def _pictures(files: Iterable[Path]) -> list[Path]:
    """The pictures among `files` that are no masks of others."""
    return [p for p in files if p.suffix.lower() in FORMATS and not p.stem.endswith(MASK_ENDING)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _named(folder: Path, names: tuple[str, ...]) -> list[Path]:
    return [sub for sub in _folders(folder) if sub.name.lower() in names]


def _first(paths: Iterable[Path]) -> Path | None:
    """The first that is a file, its ending written small, large or like a name (.txt, .TXT, .Txt)."""
    spelled = (
        path.with_suffix(suffix)
        for path in paths
        for suffix in (path.suffix, path.suffix.upper(), f".{path.suffix[1:].capitalize()}")
    )
    return next((path for path in spelled if path.is_file()), None)
