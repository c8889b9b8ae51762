"""What can be drawn with or fused: ids for the page, which never says where a file lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from concepts.inventory import Listed, take_stock
from pages.studio import Studio
from spectral_diffusion.errors import InputError, SpectralError
from spectral_diffusion.files import read_header
from spectral_diffusion.slices import NAME

NOTHING = ""  # the bare base


@dataclass(frozen=True)
class Choice:
    """A concept or fused file. `names` are the concepts in it, with their class words and strengths."""

    id: str
    label: str
    path: Path
    names: tuple[str, ...]
    classes: tuple[str, ...]
    strengths: tuple[float, ...]
    base_name: str
    fingerprint: str


def concepts_in(studio: Studio) -> tuple[Listed, ...]:
    """Every concept of the library that has a trustworthy file."""
    studio.furnished()
    if not studio.library.is_dir():
        return ()
    return tuple(listed for listed in take_stock(studio.library).concepts if listed.state == "done")


def choices(studio: Studio) -> list[Choice]:
    """Concepts first, then fused files, those of another base than the loaded one last."""
    found = [*map(_of_concept, concepts_in(studio)), *_fused_files(studio)]
    base = studio.ready
    return sorted(found, key=lambda choice: base is not None and choice.fingerprint != base.fingerprint)


def options(studio: Studio, nothing: str | None = None) -> list[tuple[str, str]]:
    """(label, id) for a drop-down; `nothing` labels the bare base."""
    base, found = studio.ready, [] if nothing is None else [(nothing, NOTHING)]
    for choice in choices(studio):
        other = base is not None and choice.fingerprint != base.fingerprint
        found.append((f"{choice.label} (of base {choice.base_name})" if other else choice.label, choice.id))
    return found


def chosen(studio: Studio, id_: str) -> Choice:
    """The choice of this id. Raises InputError if there is none, or none any more."""
    for choice in choices(studio):
        if choice.id == id_:
            return choice
    raise InputError(f"There is no {safe(id_)} in the library any more: reload the page.")


def fused(studio: Studio, id_: str | None) -> Choice:
    """The fused file of this id. Raises InputError for anything else."""
    if not id_ or not str(id_).startswith("fused:"):
        raise InputError("Choose a fused file first.")
    return chosen(studio, id_)


def with_members(studio: Studio, names: Sequence[str]) -> str:
    """The id of the file that holds exactly these concepts; NOTHING for none.

    Raises InputError if there is no such file.
    """
    if not names:
        return NOTHING
    for choice in choices(studio):
        if set(choice.names) == set(names):
            return choice.id
    raise InputError(f"No file of the library holds {', '.join(map(safe, names))}: fuse them first.")


def safe(text: object) -> str:
    """Foreign text, short enough for a sentence."""
    return str(text)[:40]


def _of_concept(listed: Listed) -> Choice:
    assert listed.file is not None, "a concept that is done has a file"
    return Choice(
        f"concept:{listed.name}",
        f"<{listed.name}> {listed.class_word}",
        listed.file,
        (listed.name,),
        (listed.class_word or "",),
        (1.0,),
        listed.base_name or "",
        listed.fingerprint,
    )


def _fused_files(studio: Studio) -> Iterator[Choice]:
    from spectral_diffusion.fused_file import KIND, VERSION

    for path in sorted(studio.fused.glob("*.safetensors")):
        if not NAME.fullmatch(path.stem):
            continue
        try:
            header = read_header(path, kind=KIND, version=VERSION)
            members = [(m["name"], m["class_word"], float(m["strength"])) for m in header["members"]]
            base = (str(header["base_name"]), str(header["base_fingerprint"]))
        except (SpectralError, OSError, KeyError, TypeError, ValueError):
            continue  # damaged or foreign: drawing with it could only fail
        names, classes, strengths = zip(*members, strict=True) if members else ((), (), ())
        label = f"{path.stem}: {', '.join(f'<{name}>' for name in names)}"
        yield Choice(f"fused:{path.stem}", label, path, names, classes, strengths, *base)
