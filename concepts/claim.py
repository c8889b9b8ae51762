"""A name of a library, held by the process that trains it, whatever the base and the form.

The ledger holds names of one base; the files of a training (`<name>-training`, `<name>.safetensors`) are the
library's, which may have several.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from spectral_diffusion.errors import NameTaken
from spectral_diffusion.ledger import HOLD_SECONDS, check_name


@contextmanager
def claimed(library: Path | str, name: str, seconds: float = HOLD_SECONDS) -> Iterator[None]:
    """Keeps every other training of `name` out of `library`. Raises NameTaken while there is one."""
    folder = Path(library).resolve() / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"training.{check_name(name)}.lock", thread_local=False)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise NameTaken(f"{name} is being trained right now by another process.") from error
    try:
        yield
    finally:
        lock.release()


def in_training(library: Path | str, name: str) -> bool:
    """Whether a process trains `name` in `library` right now."""
    try:
        with claimed(library, name, seconds=0):
            return False
    except NameTaken:
        return True
    except OSError:  # nobody trains into a folder that cannot be written to
        return False
