"""What a library holds: its ledgers and its files put side by side, and where they disagree.

Contract. Reads ledgers and headers only, loads no base and no numbers, and never fails for a damaged or foreign
file: that becomes a sentence. Changes nothing but the thumbnails beside the concepts.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from concepts.claim import in_training
from spectral_diffusion.card import BUNDLED_JUDGES, FINGERPRINT, place_of, read_card, width_of
from spectral_diffusion.errors import InputError, SpectralError
from spectral_diffusion.files import atomic_write, read_header
from spectral_diffusion.ledger import Entry, Ledger, Slice, ledger_files
from spectral_diffusion.slices import NAME

SUFFIX = ".safetensors"
TRAINING = "-training"  # the folder of a training beside its file
CHECKPOINT = {"kind": "checkpoint", "version": 2}  # 2 remembers the errors of the steps, 1 had their losses
# ledger and file agree on the first three; each of the others comes with a sentence
STATES = ("done", "reserved", "training", "stopped", "renaming", "missing", "damaged", "differs", "unlisted")


@dataclass(frozen=True)
class Listed:
    """One concept of the library, as its ledger or its file or both tell it."""

    name: str
    state: str  # one of STATES
    slice: Slice | None  # None for a form that owns no columns
    fingerprint: str  # of the base
    base_name: str | None = None
    class_word: str | None = None
    file: Path | None = None
    size: int = 0  # bytes of the file
    identity: float | None = None
    identity_by: str | None = None  # whose cosine that is
    thumbnail: Path | None = None
    form: str | None = None
    rank: int | None = None  # where a file tells it

    @property
    def place(self) -> str:
        """Where it lives, in words: `columns 0..3`, or `lora of rank 4`."""
        return place_of(self.form or "", self.slice, self.rank or 0)

    @property
    def likeness(self) -> str:
        """`0.82`, or `0.82 by clip (0123456789ab)` where other than the bundled encoders measured; or nothing."""
        if self.identity is None:
            return ""
        return f"{self.identity:.2f}" + (
            "" if self.identity_by == BUNDLED_JUDGES else f" by {self.identity_by}"
        )


@dataclass(frozen=True)
class Columns:
    """The spectrum of one base and who owns what of it, by column. `width` is None where nothing tells it.

    `others` are concepts on the base that own no columns, by name.
    """

    fingerprint: str
    base_name: str | None
    width: int | None
    owners: tuple[Listed, ...]
    others: tuple[Listed, ...] = ()

    @property
    def title(self) -> str:
        """`toybox (0123456789ab)`."""
        return f"{printable(self.base_name or 'base')} ({self.fingerprint[:12]})"


@dataclass(frozen=True)
class Inventory:
    """A library: its bases with their concepts, and one sentence for each thing that is wrong."""

    library: Path
    bases: tuple[Columns, ...]
    problems: tuple[str, ...]

    @property
    def concepts(self) -> tuple[Listed, ...]:
        return tuple(listed for base in self.bases for listed in (*base.owners, *base.others))


def take_stock(library: Path | str) -> Inventory:
    """Everything in `library`. Raises InputError if there is no such folder."""
    library = Path(library)
    if not library.is_dir():
        raise InputError(
            f"There is no library {library}: train a concept, or name the folder with --library."
        )
    cards, problems = _cards(library)
    ledgers, damaged = _ledgers(library)
    owners, disagreements = _of_ledgers(ledgers, cards)
    claimed = {owner.file for owner in owners} | _spoken_for(library, ledgers)
    strays = {path: card for path, card in cards.items() if path not in claimed}
    free = {path for path, card in strays.items() if card["slice"] is None and card["name"] == path.stem}
    owners += [_of_file(path, strays.pop(path), "done") for path in sorted(free)]
    sentences = [_stray_sentence(path, card, owners) for path, card in strays.items()]
    owners += [_of_file(path, card, "unlisted") for path, card in strays.items()]
    stopped, unfinished = _without_ledger(library, {owner.name for owner in owners})
    owners += stopped
    bases = tuple(_columns(key, ledgers, cards, owners) for key in sorted({o.fingerprint for o in owners}))
    return Inventory(library, bases, (*problems, *damaged, *disagreements, *sentences, *unfinished))


def _cards(library: Path) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """The card of every concept file, and a sentence for every other file."""
    cards, problems, ledgers = {}, [], set(ledger_files(library))
    for path in sorted(library.iterdir()):
        if path.name.startswith(".") or path in ledgers or not path.is_file():
            continue
        if path.suffix != SUFFIX:
            problems.append(f"{path} is no concept file and is left alone.")
            continue
        try:
            cards[path] = {**read_card(path), "size": path.stat().st_size}
        except SpectralError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{path} cannot be read ({error.strerror}).")
    return cards, problems


def _ledgers(library: Path) -> tuple[dict[str, tuple[Ledger, tuple[Entry, ...]]], list[str]]:
    """Fingerprint -> ledger and its entries, and a sentence for every ledger that cannot be trusted."""
    ledgers, problems = {}, []
    for path in ledger_files(library):
        try:
            ledger = Ledger.at(path)
            ledgers[ledger.fingerprint] = (ledger, ledger.entries())
        except SpectralError as error:
            problems.append(str(error))
    return ledgers, problems


def _of_ledgers(
    ledgers: Mapping[str, tuple[Ledger, tuple[Entry, ...]]], cards: Mapping[Path, dict[str, Any]]
) -> tuple[list[Listed], list[str]]:
    """Every line of every ledger beside its file, and a sentence for each that does not fit its file."""
    owners, problems = [], []
    for ledger, entries in ledgers.values():
        for entry in entries:
            path = ledger.library / f"{entry.name}{SUFFIX}"
            card = cards.get(path)
            state = _state(ledger, entry, path, card)
            if card is not None and fits(card, ledger, entry) and state != "reserved":
                owners.append(_of_file(path, card, state))
            else:
                owners.append(Listed(entry.name, state, entry.slice, ledger.fingerprint, ledger.base_name))
            if state in _SENTENCES:
                facts = {"name": entry.name, "was": entry.was, "slice": entry.slice, "path": path}
                problems.append(_SENTENCES[state].format(**facts))
    return owners, problems


def _without_ledger(library: Path, known: set[str]) -> tuple[list[Listed], list[str]]:
    """Unfinished trainings under other names than the `known`: of concepts without columns, which no ledger lists."""
    found, sentences = [], []
    for folder in sorted(library.glob(f"*{TRAINING}")):
        name, saved = folder.name.removesuffix(TRAINING), sorted(folder.glob(f"step-*{SUFFIX}"))
        if name in known or not saved or not NAME.fullmatch(name):
            continue
        try:
            recipe = read_header(saved[-1], **CHECKPOINT)["recipe"]
            facts = {key: recipe[key] for key in ("class_word", "form", "rank")}
            if not FINGERPRINT.fullmatch(recipe["base"]):
                raise ValueError(recipe["base"])
        except (SpectralError, KeyError, TypeError, ValueError):
            sentences.append(f"{folder} holds no training that can be read: delete it.")
            continue
        busy = in_training(library, name)
        found.append(Listed(name, "training" if busy else "stopped", None, recipe["base"], **facts))
        if not busy:
            sentences.append(
                f"The training of {name} was stopped: the same command takes it up again, or remove {name}."
            )
    return found, sentences


def _spoken_for(library: Path, ledgers: Mapping[str, tuple[Ledger, tuple[Entry, ...]]]) -> set[Path]:
    """Every file that some line of a ledger has told about, well or badly."""
    lines = (entry for _, entries in ledgers.values() for entry in entries if entry.state != "reserved")
    return {library / f"{name}{SUFFIX}" for entry in lines for name in entry.names}


def fits(card: Mapping[str, Any], ledger: Ledger, entry: Entry) -> bool:
    """Whether the file of `card` is the one that this line of the ledger speaks of."""
    told = (entry.name, entry.slice, ledger.fingerprint)
    return (card["name"], card["slice"], card["base_fingerprint"]) == told


def _state(ledger: Ledger, entry: Entry, path: Path, card: dict[str, Any] | None) -> str:
    if entry.was is not None:
        return "renaming"
    if entry.state == "training":
        return "training" if ledger.in_use(entry.name) else "stopped"
    if entry.state == "reserved":
        return "reserved"
    if card is None:
        return "damaged" if path.exists() else "missing"
    return "done" if fits(card, ledger, entry) else "differs"


_SENTENCES = {
    "stopped": "The training of {name} was stopped: the same command takes it up again, or remove {name} to "
    "free columns {slice}.",
    "renaming": "The rename of {was} to {name} is not finished yet: list again in a moment.",
    "missing": "{path} is gone, but columns {slice} are still its own: import the file again, or remove {name}.",
    "damaged": "{path} cannot be used, and columns {slice} are still its own: remove {name}, then import or "
    "train it again.",
    "differs": "{path} is not the file that was trained in columns {slice}: move it elsewhere, remove {name}, "
    "and import the file you want.",
}


def _stray_sentence(path: Path, card: Mapping[str, Any], owners: Sequence[Listed]) -> str:
    if card["slice"] is None:
        return f"{path} holds a concept {card['name']}: import it, so that its file has its name."
    theirs = [
        f"{owner.name} ({owner.slice})"
        for owner in owners
        if owner.fingerprint == card["base_fingerprint"]
        and owner.slice is not None
        and owner.slice.overlaps(card["slice"])
        and (owner.name, owner.state) != (card["name"], "reserved")
    ]
    if theirs:
        return (
            f"{path} is not in the ledger, and its columns {card['slice']} are those of {', '.join(theirs)}: "
            "keep only one of them in this library."
        )
    return f"{path} is not in the ledger: import it, so that its columns {card['slice']} become its own."


def _of_file(path: Path, card: Mapping[str, Any], state: str) -> Listed:
    identity = card["card"].get("identity")
    return Listed(
        name=path.stem if state == "unlisted" else card["name"],
        state=state,
        slice=card["slice"],
        fingerprint=card["base_fingerprint"],
        base_name=printable(card["base_name"]),
        class_word=printable(card["class_word"]),
        file=path,
        size=card["size"],
        identity=float(identity) if isinstance(identity, int | float) else None,
        identity_by=printable(str(card["card"].get("identity_by", BUNDLED_JUDGES))),
        thumbnail=thumbnail(path.parent, path.stem, card["preview"]),
        form=card["form"],
        rank=card["rank"],
    )


def printable(text: str) -> str:
    """A stranger's text on one line, without letters that would steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def _columns(
    fingerprint: str,
    ledgers: Mapping[str, tuple[Ledger, tuple[Entry, ...]]],
    cards: Mapping[Path, dict[str, Any]],
    owners: Sequence[Listed],
) -> Columns:
    """One base. A ledger of version 1 tells neither name nor width: then the files trained on it do."""
    ledger = ledgers[fingerprint][0] if fingerprint in ledgers else None
    trained = [card for card in cards.values() if card["base_fingerprint"] == fingerprint]
    name = (ledger and ledger.base_name) or next((card["base_name"] for card in trained), None)
    width = (ledger and ledger.width) or min(filter(None, map(width_of, trained)), default=None)
    mine = [replace(o, base_name=o.base_name or name) for o in owners if o.fingerprint == fingerprint]
    placed = sorted((o for o in mine if o.slice is not None), key=lambda o: (o.slice, o.name))
    free = sorted((o for o in mine if o.slice is None), key=lambda o: o.name)
    return Columns(fingerprint, name, width, tuple(placed), tuple(free))


def thumbnail(library: Path, stem: str, preview: bytes | None) -> Path | None:
    """The preview of a concept as a picture file, written once; None if it has none or none can be written."""
    if preview is None:
        return None
    kind = "png" if preview.startswith(b"\x89PNG") else "jpg"
    path = library / ".thumbs" / f"{stem}-{hashlib.sha256(preview).hexdigest()[:12]}.{kind}"
    if not path.exists() or path.stat().st_size != len(preview):
        drop_thumbnails(library, stem)
        try:
            with atomic_write(path) as file:
                file.write(preview)
        except OSError:  # a library that only others may write to is listed all the same
            return None
    return path


def drop_thumbnails(library: Path, stem: str) -> None:
    """Deletes every thumbnail of `stem`; no name has a hyphen, so that of no other concept."""
    for old in (library / ".thumbs").glob(f"{glob.escape(stem)}-*"):
        old.unlink(missing_ok=True)
