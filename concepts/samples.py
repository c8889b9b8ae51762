"""The bundled concepts, to try before teaching any: trained on `toybox`, and put into a library as anybody's files.

Nothing is special about them afterwards. Their photos are those of `docs/samples`, which a checkout has.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import spectral_diffusion
from concepts.inventory import SUFFIX, Listed
from spectral_diffusion.card import read_card
from spectral_diffusion.errors import InputError, NameTaken, SliceTaken, SpectralError

FOLDER = Path(spectral_diffusion.__file__).parent / "toybox" / "concepts"
PHOTOS = Path(__file__).parent.parent / "docs" / "samples"


class Taken(NamedTuple):
    """What came of it: the concepts that were put in, and a sentence for each that was not."""

    concepts: list[Listed]
    left_out: list[str]


def samples() -> list[Path]:
    """The bundled concept files, by name."""
    return sorted(FOLDER.glob(f"*{SUFFIX}"))


def is_sample(library: Path | str, name: str) -> bool:
    """Whether the concept `name` of `library` is the bundled one: their cards are equal."""
    try:
        return read_card(Path(library) / f"{name}{SUFFIX}") == read_card(FOLDER / f"{name}{SUFFIX}")
    except (OSError, SpectralError):  # one of them is not there, or is something else
        return False


def photos_of(library: Path | str, name: str) -> Path | None:
    """The photos that the concept `name` of `library` was taught from, if it is a bundled one."""
    folder = PHOTOS / name
    return folder if is_sample(library, name) and folder.is_dir() else None


def take_samples(library: Path | str) -> Taken:
    """Imports every bundled concept that `library` does not have yet, making the library if there is none.

    Raises InputError if it could take none, and has none of them already, or if `library` is a file.
    """
    from concepts.library import import_file, repair

    if Path(library).is_file():
        raise InputError(f"{library} is a file: give a folder.")
    Path(library).mkdir(parents=True, exist_ok=True)
    repair(library)
    taken, reasons, there = [], [], []
    for file in samples():
        if is_sample(library, file.stem):
            there.append(f"{file.stem} is part of {library} already.")
            continue
        try:
            taken.append(import_file(file, library, file.stem))
        except (NameTaken, SliceTaken) as error:
            reasons.append(str(error))
    if reasons and not (taken or there):
        raise InputError(f"No sample can be taken: {reasons[0]}")
    return Taken(taken, [*there, *reasons])
