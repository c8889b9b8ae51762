"""What is made once and kept: a file of tensors each, below the user's cache folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spectral_diffusion.errors import DamagedFile, InputError
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
