"""Drawing in this process, on the base that is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from spectral_diffusion.base import Base
from spectral_diffusion.cast import look, made_with
from spectral_diffusion.engines import Item, Outcome, Task
from spectral_diffusion.errors import SpectralError
from spectral_diffusion.fused import Fused
from spectral_diffusion.metadata import encoded
from spectral_diffusion.request import Picture
from spectral_diffusion.stage import Stage, staged


class Worker:
    """Draws tasks one after the other; concepts are baked anew only when a task's look differs from the last."""

    def __init__(
        self, base: Base, fused: Fused | None = None, kind: str = "png", metadata: bool = True
    ) -> None:
        self.base, self.fused, self.kind, self.metadata = base, fused, kind, metadata
        self._stack = ExitStack()
        self._stage: Stage | None = None
        self._look: Any = None
        self.bakings = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._strip()

    def work(self, task: Task) -> list[Outcome]:
        """Outcomes of all items. If they fail together they are tried one by one, so that one bad row spoils
        no other. A full memory and our own bugs are reasons too; only an interrupt passes."""
        try:
            return self._drawn(task)
        except Exception as error:
            if len(task) > 1:
                return [outcome for item in task for outcome in self.work((item,))]
            return [Outcome(task[0].id, None, _reason(error))]

    def _drawn(self, task: Task) -> list[Outcome]:
        request, shots = task[0].request, tuple(item.shot for item in task)
        images = self._staged(task[0]).draw(request, shots)
        outcomes = []
        for i, (item, image) in enumerate(zip(task, images, strict=True)):
            facts = made_with(self.base, self.fused, item.request)
            picture = Picture(image, item.shot.seed, item.request, facts, shots, i, self.base.file)
            outcomes.append(Outcome(item.id, encoded(picture, self.kind, self.metadata)))
        return outcomes

    def _staged(self, item: Item) -> Stage:
        wanted = look(item.request)
        if self._stage is None or wanted != self._look:
            self._strip()
            self._stage = self._stack.enter_context(staged(self.base, self.fused, item.request))
            self._look = wanted
            self.bakings += 1
        return self._stage

    def _strip(self) -> None:
        self._stage = None
        self._stack.close()


class LocalEngine:
    """One worker in this process."""

    def __init__(
        self, base: Base, fused: Fused | None = None, kind: str = "png", metadata: bool = True
    ) -> None:
        self._make = lambda: Worker(base, fused, kind, metadata)

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """See `Engine.run`; the base is restored when the iterator ends or is closed."""
        with self._make() as worker:
            for task in tasks:
                yield from worker.work(task)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, SpectralError) else f"{type(error).__name__}: {text}"
