"""What an imported concept is called: as in its file, or by the first free name if the library has another of its name.

A clash of names is mended so; one of columns is not, as a concept cannot move to others, and is explained.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from concepts.inventory import SUFFIX, Listed, take_stock
from spectral_diffusion.errors import NameTaken, SliceTaken, SpectralError
from spectral_diffusion.ledger import Ledger, Slice

if TYPE_CHECKING:
    from spectral_diffusion.concept import Concept

Say = Callable[[str], None]
_LONGEST = 32  # letters of a name, see `slices.NAME`
_COUNTED = re.compile(r"(.+)_([1-9]\d?)")


def free_like(name: str, taken: Collection[str]) -> str:
    """`name`, or the first of `name_2`, `name_3`, … that is not `taken`; `rex_2` goes on to `rex_3`."""
    counted = _COUNTED.fullmatch(name)
    stem, first = (counted[1], int(counted[2]) + 1) if counted else (name, 2)
    numbered = (f"{stem[: _LONGEST - len(end)]}{end}" for end in (f"_{n}" for n in itertools.count(first)))
    return next(free for free in itertools.chain([name], numbered) if free not in taken)


def freely_named(concept: Concept, file: Path, library: Path) -> Concept:
    """`concept`, renamed if another one of `library` has its name.

    What was kept for it stays its own: a reservation, or the columns of a file that is gone. Raises NameTaken if it
    is part of `library` already; a concept without columns may be there twice, under two names.
    """
    stock = take_stock(library).concepts if library.is_dir() else ()
    owner = next((listed for listed in stock if listed.name == concept.name), None)
    arrives = file.resolve().parent != library.resolve()
    if arrives and (owner or concept.slice) and (twin := _twin(concept, stock)):
        raise NameTaken(f"{file} is {twin.name} of {library}, number for number: there is nothing to import.")
    if owner is None or _is_its_own(owner, concept, library / f"{concept.name}{SUFFIX}", file):
        return concept
    return concept.renamed(free_like(concept.name, {listed.name for listed in stock}))


def tell(say: Say, name: str, concept: Concept, library: Path) -> None:
    """Says so if `concept` came under another name than the `name` it had or was to have."""
    if concept.name != name:
        say(
            f"{library} has another concept {name} already, so this one is called {concept.name}: write "
            f"{concept.trigger} in prompts, or choose a name with --as."
        )


def claim(ledger: Ledger, name: str, wanted: Slice, called: str) -> None:
    """Take exactly these columns, or raise SliceTaken: whose they are, and why importing `called` cannot mend that."""
    taken = [entry for entry in ledger.entries() if entry.slice.overlaps(wanted) and entry.name != name]
    if not taken:
        ledger.take(name, wanted.rank, wanted.start)
        return
    owners = ", ".join(f"{entry.name} ({entry.slice}, {entry.state})" for entry in taken)
    if [entry.slice for entry in taken if entry.state == "reserved"] == [wanted]:
        way_out = f"if they are kept for this concept, import it --as {taken[0].name}"
    else:
        way_out = (
            f"remove {taken[0].name}, import into another library, or have {called} trained again elsewhere"
        )
    raise SliceTaken(
        f"{called} was trained in columns {wanted}, which belong to {owners} here, and a concept cannot move to "
        f"other columns: {way_out}{_free_elsewhere(ledger, wanted.rank)}."
    )


def _free_elsewhere(ledger: Ledger, rank: int) -> str:
    try:
        return f" (free: --start {ledger.next_free(rank).start})"
    except SpectralError:  # no room, or a width that nobody has told yet
        return ""


def _is_its_own(owner: Listed, concept: Concept, path: Path, file: Path) -> bool:
    """Whether what the library has under the concept's name is meant for it, so that another name is no way out."""
    if path.exists():
        return path.samefile(file)
    if owner.fingerprint != concept.base_fingerprint or owner.slice is None:
        return False
    return owner.state == "reserved" or owner.slice == concept.slice


def _twin(concept: Concept, stock: Sequence[Listed]) -> Listed | None:
    """Which concept of the library has the same numbers, if any does."""
    from spectral_diffusion.concept import Concept
    from spectral_diffusion.members import content_hash

    facts = (concept.base_fingerprint, concept.slice, concept.form, concept.rank, concept.class_word)
    for listed in stock:
        told = (listed.fingerprint, listed.slice, listed.form, listed.rank, listed.class_word)
        if listed.file is None or told != facts:
            continue
        try:
            theirs = Concept.load(listed.file)
            if content_hash(theirs) == content_hash(concept.renamed(theirs.name)):
                return listed
        except SpectralError:  # a damaged one is nobody's twin, and the listing tells it
            continue
    return None
