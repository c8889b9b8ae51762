"""The drawings: fetched as npm packages, checked, and read as RGBA images.

Two separate functions hand them out, so that a test can prove the split: `base_art` (Noto, Fluent)
may reach the weights of the bundled base; `unseen_art` (Twemoji) never does and is what the sample
concepts are made of.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Package:
    """One npm package of openly licensed drawings, pinned by the SHA-256 of its tarball."""

    spec: str
    sha256: str
    images: str  # folder of the drawings inside the tarball
    suffix: str
    licence: str


PACKAGES = {
    "noto": Package(
        "emoji-datasource-google@16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "package/img/google/64",
        ".png",
        "Apache-2.0",
    ),
    "fluent": Package(
        "@lobehub/fluent-emoji-3d@1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "package/assets",
        ".webp",
        "MIT",
    ),
    "twemoji": Package(
        "emoji-datasource-twitter@16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "package/img/twitter/64",
        ".png",
        "CC-BY-4.0",
    ),
}
LOOKS = {"drawing": "noto", "photo": "fluent"}  # the word a caption uses -> the art it shows

# noun -> Unicode code of the drawing that the base knows under this word
NOUNS = {
    "cat": "1f431", "dog": "1f436", "fox": "1f98a", "bear": "1f43b", "panda": "1f43c",
    "koala": "1f428", "lion": "1f981", "cow": "1f42e", "pig": "1f437", "frog": "1f438",
    "monkey": "1f435", "chicken": "1f414", "penguin": "1f427", "owl": "1f989", "rabbit": "1f430",
    "unicorn": "1f984", "octopus": "1f419", "crab": "1f980", "fish": "1f420", "whale": "1f433",
    "turtle": "1f422", "snail": "1f40c", "bee": "1f41d", "butterfly": "1f98b", "duck": "1f986",
    "elephant": "1f418", "apple": "1f34e", "pizza": "1f355", "burger": "1f354", "cake": "1f370",
    "mushroom": "1f344", "car": "1f697", "rocket": "1f680", "boat": "26f5", "robot": "1f916",
    "snowman": "26c4", "guitar": "1f3b8", "crown": "1f451", "star": "2b50", "cactus": "1f335",
}  # fmt: skip

# sample concept -> (class word, Twemoji code); pairs of dogs, cats and bears, a robot, a rocket. The grey dog is drawn
# as a wolf and the striped cat as a tiger: the other dogs and cats there are whole animals, and the base knows faces.
SAMPLES = {
    "rex": ("dog", "1f436"),
    "dot": ("dog", "1f43a"),
    "mia": ("cat", "1f431"),
    "nox": ("cat", "1f42f"),
    "bolt": ("robot", "1f916"),
    "zoom": ("rocket", "1f680"),
    "bruno": ("bear", "1f43b"),
    "yuki": ("bear", "1f43b-200d-2744-fe0f"),
}


def default_art_folder() -> Path:
    """Where the fetched packages live: beside the build, outside the repository's history."""
    return Path("outputs/toybox/art")


def fetch(folder: Path) -> None:
    """Downloads and unpacks every art package into `folder`, checking each tarball's SHA-256.

    Needs `npm` (packing only: nothing of the packages is run).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, package in PACKAGES.items():
        if (folder / name).is_dir():
            continue
        out = subprocess.run(
            ["npm", "pack", package.spec, "--json", "--pack-destination", str(folder)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        # npm lists one entry per spec, in an array or, for newer versions, keyed by name
        listed = json.loads(out)
        entry = listed[0] if isinstance(listed, list) else next(iter(listed.values()))
        tarball = folder / entry["filename"].replace("@", "").replace("/", "-")
        digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise SystemExit(f"{tarball.name}: sha256 is {digest}, expected {package.sha256}")
        partial = folder / f"{name}.partial"
        with tarfile.open(tarball) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(folder / name)
        tarball.unlink()


def drawing(folder: Path, source: str, code: str) -> Image.Image:
    """One drawing, RGBA, cropped to its opaque pixels (so that size means the visible size)."""
    package = PACKAGES[source]
    with Image.open(folder / source / package.images / f"{code}{package.suffix}") as image:
        rgba = image.convert("RGBA")
    return rgba.crop(rgba.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox())


def codes(folder: Path, source: str) -> list[str]:
    """Unicode codes of every drawing of a source, sorted; skin-tone variants left out (near twins)."""
    package = PACKAGES[source]
    found = (folder / source / package.images).glob(f"*{package.suffix}")
    tones = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
    return sorted(f.stem for f in found if not tones & set(f.stem.split("-")))


def base_art(folder: Path) -> list[tuple[str, str]]:
    """(source, code) of every drawing that training of the bundled base may see."""
    return [(s, c) for s in ("noto", "fluent") for c in codes(folder, s)]


def unseen_art(folder: Path) -> list[tuple[str, str]]:
    """(source, code) of every drawing kept out of the base: sample concepts and held-out checks."""
    return [("twemoji", c) for c in codes(folder, "twemoji")]
