"""The page Settings: which base, what it is, where things lie."""

from __future__ import annotations

from typing import Any

import gradio as gr

from pages.said import connect, place, plain
from pages.status import status
from pages.studio import Studio
from spectral_diffusion.errors import InputError

POLL = 2.0


class Settings:
    """The page and what its buttons do."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def build(self, page: gr.Blocks) -> None:
        """Lays the page out inside of the current tab."""
        self.status = gr.HTML(status("Loading the base…"), elem_classes="said")
        with gr.Row():
            self.base = gr.Dropdown(
                label="Base", choices=list(self.studio.offered()), value=self.studio.base_id,
                info="The bundled one, the one of --base, and what lies in the folder of --bases",
            )  # fmt: skip
            self.look = gr.Button("What is it?", elem_classes="side")
            self.use = gr.Button("Use it for everybody", variant="primary", elem_classes="side")
        self.place = place()
        self.facts = gr.Dataframe(
            headers=["fact", "value"],
            value=[],
            interactive=False,
            label="The base",
            type="array",
            wrap=True,
            buttons=[],
        )
        gr.Markdown(self._folders())
        timer = gr.Timer(POLL)
        looking = {"queue": False, "show_progress": "hidden"}
        for event in (timer.tick, page.load):
            connect(event, self.tell, None, self.status, self.status, **looking)
        connect(self.look.click, self.inspect, self.base, self.facts, self.place)
        connect(self.use.click, self.take, self.base, self.status, self.place)

    def tell(self) -> str:
        """How the base stands."""
        return status(self.studio.status(), wrong=self.studio.failed is not None)

    def inspect(self, id_: str) -> Any:
        """What a base is, from its headers alone."""
        from spectral_diffusion.inspection import inspect, rows

        offered = self.studio.offered()
        if id_ not in offered:
            raise InputError("There is no such base here: reload the page.")
        return [list(row) for row in rows(inspect(offered[id_])) if row[0] != "file"]

    def take(self, id_: str) -> str:
        """Another base from now on, for all who use this server."""
        with self.studio.turns.taken():
            self.studio.use(id_)
        return self.tell()

    def _folders(self) -> str:
        studio = self.studio
        bases = studio.bases or "none: give one with --bases"
        rows = (("Library", studio.library), ("Pictures", studio.output), ("Bases", bases))
        lines = [f"| {name} | {plain(str(place))} |" for name, place in rows]
        return "\n".join(["| Folder | Where |", "|---|---|", *lines])
