"""One request drawn in the background: batch after batch, with previews on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pages.background import telling, turn
from pages.studio import Studio
from pages.watch import in_words

if TYPE_CHECKING:
    from spectral_diffusion.base import Base
    from spectral_diffusion.fused import Fused
    from spectral_diffusion.request import Request


@dataclass(frozen=True)
class News:
    """How a drawing stands. `files` are all pictures so far, saved."""

    done: int = 0
    total: int = 0
    seconds: float = 0.0
    preview: Image.Image | None = None
    files: tuple[Path, ...] = ()

    @property
    def over(self) -> bool:
        """Whether all pictures are there; their last step is done some time before."""
        return bool(self.files) and self.done == self.total

    @property
    def said(self) -> str:
        """In words."""
        if not self.done:
            return "Waiting for the base, or for whoever is drawing now…"
        left = self.seconds / self.done * (self.total - self.done)
        return f"Step {self.done} of {self.total}, {in_words(left)} left" if left else "Done."


def drawing(
    studio: Studio, request: Request, fused: Fused | None, folder: Path, stop: threading.Event
) -> Iterator[News]:
    """Draws `request` into files of `folder`, yielding whenever there is something new.

    Pictures appear as each batch of them is done. Setting `stop` interrupts at the next step, with Interrupted;
    the base is afterwards as it was. Raises as `generate` does.
    """

    def work(tell: Callable[[News], None]) -> None:
        tell(News())
        base = studio.base()
        with turn(studio.lock, lambda: tell(News())):
            _draw(base, request, fused, folder, tell)

    for several in telling(work, stop):
        # only the latest is of interest, but a preview that was passed over is
        seen = next((news.preview for news in reversed(several) if news.preview), None)
        yield replace(several[-1], preview=seen)


def _draw(
    base: Base, request: Request, fused: Fused | None, folder: Path, tell: Callable[[News], None]
) -> None:
    from spectral_diffusion.foresight import foreseen
    from spectral_diffusion.generate import generate, save

    news, began = News(), time.monotonic()

    def say(**changes: object) -> None:
        nonlocal news
        news = replace(news, **{"preview": None, **changes})
        tell(news)

    parts, steps = _batches(request), sum(request.passes())
    for number, part in enumerate(parts):

        def step(done: int, of: int, before: int = number * steps) -> None:
            say(done=before + done, total=len(parts) * steps, seconds=time.monotonic() - began)

        with foreseen(base.pipeline, part.guidance, lambda image: say(preview=image)):
            pictures = generate(base, part, fused, step)
        say(files=(*news.files, *(save(picture, folder) for picture in pictures)))


def _batches(request: Request) -> list[Request]:
    """The request in parts that are drawn at once; the seeds count on, so the pictures are those of the whole."""
    starts = range(0, request.count, request.batch)
    return [
        replace(request, seed=request.seed + i, count=min(request.batch, request.count - i)) for i in starts
    ]
