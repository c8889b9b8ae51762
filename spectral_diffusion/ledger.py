"""The ledger: which slice of a base's spectrum belongs to which concept of a library.

Contract. One small JSON file per base in the library folder, changed only under a file lock and
atomically. Whatever processes do at the same moment, no two concepts own the same column. An entry is
`reserved`, `training` or `done`. A process that takes a slice to train holds its name by an OS lock until
`finish`, `free`, `close` or its end; an entry that a stopped run left in `training` goes to the next run of
the same name, which gets the same slice again.
Not covered: libraries on network drives without file locks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from spectral_diffusion.errors import (
    DamagedFile,
    InputError,
    LedgerFull,
    NameTaken,
    SliceTaken,
    SpectralError,
)
from spectral_diffusion.files import atomic_write

State = Literal["reserved", "training", "done"]
NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
VERSION = 1
LOCK_SECONDS = 60  # a change takes milliseconds; waiting longer means a hung process
_HELD: dict[str, FileLock] = {}  # of the process, not of one Ledger: a collected object must not let go


def check_name(name: str) -> str:
    """`name` itself; InputError unless it is a lower-case letter followed by up to 31 of a-z, 0-9 and _."""
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot name a concept: a letter a-z, then a-z, 0-9 or _ (32 at most).")
    return name


@dataclass(frozen=True, order=True)
class Slice:
    """A run of `rank` columns of the spectrum from column `start` on; the same in every layer."""

    start: int
    rank: int

    def __post_init__(self) -> None:
        for option, value, least in (("start", self.start, 0), ("rank", self.rank, 1)):
            if type(value) is not int or value < least:
                raise InputError(f"The {option} of a slice is a whole number from {least} on, not {value!r}.")

    @property
    def end(self) -> int:
        """The first column after the slice."""
        return self.start + self.rank

    @property
    def columns(self) -> list[int]:
        return list(range(self.start, self.end))

    def overlaps(self, other: Slice) -> bool:
        return self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        return f"{self.start}..{self.end - 1}"


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    name: str
    slice: Slice
    state: State

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.state not in get_args(State):
            raise InputError(f"{self.state!r} is no state of a slice: {', '.join(get_args(State))}.")


class Ledger:
    """The slices of one base in one library folder.

    `width` is the number of columns that every adapted layer has: that of the narrowest one. `path` is the
    ledger file; it comes into being with the first entry.
    """

    def __init__(self, library: Path | str, fingerprint: str, width: int) -> None:
        self.library, self.fingerprint, self.width = Path(library), fingerprint, width
        self.path = self.library / f"ledger-{fingerprint[:12]}.json"
        self._taken: set[str] = set()

    def entries(self) -> tuple[Entry, ...]:
        """All entries by column. Raises DamagedFile if the ledger cannot be trusted."""
        if not self.path.exists():
            return ()
        entries = _parsed(self.path, self.fingerprint)
        if entries and (last := entries[-1]).slice.end > self.width:
            raise DamagedFile(f"{self.path} is damaged: {last.name} {last.slice} exceeds {self.width}.")
        return entries

    def next_free(self, rank: int) -> Slice:
        """The first free run of `rank` columns. Raises LedgerFull if there is none."""
        return _next_free(self.entries(), rank, self.width)

    def take(self, name: str, rank: int, start: int | None = None) -> Slice:
        """Own a slice for training: the next free one, or the one from `start` on.

        A slice that `name` has reserved, or left in training when its process died, is taken up again; then
        rank and start, if given, must be the same. Raises SliceTaken, LedgerFull, NameTaken (the name is
        done, has another slice, or is being trained right now) or InputError (outside the spectrum).
        """
        with self._holding(name):
            return self._enter(name, rank, start, "training")

    def reserve(self, name: str, rank: int, start: int | None = None) -> Slice:
        """Keep a slice for a later `take` of the same name. Raises as `take` does."""
        return self._enter(check_name(name), rank, start, "reserved")

    def finish(self, name: str) -> None:
        """The concept is trained and its file is written: its slice is now its own for good."""
        with self._holding(name), self._changing() as entries:
            entry = _owned(entries, name, self.path)
            entries[entries.index(entry)] = replace(entry, state="done")
        self._release(name)

    def free(self, name: str) -> None:
        """Give the slice of `name` back.

        Raises InputError if the ledger has no such name, NameTaken if another process is training it.
        """
        with self._holding(name), self._changing() as entries:
            entries.remove(_owned(entries, name, self.path))
        self._release(name)

    def close(self) -> None:
        """Let go of the names this object took and did not finish; their slices stay theirs."""
        for name in tuple(self._taken):
            self._release(name)

    def _enter(self, name: str, rank: int, start: int | None, state: State) -> Slice:
        with self._changing() as entries:
            mine = next((entry for entry in entries if entry.name == name), None)
            if mine is None:
                mine = Entry(name, _fitting(entries, rank, start, self.width), state)
            else:
                _check_resumable(mine, rank, start, state)
                entries.remove(mine)
            entries.append(replace(mine, state=state))
        return mine.slice

    @contextmanager
    def _changing(self) -> Iterator[list[Entry]]:
        """The entries as a list to change; written back unless the block raises."""
        with self._locked():
            entries = list(self.entries())
            yield entries
            with atomic_write(self.path) as file:
                file.write(_text(entries, self.fingerprint).encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self._lock_file(self.path.stem)
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout as error:
            raise SpectralError(f"{self.path} stays locked: end the process that hangs.") from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _holding(self, name: str) -> Iterator[None]:
        """Hold `name` against other processes, beyond the block too unless it raises."""
        lock = self._lock_file(f"{self.path.stem}.{check_name(name)}")
        if lock.lock_file in _HELD:
            yield
            return
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise NameTaken(f"{name} is being trained right now by another process.") from error
        _HELD[lock.lock_file] = lock
        self._taken.add(name)
        try:
            yield
        except BaseException:
            self._release(name)
            raise

    def _release(self, name: str) -> None:
        self._taken.discard(name)
        if lock := _HELD.pop(self._lock_file(f"{self.path.stem}.{name}").lock_file, None):
            lock.release()

    def _lock_file(self, stem: str) -> FileLock:
        folder = self.library.resolve() / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{stem}.lock", thread_local=False)


def free_run(taken: Sequence[Slice], rank: int, width: int) -> Slice | None:
    """The first `rank` columns in a row, of `width`, that none of `taken` has; None if there are none."""
    for start in sorted({0, *(run.end for run in taken)}):  # a free run begins where another one ends
        run = Slice(start, rank)
        if run.end <= width and not any(run.overlaps(other) for other in taken):
            return run
    return None


def _next_free(entries: tuple[Entry, ...], rank: int, width: int) -> Slice:
    if run := free_run([entry.slice for entry in entries], rank, width):
        return run
    owners = ", ".join(f"{entry.name} {entry.slice}" for entry in entries) or "no concept"
    raise LedgerFull(
        f"No {rank} columns in a row are free among {width} ({owners}): free one, lower the rank."
    )


def _fitting(entries: list[Entry], rank: int, start: int | None, width: int) -> Slice:
    """The slice a new entry gets: checked against the spectrum and every other entry."""
    by_column = tuple(sorted(entries, key=lambda entry: entry.slice))
    if start is None:
        return _next_free(by_column, rank, width)
    wanted = Slice(start, rank)
    if wanted.end > width:
        raise InputError(f"Columns {wanted} do not exist: this base has {width}, 0..{width - 1}.")
    for entry in by_column:
        if wanted.overlaps(entry.slice):
            other = _suggestion(by_column, rank, width)
            raise SliceTaken(f"Columns {wanted} overlap {entry.slice} of {entry.name}: {other}.")
    return wanted


def _suggestion(entries: tuple[Entry, ...], rank: int, width: int) -> str:
    try:
        return f"the next free slice of rank {rank} is {_next_free(entries, rank, width)}"
    except LedgerFull:
        return f"no other {rank} columns in a row are free"


def _check_resumable(mine: Entry, rank: int, start: int | None, state: State) -> None:
    same = mine.slice.rank == rank and start in (None, mine.slice.start)
    if mine.state == "done" or (state == "reserved" and mine.state == "training") or not same:
        owned = f"{mine.name} already has columns {mine.slice} ({mine.state})"
        raise NameTaken(f"{owned}: pick another name, or free it first.")


def _owned(entries: list[Entry], name: str, path: Path) -> Entry:
    for entry in entries:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in entries) or "none"
    raise InputError(f"{path} has no concept {name}; it has: {known}.")


def _text(entries: list[Entry], fingerprint: str) -> str:
    lines = [
        {"name": entry.name, "start": entry.slice.start, "rank": entry.slice.rank, "state": entry.state}
        for entry in sorted(entries, key=lambda entry: entry.slice)
    ]
    return json.dumps({"version": VERSION, "base": fingerprint, "entries": lines}, indent=1) + "\n"


def _parsed(path: Path, fingerprint: str) -> tuple[Entry, ...]:
    try:
        content = json.loads(path.read_bytes())
        version, base, lines = content["version"], content["base"], content["entries"]
        entries = tuple(sorted((_entry(line) for line in lines), key=lambda entry: entry.slice))
    except (ValueError, KeyError, TypeError, RecursionError, InputError) as error:
        raise DamagedFile(f"{path} is damaged ({error}): restore it, or delete it to start anew.") from error
    if version != VERSION:
        raise DamagedFile(f"{path} has ledger version {version}; this program reads version {VERSION}.")
    if base != fingerprint:
        raise DamagedFile(f"{path} belongs to base {base}, not to {fingerprint}.")
    _refuse_overlap(path, entries)
    return entries


def _entry(line: dict[str, Any]) -> Entry:
    if line.keys() != {"name", "start", "rank", "state"}:
        raise ValueError(f"an entry has the keys {sorted(line)}")
    return Entry(line["name"], Slice(line["start"], line["rank"]), line["state"])


def _refuse_overlap(path: Path, entries: tuple[Entry, ...]) -> None:
    if len({entry.name for entry in entries}) < len(entries):
        raise DamagedFile(f"{path} is damaged: it names a concept twice.")
    for one, two in pairwise(entries):
        if one.slice.overlaps(two.slice):
            raise DamagedFile(f"{path} is damaged: {one.name} {one.slice} overlaps {two.name} {two.slice}.")
