"""One request drawn in the background: batch after batch, with previews on the way."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pages.background import telling
from pages.studio import Studio
from pages.watch import in_words

if TYPE_CHECKING:
    from spectral_diffusion.base import Base
    from spectral_diffusion.fused import Fused
    from spectral_diffusion.request import Request

SHOWN = 48  # pictures of one drawing that stay on the page; all are files
_WAITING = "Waiting for the base, or for whoever is drawing now…"


@dataclass(frozen=True)
class News:
    """How a drawing stands; `total` is None if it goes on forever. `files` are the latest pictures, saved."""

    done: int = 0
    total: int | None = 0
    seconds: float = 0.0
    preview: Image.Image | None = None
    files: tuple[Path, ...] = ()
    seed: int = 0  # of the first picture
    over: bool = False

    @property
    def said(self) -> str:
        """In words."""
        if self.over:
            return "Done." if self.files else "Skipped: there is no picture."
        if not self.done:
            return _WAITING
        if self.total is None:
            return f"Step {self.done}; it goes on until it is interrupted"
        left = self.seconds / self.done * (self.total - self.done)
        return f"Step {self.done} of {self.total}, {in_words(left)} left"


@dataclass(frozen=True)
class Wishes:
    """What the user asks of a drawing under way: `stop` for all of it, `skip` for the batch."""

    stop: threading.Event
    skip: threading.Event = field(default_factory=threading.Event)


class _Skipped(Exception):
    """The batch is not wanted."""


def drawing(
    studio: Studio, request: Request, fused: Fused | None, folder: Path, wishes: Wishes, forever: bool = False
) -> Iterator[News]:
    """Draws `request` into files of `folder`, yielding whenever there is something new.

    Pictures appear as each batch of them is done; other users' batches come in between. `forever`: on and on,
    with the seeds that follow. Stopping interrupts at the next step, with Interrupted; the base is afterwards as
    it was. Raises as `generate` does.
    """

    def work(tell: Callable[[News], None]) -> None:
        tell(News())
        _Drawing(studio, request, fused, folder, wishes.skip, tell).run(forever)

    for several in telling(work, wishes.stop):
        # only the latest is of interest, but a preview that was passed over is
        seen = next((news.preview for news in reversed(several) if news.preview), None)
        yield replace(several[-1], preview=seen)


class _Drawing:
    """The batches of one request, told about."""

    def __init__(
        self,
        studio: Studio,
        request: Request,
        fused: Fused | None,
        folder: Path,
        skip: threading.Event,
        tell: Callable[[News], None],
    ) -> None:
        self.studio, self.request, self.fused, self.folder = studio, request, fused, folder
        self.skip, self.tell, self.news = skip, tell, News(seed=request.seed)

    def run(self, forever: bool) -> None:
        base = self.studio.base()
        steps = sum(self.request.passes())
        total = None if forever else steps * len(list(_batches(self.request)))
        began = time.monotonic()
        for number, part in enumerate(_batches(self.request, forever)):

            def step(done: int, of: int, before: int = number * steps) -> None:
                if self.skip.is_set():
                    raise _Skipped
                self._say(done=before + done, total=total, seconds=time.monotonic() - began)

            with self.studio.turns.taken(lambda: self._say()), suppress(_Skipped):
                self.skip.clear()
                self._draw(base, part, step)
        self._say(over=True)

    def _draw(self, base: Base, part: Request, step: Callable[[int, int], None]) -> None:
        from spectral_diffusion.foresight import foreseen
        from spectral_diffusion.generate import generate, save

        with foreseen(base.pipeline, part.guidance, lambda image: self._say(preview=image)):
            pictures = generate(base, part, self.fused, step)
        files = (*self.news.files, *(save(picture, self.folder) for picture in pictures))
        self._say(files=files[-SHOWN:])

    def _say(self, **changes: object) -> None:
        self.news = replace(self.news, **{"preview": None, **changes})
        self.tell(self.news)


def _batches(request: Request, forever: bool = False) -> Iterator[Request]:
    """The request in parts that are drawn at once; the seeds count on, so the pictures are those of the whole."""
    size = min(request.batch, request.count)
    for i in itertools.count(0, size):
        if i >= request.count and not forever:
            return
        yield replace(request, seed=request.seed + i, count=size if forever else min(size, request.count - i))
