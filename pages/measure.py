"""What each concept keeps in a fused file, measured and shown: the lower half of the page Fuse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from pages import choices
from pages.background import AT_ONCE, Interrupted, Stops, telling
from pages.jobs import Jobs
from pages.said import connect
from pages.status import status
from pages.studio import Studio


class Measure:
    """The panel and what its buttons do."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.jobs = studio, Jobs(studio.library)
        self._stops = Stops()

    def build(self, file: gr.Dropdown) -> None:
        """Lays the panel out inside of the current column; `file` names the fused file."""
        with gr.Row():
            self.seeds = gr.Slider(1, 8, 1, step=1, label="Pictures of each concept in each place")
            self.steps = gr.Slider(5, 50, 20, step=1, label="Steps")
        with gr.Row():
            self.measure = gr.Button("Measure what each concept keeps", variant="primary")
            self.weights = gr.Button("From the weights only")
            self.cancel = gr.Button("Interrupt")
        self.how = gr.HTML(status(""), elem_classes="said")
        self.report = gr.HTML("")
        measured = [self.how, self.report]
        drawing = {**AT_ONCE, "show_progress": "hidden"}
        connect(self.measure.click, self.judge, [file, self.seeds, self.steps], measured, self.how, **drawing)
        connect(self.weights.click, self.judge_weights, file, measured, self.how, show_progress="minimal")
        connect(self.cancel.click, self.stop, None, self.how, self.how, queue=False)

    def stop(self, request: gr.Request) -> str:
        """Interrupts the measuring of this session."""
        found = self._stops.interrupt(request.session_hash)
        return status("Interrupting after this picture…" if found else "Nothing is being measured.")

    def judge(self, request: gr.Request, id_: str | None, seeds: int, steps: int) -> Iterator[list[Any]]:
        """Draws every concept alone and fused, and shows the report."""
        choice, count = choices.fused(self.studio, id_), 0
        work = functools.partial(self._report, choice, int(seeds), int(steps))
        with self._stops.of(request.session_hash) as stop:
            try:
                for lines in telling(work, stop):
                    count += len(lines)
                    yield [status(f"{count}: {lines[-1]}…"), gr.skip()]
            except Interrupted:
                yield [status("Interrupted."), gr.skip()]
            else:
                yield [status("Measured."), frame(page_of(choice))]

    def judge_weights(self, id_: str | None) -> list[Any]:
        """The report without pictures: from the weights alone."""
        from fusion.report import Wish, write_report
        from spectral_diffusion.fused import Fused

        choice = choices.fused(self.studio, id_)
        page, _ = write_report(Fused.load(choice.path), page_of(choice), None, Wish({}))
        return [status("From the weights only."), frame(page)]

    def photos(self, choice: choices.Choice) -> dict[str, Path]:
        """Photos of the concepts that were taught on this page."""
        found = {name: self.jobs.photos_of(name) for name in choice.names}
        return {name: folder for name, folder in found.items() if folder is not None}

    def _report(self, choice: choices.Choice, seeds: int, steps: int, tell: Callable[[str], None]) -> None:
        from fusion.report import Wish, write_report
        from fusion.run import originals
        from spectral_diffusion.fused import Fused

        fused = Fused.load(choice.path)
        alone = originals(fused, [self.studio.library])
        wish = Wish(self.photos(choice), tuple(range(11, 11 + seeds)), steps, alone)
        tell("waiting for the base, or for whoever is drawing now")
        base = self.studio.base()
        with self.studio.turns.taken(lambda: tell("waiting for whoever is drawing now")) as others_first:

            def next_part(line: str) -> None:  # the base is as it was between two of them
                others_first()
                tell(line)

            write_report(fused, page_of(choice), base, wish, next_part)


def page_of(choice: choices.Choice) -> Path:
    """Where the report of a fused file lies."""
    return choice.path.with_name(f"{choice.path.stem}-report.html")


def frame(page: Path) -> str:
    """A report inside of the page: without scripts, and without a way out."""
    text = escape(page.read_text(encoding="utf-8"), quote=True)
    return f'<iframe class="report" title="Report of the fusion" sandbox="" srcdoc="{text}"></iframe>'
