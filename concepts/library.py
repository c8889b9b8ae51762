"""Changes to a library: import, remove, rename, reserve, and the repair of what a killed command left.

Contract. Ledger and files change together. Whatever a command was doing when its process died, the library is as
before it, or as after it, or `repair` makes it so, or the inventory says which command does: a rename is
committed by one write of the ledger and then followed by the files; a removal deletes the file first and frees
its columns last, so that columns are never free while a file still uses them.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from concepts.claim import claimed
from concepts.free_name import keep_file, refuse_listed
from concepts.inventory import SUFFIX, TRAINING, Listed, drop_thumbnails, fits, take_stock
from concepts.newcomer import Say, claim, freely_named, tell
from spectral_diffusion.card import read_card, width_of
from spectral_diffusion.errors import DamagedFile, InputError, NameTaken, SpectralError
from spectral_diffusion.ledger import Entry, Ledger, Slice, check_name, ledger_files

if TYPE_CHECKING:
    import torch

    from spectral_diffusion.concept import Concept

FOLDERS = (TRAINING, "-previews")  # what a training keeps beside the file: checkpoints, log, pictures
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # of files.atomic_write
_DRAFT_SECONDS = 24 * 3600  # no file of a library takes a day to write


def find(library: Path | str, name: str, base: str | None = None) -> Listed:
    """The concept `name`; `base` (a name or the beginning of a fingerprint) tells on which base, if on several.

    Raises InputError, listing what there is, if it is none or several.
    """
    stock = take_stock(library)
    named = [listed for listed in stock.concepts if listed.name == name]
    if not named:
        known = ", ".join(sorted({listed.name for listed in stock.concepts})) or "nothing"
        raise InputError(f"The library {library} has no concept {name}; it has {known}.")
    wanted = [listed for listed in named if base is None or _is_on(listed, base)]
    if len({listed.fingerprint for listed in wanted}) != 1:
        told = ", ".join(f"{listed.base_name} ({listed.fingerprint[:12]})" for listed in named)
        raise InputError(f"{name} is on {told}: say which with --base.")
    return next((listed for listed in wanted if listed.file is not None), wanted[0])


def _is_on(listed: Listed, base: str) -> bool:
    return base == listed.base_name or (len(base) >= 8 and listed.fingerprint.startswith(base))


def reserve(ledger: Ledger, name: str, rank: int, start: int | None = None) -> Slice:
    """Keep a slice for a concept that is to be trained or imported later.

    Raises NameTaken if the library has the name, else as `Ledger.reserve`.
    """
    refuse_name_of_another_base(ledger, check_name(name))
    refuse_file(ledger.library / f"{name}{SUFFIX}", name)
    return ledger.reserve(name, rank, start)


def known_base(library: Path | str, base: str) -> Ledger | None:
    """The ledger of the base that `base` names by (the beginning of) its fingerprint, as `list` shows it."""
    if not re.fullmatch(r"[0-9a-f]{8,64}", base):
        return None
    ledgers = [Ledger.at(path) for path in ledger_files(library)]
    return next((ledger for ledger in ledgers if ledger.fingerprint.startswith(base)), None)


def import_file(
    file: Path | str, library: Path | str, name: str | None = None, say: Say = lambda line: None
) -> Listed:
    """Make a concept file part of `library`: as `name`, or by its own, or a free name like it, which `say` is told.

    A file that was copied into the library by hand is entered into the ledger where it lies. Raises as
    `Concept.load`; NameTaken if the library has the `name` given, or the very concept; SliceTaken, telling whose, if
    the columns are taken.
    """
    file, library = Path(file), Path(library)
    concept, dtype = _opened(file)
    called = name or concept.name
    if name is None:
        concept = freely_named(concept, file, library)
    elif name != concept.name:
        concept = concept.renamed(name)
    target = library / f"{concept.name}{SUFFIX}"
    here = target.exists() and target.samefile(file)
    as_it_is = here and read_card(file)["name"] == concept.name
    ledger = Ledger(library, concept.base_fingerprint, None, concept.base_name)
    refuse_name_of_another_base(ledger, concept.name)
    if not here:
        refuse_file(target, concept.name)
    if concept.slice is None:
        keep_file(ledger, concept, dtype, target, here and as_it_is)
        return _arrived(file, target, concept, called, say)
    with ledger.holding(concept.name):
        known = ledger.entry(concept.name)
        lost = known is not None and (known.state, known.slice) == ("done", concept.slice)
        if lost and here:
            raise NameTaken(f"{concept.name} is part of {library} already: there is nothing to import.")
        if not lost:
            claim(ledger, concept.name, concept.slice, called)
        if not as_it_is:
            concept.save(target, dtype)
        if not lost:
            ledger.finish(concept.name)
    return _arrived(file, target, concept, called, say)


def _arrived(file: Path, target: Path, concept: Concept, called: str, say: Say) -> Listed:
    """Deletes an imported file that lay in the library under a name that is not its own, and tells a new name."""
    if file.resolve().parent == target.parent.resolve() and not file.samefile(target):
        file.unlink()
    tell(say, called, concept, target.parent)
    return find(target.parent, concept.name)


def _opened(file: Path) -> tuple[Concept, torch.dtype]:
    """A concept and the dtype of its file, checked as far as it can be without its base."""
    from spectral_diffusion.concept import DTYPES, Concept  # here, for it imports torch

    concept, card = Concept.load(file), read_card(file)
    width = width_of(card)
    if None not in (concept.slice, width) and concept.slice.end > width:
        raise DamagedFile(f"{file} is damaged: its layers have no columns {concept.slice}.")
    return concept, DTYPES[card["dtype"]]


def remove(library: Path | str, name: str, base: str | None = None) -> Listed:
    """Delete a concept with its previews and free its columns; a reservation or stopped training as well.

    Returns what was removed. Raises as `find`, and NameTaken if it is being trained right now.
    """
    library = Path(library)
    listed = find(library, name, base)
    if listed.state == "unlisted":  # its name need not be one, and no ledger knows it
        listed.file.unlink()
        drop_thumbnails(library, name)
        return listed
    ledger = Ledger(library, listed.fingerprint, None)
    with claimed(library, name), ledger.holding(name):
        if listed.slice is None:
            _delete(library, name)
            return listed
        if listed.state in ("done", "missing", "damaged", "training", "stopped"):
            _delete(library, name)
        ledger.free(name)
    return listed


def _delete(library: Path, name: str) -> None:
    """Deletes a concept's file, the folders beside it and its thumbnails."""
    (library / f"{name}{SUFFIX}").unlink(missing_ok=True)
    for folder in FOLDERS:
        shutil.rmtree(library / f"{name}{folder}", ignore_errors=True)
    drop_thumbnails(library, name)


def rename(library: Path | str, old: str, new: str) -> Listed:
    """Call a concept or a reservation otherwise: its file, the words inside, card, previews and ledger entry.

    Raises InputError (no such concept, or a training that is not finished), NameTaken (the new name is taken or
    is the class word) or DamagedFile (the file cannot be trusted); nothing is changed then.
    """
    library = Path(library)
    listed = find(library, old)
    if listed.state not in ("done", "reserved"):
        raise InputError(
            f"{old} cannot be renamed while it is {listed.state}: see `python -m concepts list`."
        )
    ledger = Ledger(library, listed.fingerprint, None)
    refuse_name_of_another_base(ledger, check_name(new))
    refuse_file(library / f"{new}{SUFFIX}", new)
    if listed.file is not None:
        _opened(listed.file)[0].renamed(new)  # what would stop the files from following stops it here
    with ledger.holding(old, new):
        if listed.slice is None:
            # killed between save and delete it is there under both names, each whole: remove one
            refuse_listed(ledger, new)
            _move(ledger.library, old, new)
            return find(library, new)
        entry = ledger.rename(old, new)
        if entry.was is not None:
            _follow(ledger, entry, entry.was)
    return find(library, new)


def _follow(ledger: Ledger, entry: Entry, old: str) -> None:
    """The files of a renamed concept follow its ledger entry; done twice, it does no more than once."""
    source = ledger.library / f"{old}{SUFFIX}"
    if source.exists():
        concept, _ = _opened(source)
        if (concept.base_fingerprint, concept.slice) != (ledger.fingerprint, entry.slice):
            raise DamagedFile(
                f"{source} is not the concept that is being renamed to {entry.name}: move it elsewhere."
            )
    _move(ledger.library, old, entry.name)
    ledger.settle(entry.name)


def _move(library: Path, old: str, new: str) -> None:
    """A concept's file under another name, the words inside too, with what lies beside it."""
    source = library / f"{old}{SUFFIX}"
    if source.exists():
        concept, dtype = _opened(source)
        concept.renamed(new).save(library / f"{new}{SUFFIX}", dtype)
        source.unlink()
    for folder in FOLDERS:
        _move_folder(library / f"{old}{folder}", library / f"{new}{folder}")
    drop_thumbnails(library, old)


def _move_folder(source: Path, target: Path) -> None:
    """Move every file, one by one, so that it can be stopped anywhere and taken up again."""
    if not source.is_dir():
        return
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            _move_folder(path, target / path.name)
        else:
            path.replace(target / path.name)
    source.rmdir()


def repair(library: Path | str) -> list[str]:
    """Finish what a command that was killed left half done; a sentence for each thing that was mended or cannot
    be. Touches nothing that another process is working on."""
    told = []
    for path in ledger_files(library):
        try:
            ledger = Ledger.at(path)
            pending = [e for e in ledger.entries() if e.was is not None or e.state == "training"]
        except DamagedFile:  # the inventory tells it
            continue
        for entry in pending:
            if any(ledger.in_use(name) for name in entry.names):
                continue
            try:
                with ledger.holding(*sorted(entry.names), seconds=0):
                    told += _mended(ledger, entry.name)
            except NameTaken:  # in use since a moment ago
                continue
            except SpectralError as error:
                told.append(str(error))
    _sweep(Path(library))
    return told


def _mended(ledger: Ledger, name: str) -> list[str]:
    entry = ledger.entry(name)  # again: it was read before its name was held
    if entry is None:
        return []
    if entry.was is not None:
        _follow(ledger, entry, entry.was)
        return [f"The rename of {entry.was} to {entry.name}, which was cut short, is finished now."]
    file = ledger.library / f"{name}{SUFFIX}"
    if entry.state == "training" and file.exists() and fits(read_card(file), ledger, entry):
        ledger.finish(name)
        return [f"{name} was finished but not yet entered into the ledger: it is now."]
    return []


def _sweep(library: Path) -> None:
    """Deletes drafts that processes killed while writing left long ago."""
    for draft in library.glob(".*.tmp"):
        if (
            draft.is_file()
            and _DRAFT.fullmatch(draft.name)
            and time.time() - draft.stat().st_mtime > _DRAFT_SECONDS
        ):
            draft.unlink(missing_ok=True)


def refuse_file(path: Path, name: str) -> None:
    if path.exists():
        raise NameTaken(f"{path} exists already: give another name than {name}, or remove it first.")


def refuse_name_of_another_base(ledger: Ledger, name: str) -> None:
    """A library has one file for each name, whatever the base."""
    for path in ledger_files(ledger.library):
        if path != ledger.path and (entry := Ledger.at(path).entry(name)) is not None:
            title = Ledger.at(path).base_name or "another base"
            raise NameTaken(
                f"This library has a concept {name} on {title} already ({entry.state}): pick another name."
            )
