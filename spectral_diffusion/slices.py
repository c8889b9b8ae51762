"""Slices: runs of columns of a base's spectrum, names of their owners, and the search for a free one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from spectral_diffusion.errors import InputError

NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


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


def free_run(taken: Sequence[Slice], rank: int, width: int) -> Slice | None:
    """The first `rank` columns in a row, of `width`, that none of `taken` has; None if there are none."""
    for start in sorted({0, *(run.end for run in taken)}):  # a free run begins where another one ends
        run = Slice(start, rank)
        if run.end <= width and not any(run.overlaps(other) for other in taken):
            return run
    return None


def free_runs(taken: Sequence[Slice], width: int) -> list[Slice]:
    """Every run of columns, of `width`, that none of `taken` has, from the first on; each as long as it gets."""
    runs, begin = [], 0
    for other in [*sorted(taken), Slice(width, 1)]:
        if begin < min(other.start, width):
            runs.append(Slice(begin, min(other.start, width) - begin))
        begin = max(begin, other.end)
    return runs
