"""All methods on the same concepts, each at its own best strength: the lowest part of the page Fuse."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from pages import choices, commands
from pages.background import AT_ONCE, Interrupted, Stops, telling
from pages.files import served
from pages.jobs import Jobs
from pages.said import connect
from pages.status import status
from pages.studio import Studio
from spectral_diffusion.errors import InputError

if TYPE_CHECKING:
    from fusion.compare import Plan

_COLUMNS = ("method", "strength", "retention", "above chance", "least kept", "leakage added", "text added")


class Comparison:
    """The panel and what its buttons do."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.jobs = studio, Jobs(studio.library)
        self._stops = Stops()

    def build(self, ticked: gr.CheckboxGroup) -> None:
        """Lays the panel out inside of the current column; `ticked` names the concepts."""
        with gr.Accordion("Compare methods on the ticked concepts", open=False) as box:
            # named when the panel is opened: their modules are slow to import
            self.methods = gr.CheckboxGroup(label="Methods (none: all that fit)", choices=[], value=[])
            with gr.Row():
                self.strengths = gr.Textbox("0.5,1", label="Strengths to try")
                self.seeds = gr.Slider(1, 8, 1, step=1, label="Seeds of each half: choosing, reporting")
                self.steps = gr.Slider(5, 50, 20, step=1, label="Steps of each picture")
            with gr.Row():
                self.go = gr.Button("Compare", variant="primary")
                self.cancel = gr.Button("Interrupt")
            self.how = gr.HTML(status(""), elem_classes="said")
            self.table = gr.Dataframe(
                headers=list(_COLUMNS), value=[], interactive=False, type="array", label="Methods, best first",
                visible=False, buttons=[],
            )  # fmt: skip
            self.sheet = gr.Image(
                label="Each method's pictures", visible=False, interactive=False, buttons=["fullscreen"]
            )
        asked = [ticked, self.methods, self.strengths, self.seeds, self.steps]
        shown = [self.how, self.table, self.sheet]
        hidden = {"show_progress": "hidden"}
        connect(box.expand, self.offer, None, self.methods, self.how, **hidden)
        connect(self.go.click, self.compare, asked, shown, self.how, **hidden, **AT_ONCE)
        connect(self.cancel.click, self.stop, None, self.how, self.how, queue=False)

    @staticmethod
    def offer() -> Any:
        """Every method."""
        from fusion.methods import METHODS

        return gr.update(choices=list(METHODS))

    def stop(self, request: gr.Request) -> str:
        """Interrupts the comparison of this session."""
        found = self._stops.interrupt(request.session_hash)
        return status("Interrupting after this picture…" if found else "Nothing is being compared.")

    def compare(
        self,
        request: gr.Request,
        names: list[str],
        methods: list[str],
        strengths: str,
        seeds: int,
        steps: int,
    ) -> Iterator[list[Any]]:
        """Draws what is not drawn yet; shows the table and the sheet at the end."""
        kept = [gr.skip(), gr.skip()]
        with self._stops.of(request.session_hash) as stop:
            try:
                from fusion.compare import Plan

                plan, files = Plan.of(methods, strengths, int(seeds), int(steps)), []
                for several in telling(functools.partial(self._work, names, plan, files), stop):
                    yield [status(f"{several[-1]}…"), *kept]
            except Interrupted:
                yield [status("Interrupted: comparing the same again goes on from here."), *kept]
            else:
                yield [status("Compared."), *_shown(files)]

    def command(self, names: Sequence[str]) -> str:
        """The command line for these concepts, with its own strengths and seeds."""
        base = self.studio.given
        return commands.compare_command(
            names, self._photos(names), self._folder(names, "…"), self.studio.library, base
        )

    def _work(self, names: list[str], plan: Plan, files: list[Path], tell: Callable[[str], None]) -> None:
        from fusion.compare import about, compare_methods
        from fusion.fuse import open_concepts

        there = {listed.name for listed in choices.concepts_in(self.studio)}
        known = [name for name in names if name in there]
        if len(known) < 2:
            raise InputError("Tick two or more concepts to compare methods on.")
        tell("waiting for the base, or for whoever is drawing now")
        base, opened = self.studio.base(), open_concepts(known, self.studio.library)
        settled = about(base, opened, self._photos(known), plan)
        folder = self._folder(known, json.dumps(settled, sort_keys=True))
        with self.studio.turns.taken(lambda: tell("waiting for whoever is drawing now")) as others_first:

            def next_part(line: str) -> None:  # the base is as it was between two of them
                others_first()
                tell(line)

            with self.studio.whole():
                files += compare_methods(base, opened, self._photos(known), plan, folder, next_part)

    def _photos(self, names: Sequence[str]) -> dict[str, Path]:
        """Photos of the concepts that were taught on this page."""
        found = {name: self.jobs.photos_of(name) for name in names}
        return {name: folder for name, folder in found.items() if folder is not None}

    def _folder(self, names: Sequence[str], about: str) -> Path:
        """Where the comparison of these concepts goes on, a folder for each way to ask for it."""
        digest = hashlib.sha256(f"{sorted(names)} {about}".encode()).hexdigest()[:12]
        return self.studio.output / "compared" / digest


def _shown(files: Sequence[Path]) -> list[Any]:
    """Table and sheet of a finished comparison."""
    by_suffix = {path.suffix: path for path in files}
    data = json.loads(by_suffix[".json"].read_text(encoding="utf-8"))
    rows = [
        [
            one["method"],
            f"{one['strength']:g}" + (f", {one['edge']} of the grid" if one["edge"] else ""),
            *(
                f"{one[key]['value']:.2f}" if one[key] else "–"
                for key in ("retention", "retention_above_chance")
            ),
            f"{one['worst']} {one['worst_retention']:.2f}",
            *(f"{one[key]['value']:.2f}" for key in ("leakage_added", "alignment_added")),
        ]
        for one in data["standings"]
    ]
    rows += [
        [method, "left out", reason, *[""] * (len(_COLUMNS) - 3)]
        for method, reason in data["left_out"].items()
    ]
    return [gr.update(value=rows, visible=True), gr.update(value=served(by_suffix[".jpg"]), visible=True)]
