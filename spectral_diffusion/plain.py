"""Safetensors files for other programs: plain names, plain metadata, none of our own card.

The same content gives the same bytes in every process. Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral_diffusion.errors import InputError
from spectral_diffusion.files import Shapes, atomic_write, finite, packed_header

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_DTYPES = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32"}


def write_plain(
    path: Path | str,
    shapes: Shapes,
    dtype: torch.dtype,
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file for other programs, atomically, tensor by tensor in the order of the names.

    `read(name)` gives a tensor of the shape in `shapes`; it is stored in `dtype`. However large the file,
    only one tensor is in memory at a time. The same content gives the same bytes.
    Raises InputError if a number is not finite in `dtype`; nothing is written then.
    """
    index: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for key in sorted(shapes):
        first, end = end, end + prod(shapes[key]) * dtype.itemsize
        index[key] = {"dtype": _DTYPES[str(dtype)], "shape": list(shapes[key]), "data_offsets": [first, end]}
    with atomic_write(path) as file:
        for part in packed_header(index):
            file.write(part)
        for key in sorted(shapes):
            file.write(plain_bytes(path, key, read(key), dtype))


def plain_bytes(path: Path | str, key: str, tensor: Tensor, dtype: torch.dtype) -> memoryview:
    """The bytes of a tensor in `dtype`; InputError, naming the file `path`, if a number is not finite."""
    import torch

    stored = tensor.detach().to("cpu", dtype).contiguous()
    if not finite(stored):
        raise InputError(f"{path} is not written: {key} holds a number that is not finite in {dtype}.")
    return stored.reshape(-1).view(torch.uint8).numpy().data


def save_plain(
    path: Path | str, tensors: Mapping[str, Tensor], dtype: torch.dtype, metadata: Mapping[str, str]
) -> None:
    """Write tensors that are in memory already, as `write_plain` does, with the hashes kohya and ModelSpec keep.

    `modelspec.hash_sha256` and `sshs_model_hash` are of the tensors' bytes, which is A1111's AutoV3.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(plain_bytes(path, key, tensors[key], dtype))
    hashes = {"sshs_model_hash": digest.hexdigest(), "modelspec.hash_sha256": f"0x{digest.hexdigest()}"}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    write_plain(path, shapes, dtype, tensors.__getitem__, {**metadata, **hashes})


def autov2(path: Path | str) -> str:
    """A1111's and Civitai's AutoV2 of a file: the first 10 hex digits of its SHA-256."""
    return _sha256(path, 0)[:10]


def autov1(path: Path | str) -> str:
    """A1111's first hash of a file, 8 hex digits: of the 64 KB after its first MB."""
    with Path(path).open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a whole file, kept in the user's cache while its size and time stay: 4 GB take seconds."""
    from spectral_diffusion.spectrum import default_cache_dir

    about = path.stat()
    known = f"{path.absolute()} {about.st_size} {about.st_mtime_ns}"
    kept = default_cache_dir().parent / "hashes" / hashlib.sha256(known.encode()).hexdigest()
    with suppress(OSError):
        if re.fullmatch("[0-9a-f]{64}", text := kept.read_text(encoding="ascii")):
            return text
    digest = _sha256(path, 0)
    with suppress(OSError), atomic_write(kept) as file:  # a cache is only a convenience
        file.write(digest.encode())
    return digest


def autov3(path: Path | str) -> str:
    """Civitai's AutoV3 of a safetensors file, which A1111 shows for a LoRA: 12 hex digits.

    The SHA-256 of all after the header, so that edited metadata do not change it.
    """
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    return _sha256(path, 8 + length)[:12]


def _sha256(path: Path | str, start: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
