"""The ledger's file: JSON that people can read, parsed strictly, written in one way only.

Version 2 tells the base's name and width beside its fingerprint, so that a library is listed without loading
a base, and `was` of an entry that is being renamed. Version 1 had neither and is still read; it becomes
version 2 with its next change. What is unknown is null.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.slices import Slice, check_name

State = Literal["reserved", "training", "done"]
VERSION = 2


@dataclass(frozen=True)
class Entry:
    """One line of the ledger. `was` is the former name while the files still have to follow a rename."""

    name: str
    slice: Slice
    state: State
    was: str | None = None

    def __post_init__(self) -> None:
        for name in (self.name, self.was):
            if name is not None:
                check_name(name)
        if self.was == self.name:
            raise InputError(f"{self.name} cannot have been renamed to its own name.")
        if self.state not in get_args(State):
            raise InputError(f"{self.state!r} is no state of a slice: {', '.join(get_args(State))}.")

    @property
    def names(self) -> set[str]:
        """Every name that nobody else may take."""
        return {self.name} if self.was is None else {self.name, self.was}


@dataclass(frozen=True)
class Page:
    """All that one ledger file says; the entries by column."""

    fingerprint: str
    base_name: str | None = None
    width: int | None = None
    entries: tuple[Entry, ...] = ()


def page_text(page: Page) -> str:
    """The file of `page`, always in the current version."""
    head = {"version": VERSION, "base": page.fingerprint, "name": page.base_name, "width": page.width}
    lines = [_line(entry) for entry in sorted(page.entries, key=lambda entry: entry.slice)]
    return json.dumps({**head, "entries": lines}, indent=1) + "\n"


def read_page(path: Path) -> Page:
    """The ledger at `path`. Raises DamagedFile, with a sentence that names the file, if it cannot be trusted."""
    try:
        content = json.loads(path.read_bytes())
        version = content.pop("version")
        if version not in _READERS:
            raise DamagedFile(
                f"{path} has ledger version {version}; this program reads version {VERSION} and older."
            )
        page = _READERS[version](content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError) as error:
        raise DamagedFile(f"{path} is damaged ({error}): restore it, or delete it to start anew.") from error
    _refuse_contradictions(path, page)
    return page


def _read_v1(content: dict[str, Any]) -> Page:
    _exact_keys("a ledger", content, {"base", "entries"})
    return _page(content, None, None)


def _read_v2(content: dict[str, Any]) -> Page:
    _exact_keys("a ledger", content, {"base", "name", "width", "entries"})
    name, width = content["name"], content["width"]
    if not (name is None or isinstance(name, str)):
        raise ValueError(f"the base's name is {name!r}")
    if not (width is None or (type(width) is int and width > 0)):
        raise ValueError(f"the base's width is {width!r}")
    return _page(content, name, width)


_READERS: dict[int, Callable[[dict[str, Any]], Page]] = {1: _read_v1, 2: _read_v2}


def _page(content: dict[str, Any], name: str | None, width: int | None) -> Page:
    if not isinstance(content["base"], str):
        raise ValueError(f"the base's fingerprint is {content['base']!r}")
    entries = sorted((_entry(line) for line in content["entries"]), key=lambda entry: entry.slice)
    return Page(content["base"], name, width, tuple(entries))


def _entry(line: dict[str, Any]) -> Entry:
    _exact_keys("an entry", {"was": None, **line}, {"name", "start", "rank", "state", "was"})
    return Entry(line["name"], Slice(line["start"], line["rank"]), line["state"], line.get("was"))


def _exact_keys(what: str, found: dict[str, Any], expected: set[str]) -> None:
    if found.keys() != expected:
        raise ValueError(f"{what} has the keys {sorted(found)}")


def _line(entry: Entry) -> dict[str, Any]:
    line = {
        "name": entry.name,
        "start": entry.slice.start,
        "rank": entry.slice.rank,
        "state": entry.state,
    }
    return line if entry.was is None else {**line, "was": entry.was}


def _refuse_contradictions(path: Path, page: Page) -> None:
    names = [name for entry in page.entries for name in entry.names]
    if len(set(names)) < len(names):
        raise DamagedFile(f"{path} is damaged: it names a concept twice.")
    for one, two in pairwise(page.entries):
        if one.slice.overlaps(two.slice):
            raise DamagedFile(f"{path} is damaged: {one.name} {one.slice} overlaps {two.name} {two.slice}.")
    if page.width is not None and page.entries and page.entries[-1].slice.end > page.width:
        last = page.entries[-1]
        raise DamagedFile(f"{path} is damaged: {last.name} {last.slice} exceeds {page.width}.")
