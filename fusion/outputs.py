"""Where a fusion may be written: every reason against a place is one sentence, before anything is computed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spectral_diffusion.errors import InputError, SpectralError

if TYPE_CHECKING:
    from spectral_diffusion.fused import Fused


def check_output(output: Path) -> None:
    """Refuses a place for a fused file that must not or cannot be written to: a concept file above all."""
    from spectral_diffusion.files import read_header
    from spectral_diffusion.fused_file import KIND, VERSION

    check_place(output)
    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors, which is what a fused file is.")
    if output.is_dir():
        raise InputError(f"{output} is a folder: give the name of a file.")
    if output.exists():
        try:
            read_header(output, kind=KIND, version=VERSION)
        except SpectralError as error:
            raise InputError(f"{output} exists and is no fused file: it is not overwritten.") from error


def check_place(output: Path) -> None:
    """Refuses a file or folder that could not be made where it is to be."""
    with writing(output):
        place = next(folder for folder in output.absolute().parents if folder.exists())
        output.exists()  # a name may be too long
        if not place.is_dir():
            raise InputError(f"{output} cannot be written, for {place} is a file: give another place.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"{output} cannot be written, for {place} may not be: give another place.")


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """What the system has against a place is a user's mistake; a full disk has its own sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(f"{output} cannot be written ({error.strerror}): give another place.") from error


def save(fused: Fused, output: Path) -> None:
    """Writes a fused file."""
    with writing(output):
        fused.save(output)
