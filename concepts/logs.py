"""The log of a training: one JSON object a line, for programs and for the page; TensorBoard beside it if asked.

Lines are `{"step": …, "loss": …, "concept": …, "prior": …, "attention": …, "grad_norm": …, "rates": {…},
"seconds": …}` for a step and `{"event": "start" | "resume" | "preview" | "note" | "stopped" | "failed" |
"done", "step": …, …}` for all else. A training that goes on first drops the lines of steps it will do again,
so that each step stands once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spectral_diffusion.errors import InputError
from spectral_diffusion.files import atomic_write

NAME = "log.jsonl"


class Log:
    """Appends to `<folder>/log.jsonl`, line by line; a muted log (no folder) writes nothing."""

    def __init__(self, folder: Path | None, tensorboard: bool = False) -> None:
        self.path = folder and folder / NAME
        self._board = _board(folder) if folder and tensorboard else None

    def rewind(self, step: int) -> None:
        """Drops what was written after `step`, and a line that a kill cut off."""
        if self.path and self.path.exists():
            kept = [line for line in read(self.path) if line.get("step", 0) <= step]
            with atomic_write(self.path) as file:
                file.write("".join(f"{json.dumps(line)}\n" for line in kept).encode())

    def clear(self) -> None:
        """Forgets all that was written."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def write(self, **facts: Any) -> None:
        """One line, on the disk before this returns as far as the process is concerned."""
        if not self.path:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**facts, "time": round(time.time(), 3)}, ensure_ascii=False) + "\n")
        if self._board:
            self._draw(facts)

    def close(self) -> None:
        if self._board:
            self._board.close()

    def _draw(self, facts: dict[str, Any]) -> None:
        flat = {k: v for k, v in facts.items() if k not in ("step", "seconds", "event")}
        flat |= {f"rate/{part}": rate for part, rate in flat.pop("rates", {}).items()}
        for key, value in flat.items():
            if isinstance(value, int | float):
                self._board.add_scalar(key, value, facts.get("step", 0))


@contextmanager
def opened(folder: Path | None, tensorboard: bool = False) -> Iterator[Log]:
    """A log that is closed at the end. Raises InputError if TensorBoard is asked for and not installed."""
    log = Log(folder, tensorboard)
    try:
        yield log
    finally:
        log.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; an unfinished last line is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("TensorBoard is not installed: pip install tensorboard, or leave it out.") from error
    return SummaryWriter(str(folder / "tensorboard"))
