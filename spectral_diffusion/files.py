"""Files of ours: safetensors with one JSON header, written whole or not at all, read strictly.

Contract. A file is complete or absent: it is written beside its place and renamed. The same tensors and
header give the same bytes in every process. What is read is checked before it is used: kind, version,
names, shapes, finite numbers. Pickles are recognised by name and by magic bytes and never opened.
Importing this module does not import torch.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from spectral_diffusion.errors import DamagedFile, InputError
from spectral_diffusion.foreign import refuse_foreign

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

HEADER_KEY = "spectral"


@contextmanager
def atomic_write(path: Path | str) -> Iterator[IO[bytes]]:
    """Yield a binary file that appears at `path` when the block ends, and leaves nothing if it fails.

    The folder is made if missing. The data is on the disk before the name is: a power cut leaves the old
    file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path | str, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that appears as `path` when the block ends, and leaves nothing if it fails.

    Raises InputError if `path` exists already, unless it is to `replace` that folder, which was made by us.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise InputError(f"{path} exists already: give the name of a new folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    draft.mkdir()
    try:
        yield draft
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        draft.replace(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def save_tensors(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    *,
    kind: str,
    version: int = 1,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `tensors` (any dtype safetensors has) and the JSON-able `header` to `path`, atomically.

    `metadata` are further plain string entries, for other programs (ModelSpec).
    Raises InputError if a number is not finite (a training that diverged), before anything is written.
    """
    from safetensors.torch import save

    if bad := _first_not_finite(tensors):
        raise InputError(
            f"{path} is not written: {bad} holds a number that is not finite (training diverged)."
        )
    card = json.dumps({"kind": kind, "version": version, **header}, ensure_ascii=False, sort_keys=True)
    blob = save({key: t.detach().cpu().contiguous() for key, t in tensors.items()})
    with atomic_write(path) as file:
        for part in _with_metadata(blob, {HEADER_KEY: card, **(metadata or {})}):
            file.write(part)


def read_header(path: Path | str, *, kind: str, version: int = 1) -> dict[str, Any]:
    """The header of one of our files, without reading its tensors.

    Raises InputError if there is no such file or it is not of the asked kind, DamagedFile otherwise.
    """
    with _opened(Path(path), framework="np") as file:  # which does not import torch
        return _checked_header(Path(path), file.metadata(), kind, version)


def load_tensors(
    path: Path | str,
    *,
    kind: str,
    version: int = 1,
    expected: Callable[[dict[str, Any]], Shapes] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors, in the dtype of the file, and the header.

    `expected` maps the header to the exact names and shapes the file must hold; it may raise KeyError,
    TypeError or ValueError for a header that makes no sense. Raises as `read_header` does, and DamagedFile
    for a missing or extra tensor, a wrong shape, or a number that is not finite.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _checked_header(path, file.metadata(), kind, version)
        if expected is not None:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            check_shapes(path, found, _ask(path, expected, header))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if bad := _first_not_finite(tensors):
        raise DamagedFile(f"{path} is damaged: {bad} holds a number that is not finite.")
    return tensors, header


def check_shapes(path: Path | str, found: Shapes, expected: Shapes) -> None:
    """Raise DamagedFile unless `found` has exactly the names and shapes of `expected`."""
    if missing := sorted(expected.keys() - found.keys()):
        raise DamagedFile(f"{path} is damaged: {_listed(missing)} missing.")
    if extra := sorted(found.keys() - expected.keys()):
        raise DamagedFile(f"{path} is damaged: {_listed(extra)} unexpected.")
    for key, shape in expected.items():
        if tuple(found[key]) != tuple(shape):
            raise DamagedFile(f"{path} is damaged: {key} is {list(found[key])}, expected {list(shape)}.")


@contextmanager
def _opened(path: Path, framework: str = "pt") -> Iterator[Any]:
    """The file as a `safe_open` handle; every failure to open is one sentence."""
    from safetensors import SafetensorError, safe_open

    refuse_foreign(path)
    try:
        file = safe_open(path, framework=framework)
    except SafetensorError as error:
        raise DamagedFile(_open_failure(path, str(error))) from error
    with file:
        yield file


def _open_failure(path: Path, reason: str) -> str:
    if "not fully covered" in reason or "invalid header length" in reason or "too small" in reason:
        return f"{path} is truncated or altered: copy or make it again."
    return f"{path} is not a safetensors file."


def _checked_header(
    path: Path, metadata: Mapping[str, str] | None, kind: str, version: int
) -> dict[str, Any]:
    text = (metadata or {}).get(HEADER_KEY)
    if text is None:
        raise InputError(f"{path} was not made by spectral-diffusion: it is no {kind} file.")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: its header is not JSON.") from error
    if not isinstance(header, dict):
        raise DamagedFile(f"{path} is damaged: its header is not a JSON object.")
    if (found := header.pop("kind", None)) != kind:
        raise InputError(f"{path} is a {found} file, not a {kind} file.")
    if (found := header.pop("version", None)) != version:
        raise DamagedFile(f"{path} has {kind} format version {found}; this program reads version {version}.")
    return header


def _ask(path: Path, expected: Callable[[dict[str, Any]], Shapes], header: dict[str, Any]) -> Shapes:
    try:
        return expected(header)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFile(f"{path} is damaged: its header makes no sense ({error}).") from error


def _with_metadata(blob: bytes, metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Put sorted metadata into a safetensors blob.

    safetensors itself writes metadata in hash order, which differs from process to process; our files are
    compared by hash.
    """
    end = 8 + int.from_bytes(blob[:8], "little")
    yield from packed_header({"__metadata__": dict(sorted(metadata.items())), **json.loads(blob[8:end])})
    yield memoryview(blob)[end:]


def packed_header(index: Mapping[str, Any]) -> Iterator[bytes]:
    """The beginning of a safetensors file: the length of its header, and the header."""
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensor data stays aligned to 8 bytes
    yield len(text).to_bytes(8, "little")
    yield text


def finite(tensor: Tensor) -> bool:
    """Whether no number of a tensor (of any shape, real) is NaN or infinite.

    The extremes tell, in one pass that keeps NaN: 30 times faster than `isfinite` on a CPU, which counts for 4 GB.
    """
    return tensor.numel() == 0 or all(extreme.isfinite().item() for extreme in tensor.detach().aminmax())


def _first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    return next((key for key, t in tensors.items() if t.is_floating_point() and not finite(t)), None)


def _listed(keys: list[str], most: int = 3) -> str:
    names = ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
    return f"{names} {'is' if len(keys) == 1 else 'are'}"


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # only POSIX lets a folder be opened and synced
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
