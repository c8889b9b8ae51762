"""Stopping a training between two steps: Ctrl+C, SIGTERM, or a file named `stop` in its folder."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spectral_diffusion.errors import SpectralError

STOP_FILE = "stop"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SpectralError):
    """The training was asked to stop, and did so after saving; the same command goes on."""


class Wish:
    """Whether somebody asked to stop."""

    def __init__(self, folder: Path) -> None:
        self.file, self.signalled = folder / STOP_FILE, False

    @property
    def stop(self) -> bool:
        return self.signalled or self.file.exists()


@contextmanager
def stoppable(folder: Path) -> Iterator[Wish]:
    """While active, the first signal becomes a wish; a second one acts at once, as it did before.

    The stop file is removed at the end. Outside the main thread only the file is watched,
    since Python lets no other thread take signals.
    """
    wish = Wish(folder)
    before = {}

    def remember(number: int, frame: object) -> None:
        wish.signalled = True
        for taken, handler in before.items():
            signal.signal(taken, handler)

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, remember) for number in _SIGNALS}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        wish.file.unlink(missing_ok=True)
