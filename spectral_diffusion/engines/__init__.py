"""Engines: who draws the tasks of a batch. All give the same pictures for the same items.

An engine only draws: the manifest and the files belong to the one process that runs the batch, so a worker
that dies can leave nothing half done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from spectral_diffusion.request import Request, Shot


@dataclass(frozen=True)
class Item:
    """One picture to draw."""

    id: str
    row: int
    request: Request
    shot: Shot


Task = tuple[Item, ...]  # items that are drawn at once: alike but for prompts and seeds

LIVES = 2  # workers that may die over a task


@dataclass(frozen=True)
class Outcome:
    """What came of one item: the bytes of its file, or the reason why there are none."""

    id: str
    content: bytes | None
    reason: str | None = None


class Engine(Protocol):
    """Draws tasks. Outcomes come in any order, one for each item."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields outcomes as they come; closing the iterator ends the engine's work."""
        ...


def handed_on(task: Task, deaths: int, reason: str) -> tuple[list[tuple[Task, int]], list[Outcome]]:
    """What becomes of a task over which a worker died for the `deaths`-th time: tasks with their deaths, or failures.

    It is tried again as it was, so that a lost machine changes no bit of its pictures; then item by item, so that
    one which kills its workers takes no other with it.
    """
    if deaths < LIVES:
        return [(task, deaths)], []
    if len(task) > 1:
        return [((item,), deaths - 1) for item in task], []
    return [], [Outcome(item.id, None, reason) for item in task]
