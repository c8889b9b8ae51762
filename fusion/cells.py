"""One line of JSON per finished cell of a long comparison, so that it goes on where it was stopped.

A cell is one source of pictures (a method at a strength, a concept alone, the bare base) drawing one subject on
the seeds of one half; its record holds every picture's raw measures. The first line says what the comparison is
about; another comparison never goes on in the same file. A last line cut off by a crash is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spectral_diffusion.errors import DamagedFile, InputError


@dataclass(frozen=True)
class Key:
    """Which cell."""

    source: str  # a method, "alone" or "base"
    strength: float
    half: str  # "choose" or "report"
    subject: str  # a concept, or a class word for "base"


@dataclass(frozen=True)
class Cell:
    """What its pictures measured, picture by picture in the order of places and seeds."""

    identity: Mapping[str, list[float]]  # concept -> likeness to its photos
    alignment: list[float]
    pictures: list[str]  # files of a few of them, below the comparison's folder


class Cells:
    """The records of one comparison in one file."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Opens or begins the file. Raises InputError if it is about something else, DamagedFile."""
        self.path = path
        self._found: dict[Key, Cell] = {}
        about = json.loads(json.dumps(about))
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        except UnicodeDecodeError as error:
            raise DamagedFile(f"{path} is no text file: delete it to begin again.") from error
        if not any(lines[:-1]):
            path.write_text(json.dumps(about) + "\n", encoding="utf-8")
            return
        whole = lines[:-1]  # what follows the last line break was not finished
        try:
            first, *records = map(json.loads, whole)
            if first != about:
                raise InputError(f"{path} belongs to a comparison with other settings: give a new folder.")
            for record in records:
                self._found[Key(**record["key"])] = Cell(**record["cell"])
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedFile(f"{path} is damaged ({error}): delete it to begin again.") from error
        if lines[-1]:
            path.write_text("\n".join(whole) + "\n", encoding="utf-8")

    def get(self, key: Key) -> Cell | None:
        """The cell, if it is finished."""
        return self._found.get(key)

    def __getitem__(self, key: Key) -> Cell:
        return self._found[key]

    def put(self, key: Key, cell: Cell) -> None:
        """Records a finished cell at once."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": asdict(key), "cell": asdict(cell)}) + "\n")
        self._found[key] = cell
