"""What comes in and what goes out: uploads are copied under names of ours, pictures to where the server serves."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from concepts.archive import unpacked
from concepts.pictures import ACCEPTED, FORMATS
from spectral_diffusion.errors import InputError
from spectral_diffusion.files import atomic_write

PHOTOS = [*FORMATS, ".zip", ".txt", ".caption"]
MOST_FILES = 500
MOST_BYTES = 2**30  # of one upload, all files together
_FREE = 2**30  # bytes of disk that an upload leaves alone
_ODD = re.compile(r"[^A-Za-z0-9._ -]+")


def safe_name(name: str) -> str:
    """A file name that means nothing but itself: no folder, no dot in front, no odd letters."""
    stem, suffix = os.path.splitext(Path(name.replace("\\", "/")).name)
    stem = _ODD.sub("_", stem).strip(" .-") or "file"
    return f"{stem[:80]}{suffix.lower()}"


def take_photos(uploaded: Sequence[str], folder: Path) -> None:
    """Copies photos, captions and the content of zips into `folder`, nothing over anything.

    Raises InputError for what no training reads, too many files, or no room; zips as `archive.unpacked` does.
    """
    files = [Path(file) for file in uploaded]
    if strange := [file.name for file in files if file.suffix.lower() not in PHOTOS]:
        raise InputError(
            f"{safe_name(strange[0])} is no photo: {ACCEPTED} are read, captions (.txt) and a zip."
        )
    for file in files:
        if file.suffix.lower() == ".zip":
            with unpacked(file) as inside:
                _copy_all(inside, folder)
        else:
            _copy(file, folder / safe_name(file.name))


def _copy_all(source: Path, folder: Path) -> None:
    """A tree as it is, since its layout tells captions and masks; its names were checked by `unpacked`."""
    for file in sorted(source.rglob("*")):
        if file.is_file() and not file.is_symlink():
            _copy(file, folder / file.relative_to(source))


def _copy(file: Path, target: Path) -> None:
    root = target.parent
    root.mkdir(parents=True, exist_ok=True)
    if len(list(root.iterdir())) >= MOST_FILES:
        raise InputError(f"These are more than {MOST_FILES} files: a concept needs five to thirty photos.")
    if shutil.disk_usage(root).free < file.stat().st_size + _FREE:
        raise InputError("The disk is nearly full: free some space first.")
    shutil.copyfile(file, _unused(target))


def _unused(path: Path) -> Path:
    return next(p for p in _numbered(path) if not p.exists())


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 1
    while True:
        number += 1
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def served(file: Path) -> str:
    """A copy of `file`, byte for byte, in the folder of uploads, which alone is served; equal files share one."""
    return _served(file.read_bytes(), file.name)


def served_picture(image: Image.Image) -> str:
    """A picture as a file of that folder.

    Gradio's own copy of a picture is written anew, in place, each time it is shown: who is just fetching it gets
    half of it.
    """
    blob = io.BytesIO()
    image.save(blob, "PNG")
    return _served(blob.getvalue(), "picture.png")


def _served(content: bytes, name: str) -> str:
    copy = uploads() / "served" / hashlib.sha256(content).hexdigest()[:32] / name
    if copy.exists():
        os.utime(copy)  # old files are cleared away
    else:
        with atomic_write(copy) as file:
            file.write(content)
    return str(copy)


def uploads() -> Path:
    """The server's own folder of uploads and served files, set before gradio is imported."""
    return Path(os.environ["GRADIO_TEMP_DIR"])
