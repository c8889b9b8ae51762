"""The log of a training: one JSON object a line, for programs and for the page; TensorBoard beside it if asked.

Lines are `{"step": …, "loss": …, "concept": …, "prior": …, "attention": …, "grad_norm": …, "rates": {…},
"seconds": …}` for a step (`grad_norm` is null where fp16 overflowed and the step was left out) and
`{"event": "start" | "resume" | "preview" | "note" | "stopped" | "failed" | "done", "step": …, …}` for all else.
A training that goes on first drops the lines of steps it will do again, so that each step stands once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
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
        self._drawn = folder / "tensorboard" if folder and tensorboard else None
        self._board = self._drawn and _board(self._drawn)

    def rewind(self, step: int) -> None:
        """Drops what was written after `step`, and a line that a kill cut off."""
        if self.path and self.path.exists():
            kept = [line for line in read(self.path) if line.get("step", 0) <= step]
            with atomic_write(self.path) as file:
                file.write("".join(map(_line, kept)).encode())
        if self._board:  # what it has of later steps is hidden behind those that come
            self._board.close()
            self._board = _board(self._drawn, step + 1)

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
            file.write(_line({**facts, "time": round(time.time(), 3)}))
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


def _line(facts: Mapping[str, Any]) -> str:
    """One line; a number that is none (the gradient where fp16 overflows) is null, as JSON has no word for it."""
    sound = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}
    return json.dumps(sound, ensure_ascii=False, allow_nan=False) + "\n"


def require_tensorboard() -> type:
    """What writes for TensorBoard. Raises InputError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("TensorBoard is not installed: pip install tensorboard, or leave it out.") from error
    return SummaryWriter


def _board(folder: Path, first: int | None = None) -> Any:
    """A writer; steps from `first` on that are there already are not shown."""
    return require_tensorboard()(str(folder), purge_step=first)
