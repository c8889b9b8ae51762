"""Who is taught: Twemoji drawings that the bundled base never saw, most of them in pairs of one class.

The first eight are the bundled samples. A prefix of any length is a cast: of 3, two share a class; of 8, six; of 16,
all but two; of 40, twenty-eight. Photos of the others are rendered like those of the samples, from art that
`python -m tools.toybox fetch` gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spectral_diffusion.errors import InputError
from tools.toybox import art, scenes
from tools.toybox.samples import PLACES

SAMPLES = Path("docs/samples")
_MORE = {
    "pip": ("pig", "1f437"),
    "ham": ("pig", "1f416"),
    "flo": ("rabbit", "1f430"),
    "bun": ("rabbit", "1f407"),
    "kiki": ("monkey", "1f435"),
    "abu": ("monkey", "1f412"),
    "herb": ("car", "1f697"),
    "jeep": ("car", "1f699"),
    "foxy": ("fox", "1f98a"),
    "kiko": ("fox", "1f99d"),
    "mumu": ("cow", "1f42e"),
    "bos": ("cow", "1f402"),
    "nemo": ("fish", "1f420"),
    "tang": ("fish", "1f421"),
    "gala": ("apple", "1f34e"),
    "granny": ("apple", "1f34f"),
    "stella": ("star", "2b50"),
    "nova": ("star", "1f31f"),
    "henn": ("chicken", "1f414"),
    "chick": ("chicken", "1f425"),
    "ship": ("boat", "26f5"),
    "ferry": ("boat", "1f6a2"),
    "leo": ("lion", "1f981"),
    "pan": ("panda", "1f43c"),
    "lala": ("koala", "1f428"),
    "fred": ("frog", "1f438"),
    "otto": ("owl", "1f989"),
    "pingu": ("penguin", "1f427"),
    "octo": ("octopus", "1f419"),
    "krebs": ("crab", "1f980"),
    "olaf": ("snowman", "26c4"),
    "fly": ("mushroom", "1f344"),
}
_ORDER = ("bruno", "yuki", "mia", "nox", "rex", "dot", "bolt", "zoom", *_MORE)


@dataclass(frozen=True)
class Person:
    """One concept to teach."""

    name: str
    class_word: str
    photos: str  # a folder


def bundled() -> list[Person]:
    """The samples that come with the program."""
    return [Person(name, word, str(SAMPLES / name)) for name, (word, _) in art.SAMPLES.items()]


def cast(count: int, folder: Path, art_folder: Path | None = None) -> list[Person]:
    """The first `count` of the cast; photos that are not bundled are rendered into `folder`, once.

    Raises InputError for more than there are, or if the art is not there.
    """
    if count > len(_ORDER):
        raise InputError(f"The cast has {len(_ORDER)} members, not {count}.")
    samples = {person.name: person for person in bundled()}
    return [samples.get(name) or _rendered(name, folder, art_folder) for name in _ORDER[:count]]


def _rendered(name: str, folder: Path, art_folder: Path | None) -> Person:
    word, code = _MORE[name]
    target, source = folder / name, art_folder or art.default_art_folder()
    if not (source / "twemoji").is_dir():
        raise InputError(f"{source} has no Twemoji art: run `python -m tools.toybox fetch` first.")
    (target / "mask").mkdir(parents=True, exist_ok=True)
    seed = 200 + list(_MORE).index(name)  # the samples have 100 and on
    for i, place in enumerate(PLACES, start=1):
        if (target / f"{i}.txt").exists():
            continue
        shown = scenes.portrait(np.random.default_rng([seed, i]), source, "twemoji", code, place, tidy=True)
        shown.mask.save(target / "mask" / f"{i}.png")
        shown.image.save(target / f"{i}.png")
        (target / f"{i}.txt").write_text(f"a photo of <{name}> {place}\n")  # last: the others are whole
    return Person(name, word, str(target))
