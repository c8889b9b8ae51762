"""The ledger: which slice of a base's spectrum belongs to which concept of a library.

Contract. One small JSON file per base in the library folder, changed only under a file lock and
atomically. Whatever processes do at the same moment, no two concepts own the same column. An entry is
`reserved`, `training` or `done`. A process that takes a slice to train holds its name by an OS lock until
`finish`, `free`, `close` or its end; an entry that a stopped run left in `training` goes to the next run of
the same name, which gets the same slice again.
A rename is one atomic change of the ledger, which keeps the former name taken until the files have followed
(`settle`): a process that dies in between leaves a note of what is left to do.
Not covered: libraries on network drives without file locks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

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
from spectral_diffusion.ledger_file import Entry, Page, State, page_text, read_page
from spectral_diffusion.slices import Slice, check_name, free_run

__all__ = ["Entry", "Ledger", "Slice", "State", "check_name", "free_run", "ledger_files"]

LOCK_SECONDS = 60  # a change takes milliseconds; waiting longer means a hung process
HOLD_SECONDS = 1  # a listing holds a name for a moment to see whether it is being trained
_HELD: dict[str, FileLock] = {}  # of the process, not of one Ledger: a collected object must not let go


def ledger_files(library: Path | str) -> list[Path]:
    """The ledger file of every base in `library`, sorted."""
    return sorted(Path(library).glob("ledger-*.json"))


class Ledger:
    """The slices of one base in one library folder.

    `width` is the number of columns that every adapted layer has: that of the narrowest one; None if it is not
    known yet, then slices are only taken at a given start. `path` is the ledger file; it comes into being with
    the first entry.
    """

    def __init__(
        self, library: Path | str, fingerprint: str, width: int | None, base_name: str | None = None
    ) -> None:
        self.library, self.fingerprint = Path(library), fingerprint
        self.width, self.base_name = width, base_name
        self.path = self.library / f"ledger-{fingerprint[:12]}.json"
        self._taken: set[str] = set()

    @classmethod
    def at(cls, path: Path | str) -> Ledger:
        """The ledger of an existing file, without its base. Raises DamagedFile."""
        path, page = Path(path), read_page(Path(path))
        ledger = cls(path.parent, page.fingerprint, page.width, page.base_name)
        if ledger.path != path:
            raise DamagedFile(f"{path} is not named after its base: it must be {ledger.path.name}.")
        return ledger

    def entries(self) -> tuple[Entry, ...]:
        """All entries by column. Raises DamagedFile if the ledger cannot be trusted."""
        return self._page().entries

    def entry(self, name: str) -> Entry | None:
        """What the ledger says about `name`, which may also be the former name of a rename under way."""
        return next((entry for entry in self.entries() if name in entry.names), None)

    def next_free(self, rank: int) -> Slice:
        """The first free run of `rank` columns. Raises LedgerFull if there is none."""
        page = self._page()
        return _next_free(page.entries, rank, page.width)

    def take(self, name: str, rank: int, start: int | None = None) -> Slice:
        """Own a slice for training: the next free one, or the one from `start` on.

        A slice that `name` has reserved, or left in training when its process died, is taken up again; then
        rank and start, if given, must be the same. Raises SliceTaken, LedgerFull, NameTaken (the name is
        done, has another slice, or is being trained right now) or InputError (outside the spectrum).
        """
        fresh = self._hold(check_name(name), HOLD_SECONDS)
        try:
            return self._enter(name, rank, start, "training")
        except BaseException:
            if fresh:
                self._release(name)
            raise

    def reserve(self, name: str, rank: int, start: int | None = None) -> Slice:
        """Keep a slice for a later `take` of the same name. Raises as `take` does."""
        return self._enter(check_name(name), rank, start, "reserved")

    def finish(self, name: str) -> None:
        """The concept is trained and its file is written: its slice is now its own for good."""
        with self.holding(name), self._changing() as entries:
            entry = _owned(entries, name, self.path)
            entries[entries.index(entry)] = replace(entry, state="done")
        self._release(name)

    def free(self, name: str) -> None:
        """Give the slice of `name` back.

        Raises InputError if the ledger has no such name, NameTaken if another process is training it.
        """
        with self.holding(name), self._changing() as entries:
            entries.remove(_owned(entries, name, self.path))
        self._release(name)

    def rename(self, old: str, new: str) -> Entry:
        """Give the slice of `old` to `new`; returns the new entry.

        The files of a finished concept must follow: its entry remembers `old`, which stays taken, until `settle`.
        Raises InputError if there is no `old`, NameTaken if `new` is taken or either is in use right now.
        """
        with self.holding(old, check_name(new)), self._changing() as entries:
            entry = _owned(entries, old, self.path)
            _refuse_unsettled(entry)
            if any(new in other.names for other in entries):
                raise NameTaken(f"{self.path} has a concept {new} already: pick another name.")
            renamed = replace(entry, name=new, was=old if entry.state == "done" else None)
            entries[entries.index(entry)] = renamed
        return renamed

    def settle(self, name: str) -> None:
        """The files have followed the rename to `name`: its former name is free again."""
        with self.holding(name), self._changing() as entries:
            entry = _owned(entries, name, self.path)
            entries[entries.index(entry)] = replace(entry, was=None)

    def close(self) -> None:
        """Let go of the names this object took and did not finish; their slices stay theirs."""
        for name in tuple(self._taken):
            self._release(name)

    def in_use(self, name: str) -> bool:
        """Whether a process, this one or another, is training or changing `name` right now."""
        try:
            if not self._hold(check_name(name), seconds=0):
                return True
            self._release(name)
            return False
        except NameTaken:
            return True
        except OSError:  # nobody trains into a folder that cannot be written to
            return False

    @contextmanager
    def holding(self, *names: str, seconds: float = HOLD_SECONDS) -> Iterator[None]:
        """Hold `names` against other processes within the block. Raises NameTaken if one is in use elsewhere."""
        fresh: list[str] = []
        try:
            for name in names:
                if self._hold(check_name(name), seconds):
                    fresh.append(name)
            yield
        finally:
            for name in fresh:
                self._release(name)

    def _page(self) -> Page:
        """What the file says, checked against what this object was told about the base."""
        told = Page(self.fingerprint, self.base_name, self.width)
        if not self.path.exists():
            return told
        page = read_page(self.path)
        if page.fingerprint != self.fingerprint:
            raise DamagedFile(f"{self.path} belongs to base {page.fingerprint}, not to {self.fingerprint}.")
        if None not in (page.width, self.width) and page.width != self.width:
            raise DamagedFile(
                f"{self.path} is damaged: it says {page.width} columns, the base has {self.width}."
            )
        page = replace(page, width=page.width or self.width, base_name=page.base_name or self.base_name)
        if page.entries and page.width and (last := page.entries[-1]).slice.end > page.width:
            raise DamagedFile(f"{self.path} is damaged: {last.name} {last.slice} exceeds {page.width}.")
        return page

    def _enter(self, name: str, rank: int, start: int | None, state: State) -> Slice:
        with self._changing() as entries:
            mine = next((entry for entry in entries if name in entry.names), None)
            if mine is None:
                width = self._page().width
                mine = Entry(name, _fitting(entries, rank, start, width), state)
            else:
                _refuse_unsettled(mine)
                _check_resumable(mine, rank, start, state)
                entries.remove(mine)
            entries.append(replace(mine, state=state))
        return mine.slice

    @contextmanager
    def _changing(self) -> Iterator[list[Entry]]:
        """The entries as a list to change; written back unless the block raises."""
        with self._locked():
            page = self._page()
            entries = list(page.entries)
            yield entries
            with atomic_write(self.path) as file:
                file.write(page_text(replace(page, entries=tuple(entries))).encode())

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

    def _hold(self, name: str, seconds: float) -> bool:
        """Hold `name` against other processes; False if this process holds it already."""
        lock = self._lock_file(f"{self.path.stem}.{name}")
        if lock.lock_file in _HELD:
            return False
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:
            raise NameTaken(f"{name} is being trained right now by another process.") from error
        _HELD[lock.lock_file] = lock
        self._taken.add(name)
        return True

    def _release(self, name: str) -> None:
        self._taken.discard(name)
        if lock := _HELD.pop(self._lock_file(f"{self.path.stem}.{name}").lock_file, None):
            lock.release()

    def _lock_file(self, stem: str) -> FileLock:
        folder = self.library.resolve() / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{stem}.lock", thread_local=False)


def _next_free(entries: Sequence[Entry], rank: int, width: int | None) -> Slice:
    if width is None:
        raise InputError("How many columns this base has is not known yet: name the base with --base.")
    if run := free_run([entry.slice for entry in entries], rank, width):
        return run
    owners = ", ".join(f"{entry.name} {entry.slice}" for entry in entries) or "no concept"
    raise LedgerFull(
        f"No {rank} columns in a row are free among {width} ({owners}): free one, lower the rank."
    )


def _fitting(entries: list[Entry], rank: int, start: int | None, width: int | None) -> Slice:
    """The slice a new entry gets: checked against the spectrum and every other entry."""
    by_column = tuple(sorted(entries, key=lambda entry: entry.slice))
    if start is None:
        return _next_free(by_column, rank, width)
    wanted = Slice(start, rank)
    if width is not None and wanted.end > width:
        raise InputError(f"Columns {wanted} do not exist: this base has {width}, 0..{width - 1}.")
    for entry in by_column:
        if wanted.overlaps(entry.slice):
            other = _suggestion(by_column, rank, width)
            raise SliceTaken(f"Columns {wanted} overlap {entry.slice} of {entry.name}: {other}.")
    return wanted


def _suggestion(entries: tuple[Entry, ...], rank: int, width: int | None) -> str:
    try:
        return f"the next free slice of rank {rank} is {_next_free(entries, rank, width)}"
    except (InputError, LedgerFull):
        return f"no other {rank} columns in a row are free"


def _check_resumable(mine: Entry, rank: int, start: int | None, state: State) -> None:
    same = mine.slice.rank == rank and start in (None, mine.slice.start)
    if mine.state == "done" or (state == "reserved" and mine.state == "training") or not same:
        owned = f"{mine.name} already has columns {mine.slice} ({mine.state})"
        raise NameTaken(f"{owned}: pick another name, or remove it first.")


def _refuse_unsettled(entry: Entry) -> None:
    if entry.was is not None:
        raise NameTaken(
            f"The rename of {entry.was} to {entry.name} was cut short: run `python -m concepts list` first."
        )


def _owned(entries: Sequence[Entry], name: str, path: Path) -> Entry:
    for entry in entries:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in entries) or "none"
    raise InputError(f"{path} has no concept {name}; it has: {known}.")
