"""What is made once and kept: a file of tensors each, below the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spectral_diffusion.errors import DamagedFile, InputError, SpectralError
from spectral_diffusion.files import load_tensors, save_tensors
from spectral_diffusion.spectrum import default_cache_dir


def folder_of(kind: str) -> Path:
    """Where the files of one kind lie."""
    return default_cache_dir().parent / kind


def once(
    path: Path,
    kind: str,
    header: Mapping[str, Any],
    names: Collection[str],
    make: Callable[[], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The tensors in `path`, if it has this header and just these names; else what `make` gives, kept there.

    A damaged file is made again: a cache is only a convenience.
    """
    if path.exists():
        try:
            tensors, found = load_tensors(path, kind=kind)
            if found == header and tensors.keys() == set(names):
                return tensors
        except (DamagedFile, InputError):
            pass  # made again below
    made = make()
    save_tensors(path, made, dict(header), kind=kind)
    return made


def kept(
    path: Path,
    kind: str,
    shapes: Mapping[str, tuple[int, ...]],
    make: Callable[[], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The fp32 tensors in the file `path` of that kind, if they have these shapes, else what `make` gives, put there.

    As `once`, for what is told by its content: nothing but the numbers is kept, with a checksum. A damaged file, and a
    disk that cannot be written, cost a warning and time, not the training.
    """
    if path.exists():
        try:
            found = _read(path, kind, shapes)
            os.utime(path)  # used now: see `prune`
            return found
        except (SpectralError, OSError) as error:
            warnings.warn(f"{error} It is encoded again.", stacklevel=2)
    made = make()
    try:
        save_tensors(path, made, {"sha256": _checksum(made)}, kind=kind)
    except OSError as error:
        warnings.warn(f"{path.parent} cannot be written ({error.strerror}): nothing is cached.", stacklevel=2)
    return made


def prune(folder: Path, limit: int) -> None:
    """Removes the least recently used entries until `folder` holds at most `limit` bytes."""
    entries = []
    for path in folder.glob("*.safetensors"):
        try:
            entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        except FileNotFoundError:  # another process prunes too
            continue
    excess = sum(size for _, size, _ in entries) - limit
    for _, size, path in sorted(entries):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size


def _read(path: Path, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    tensors, header = load_tensors(path, kind=kind, expected=lambda _: dict(shapes))
    if header.get("sha256") != _checksum(tensors):
        raise DamagedFile(f"{path} is damaged: its numbers are not those that were written.")
    return tensors


def _checksum(tensors: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].cpu().contiguous().numpy())
    return digest.hexdigest()
