"""Training progress in the terminal: stage, bar, loss, time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_STAGES = {
    "spectrum": "taking the spectrum",
    "neutral": "looking at what plain prompts feed",
    "prior": "asking the base (prior)",
    "train": "training",
    "measure": "measuring",
}


@contextmanager
def training_progress(name: str, shown: bool = True) -> Iterator:
    """Yields a `concepts.trainer.Report` that draws on stderr, if it is to be shown at all."""
    columns = (
        TextColumn(f"[bold]{name}[/] {{task.description}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=True), disable=not shown)
    tasks: dict[str, int] = {}

    def report(stage: str, done: int, total: int, loss: float | None) -> None:
        if not tasks:
            bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(_STAGES[stage], total=total, loss="")
        text = "" if loss is None else f"loss {loss:.3f}"
        bars.update(tasks[stage], completed=done, total=total, loss=text)

    try:
        yield report
    finally:
        if tasks:  # a refusal before the first stage is told without an empty line above it
            bars.stop()
