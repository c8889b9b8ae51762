"""A zip of photos, unpacked into a folder that is gone afterwards, or refused before anything is written.

The listing is checked first: how many files, how large, how much they claim to shrink, what they are called.
Only what a training folder can hold is unpacked, and never more bytes than the listing said.
"""

from __future__ import annotations

import errno
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from spectral_diffusion.errors import InputError

MAX_FILES = 5_000
MAX_BYTES = 4 * 2**30
MAX_FILE_BYTES = 2**28
# Photos hardly shrink; a flat mask may by some hundreds, so small files are free to.
MAX_RATIO, FREE_BYTES = 200, 2**22
WANTED = frozenset({".png", ".jpg", ".jpeg", ".webp", ".txt", ".caption", ".jsonl"})
_CHUNK = 2**20
_ENCRYPTED = 0x1


@contextmanager
def unpacked(source: Path | str) -> Iterator[Path]:
    """The folder of `source`: itself if it is a folder, else a zip's content in a temporary folder.

    Inside the block, refusals that name a file of the temporary folder name it as a part of the zip instead.
    Raises InputError for what is neither, for a zip that is damaged or locked, and for one that would write
    outside of its folder, holds links, or is too large.
    """
    source = Path(source)
    if source.is_dir():
        yield source
        return
    if not source.is_file() or source.suffix.lower() != ".zip":
        raise InputError(f"{source} is not a folder or a zip: give the folder that holds the photos.")
    with tempfile.TemporaryDirectory(prefix="spectral-photos-") as folder:
        try:
            _unpack(source, Path(folder))
            yield Path(folder)
        except InputError as error:
            if folder not in str(error):
                raise
            raise InputError(str(error).replace(folder, str(source))) from error


def _unpack(source: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            for entry, name in _checked(source, archive.infolist()):
                _write(archive, entry, folder / name)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error) as error:
        raise InputError(f"{source} is no zip or is damaged ({error}): pack or copy it again.") from error
    except NotImplementedError as error:
        raise InputError(f"{source} is packed in a way not read here ({error}): pack a plain zip.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # no fault of the zip's
            raise
        if error.filename is None:  # a damaged listing points outside of the file
            raise InputError(f"{source} is damaged ({error.strerror}): pack or copy it again.") from error
        raise InputError(
            f"{source} cannot be unpacked here ({error.strerror}): unpack it yourself."
        ) from error


def _checked(source: Path, entries: list[zipfile.ZipInfo]) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The entries to unpack and where to; every entry is checked, the unwanted ones too."""
    if not all(entry.filename for entry in entries):
        raise InputError(f"{source} is damaged (a file in it has no name): pack or copy it again.")
    files = [entry for entry in entries if not entry.is_dir()]
    if len(files) > MAX_FILES:
        raise InputError(f"{source} holds {len(files)} files, more than {MAX_FILES}: unpack what you need.")
    if (total := sum(entry.file_size for entry in files)) > MAX_BYTES:
        raise InputError(
            f"{source} would unpack to {total / 2**30:.1f} GB, more than {MAX_BYTES // 2**30}: it is not unpacked."
        )
    wanted, seen = [], set()
    for entry in files:
        name = _safe_name(source, entry)
        _check_entry(source, entry)
        if name.suffix.lower() not in WANTED or any(p.startswith((".", "__MACOSX")) for p in name.parts):
            continue
        if (key := str(name).lower()) in seen:
            raise InputError(f"{source} holds {name} twice: pack it again.")
        seen.add(key)
        wanted.append((entry, name))
    return wanted


def _safe_name(source: Path, entry: zipfile.ZipInfo) -> PurePosixPath:
    name = PurePosixPath(entry.filename.replace("\\", "/"))
    drive = re.match(r"[A-Za-z]:", entry.filename)
    if name.is_absolute() or drive or ".." in name.parts or not entry.filename.isprintable():
        raise InputError(
            f"{source} holds {entry.filename!r}, which would be written outside of its folder: it is not unpacked."
        )
    return name


def _check_entry(source: Path, entry: zipfile.ZipInfo) -> None:
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InputError(f"{source} holds the link {entry.filename}: pack the files themselves.")
    if entry.flag_bits & _ENCRYPTED:
        raise InputError(f"{source} is locked by a password: pack it without one.")
    shrunk = entry.file_size > MAX_RATIO * max(entry.compress_size, 1)
    if entry.file_size > MAX_FILE_BYTES or (entry.file_size > FREE_BYTES and shrunk):
        raise InputError(
            f"{source} holds {entry.filename}, which would unpack to {entry.file_size / 2**20:.0f} MB from "
            f"{entry.compress_size / 2**20:.1f}: no photo does, it is not unpacked."
        )


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as packed, path.open("xb") as file:
        left = entry.file_size
        while chunk := packed.read(_CHUNK):
            left -= len(chunk)
            if left < 0:  # the listing lied
                raise zipfile.BadZipFile(f"{entry.filename} is longer than listed")
            file.write(chunk)
