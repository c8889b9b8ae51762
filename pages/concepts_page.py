"""The page Concepts: what the library holds, one card a concept, and what can be done with each."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from concepts.inventory import Listed, take_stock
from concepts.listing import file_size
from concepts.listing import page as card_lines
from concepts.samples import take_samples
from pages import commands
from pages.choices import safe
from pages.files import served, served_picture
from pages.jobs import Jobs
from pages.said import connect, place, plain
from pages.samples import offer, offered
from pages.studio import Studio
from spectral_diffusion.card import read_card
from spectral_diffusion.errors import InputError

EXPORTS = (
    ("LoRA for A1111, Forge, ComfyUI (kohya)", "kohya"),
    ("LoRA for diffusers", "diffusers"),
    ("Its words as an embedding", "embedding"),
)
_EMPTY = "The library is empty: try the samples, teach a concept, or import a concept file."
_SIDE = 192  # pixels of a card without a picture


class Concepts:
    """The page and what its buttons do."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.jobs = studio, Jobs(studio.library)

    def build(self, page: gr.Blocks) -> None:
        """Lays the page out inside of the current tab."""
        self.names = gr.State([])  # of the cards, in order
        self.summary = gr.Markdown(_EMPTY, elem_classes="said")
        self.try_samples = offer()
        self.place = place()
        with gr.Row():
            with gr.Column(scale=3, min_width=340):
                self.cards = gr.Gallery(
                    label="Concepts: choose one", columns=4, height="auto", allow_preview=False,
                    interactive=False, format="png", buttons=[],
                )  # fmt: skip
                self.map = gr.Image(
                    label="Spectrum map: whose columns are whose", interactive=False, format="png",
                    buttons=["fullscreen"],
                )  # fmt: skip
                with gr.Accordion("The map in words", open=False):
                    self.words = gr.Textbox(
                        "", label="Spectrum map", lines=6, interactive=False, elem_classes="cli"
                    )
            with gr.Column(scale=2, min_width=340):
                self._details()
                self._import()
        self._connect(page)

    def _details(self) -> None:
        self.chosen = gr.Dropdown(label="Concept", choices=[], value=None, interactive=True)
        self.details = gr.Textbox("", label="Details", lines=10, interactive=False, elem_classes="cli")
        with gr.Row():
            self.new = gr.Textbox("", label="New name", placeholder="rex2", scale=2)
            self.rename = gr.Button("Rename", scale=1, min_width=100, elem_classes="side")
        self.rename_place = place()
        with gr.Row():
            self.form = gr.Dropdown(label="Export as", choices=list(EXPORTS), value=EXPORTS[0][1], scale=2)
            self.export = gr.Button("Export", scale=1, min_width=100, elem_classes="side")
        self.export_place = place()
        self.exported = gr.File(label="Exported", visible=False, interactive=False)
        with gr.Row():
            self.sure = gr.Checkbox(label="I mean it: its file and its columns are given up", scale=2)
            self.remove = gr.Button("Remove", variant="stop", scale=1, min_width=100, elem_classes="side")
        self.remove_place = place()
        with gr.Accordion("The command line that does the same", open=False) as self.cli_box:
            self.cli = gr.Textbox("", label="Command lines", lines=4, elem_classes="cli")
            self.cli_place = place()

    def _import(self) -> None:
        with gr.Accordion("Import a concept file", open=False):
            self.file = gr.File(label="Concept file", file_types=[".safetensors"])
            self.named = gr.Textbox("", label="Call it (empty: as it is called)")
            self.take = gr.Button("Import")
            self.import_place = place()

    def _connect(self, page: gr.Blocks) -> None:
        hidden = {"show_progress": "hidden"}
        shown = [self.names, self.cards, self.map, self.words, self.summary, self.chosen, self.try_samples]
        self.shown = shown
        connect(page.load, self.refresh, self.chosen, shown, self.place, **hidden)
        connect(self.try_samples.click, self.take_samples, None, shown, self.place)
        connect(self.cards.select, self.choose, self.names, self.chosen, self.place)
        connect(self.chosen.change, self.show, self.chosen, self.details, self.place, **hidden)
        renamed = [*shown, self.new]
        connect(self.rename.click, self.rename_it, [self.chosen, self.new], renamed, self.rename_place)
        removed = [*shown, self.sure]
        connect(self.remove.click, self.remove_it, [self.chosen, self.sure], removed, self.remove_place)
        taken, given = [*shown, self.file, self.named], [self.file, self.named]
        connect(self.take.click, self.import_it, given, taken, self.import_place)
        wanted = [self.chosen, self.form]
        connect(self.export.click, self.export_it, wanted, self.exported, self.export_place)
        asked = [self.chosen, self.new, self.form]
        connect(self.cli_box.expand, self.command, asked, self.cli, self.cli_place, **hidden)

    def refresh(self, now: str | None = None) -> list[Any]:
        """The cards, the map and what is wrong with the library."""
        self.studio.furnished()
        if not self.studio.library.is_dir():
            return [[], [], None, "", _EMPTY, gr.update(choices=[], value=None), offered(self.studio, True)]
        from concepts.library import repair
        from concepts.spectrum_map import draw_map, summary, text_map

        mended = repair(self.studio.library)
        stock = take_stock(self.studio.library)
        names = [listed.name for listed in stock.concepts]
        cards = [(picture(listed), label(listed)) for listed in stock.concepts]
        hide = f"{self.studio.library}/"
        lines = [summary(base) for base in stock.bases] or [_EMPTY]
        lines += [line.replace(hide, "") for line in (*mended, *stock.problems)]
        said = "\n\n".join(plain(line) for line in lines)
        words = "\n\n".join("\n".join(text_map(base)) for base in stock.bases)
        drawn = served_picture(draw_map(stock.bases)) if stock.bases else None
        value = now if now in names else next(iter(names), None)
        chosen = gr.update(choices=names, value=value)
        return [names, cards, drawn, words, said, chosen, offered(self.studio, not names)]

    def take_samples(self) -> list[Any]:
        """The bundled concepts, in the library."""
        take_samples(self.studio.library)
        return self.refresh()

    def choose(self, event: gr.SelectData, names: list[str]) -> str:
        """The card that was clicked."""
        if not isinstance(event.index, int) or not 0 <= event.index < len(names):
            raise InputError("There is no such concept any more: reload the page.")
        return names[event.index]

    def show(self, name: str | None) -> str:
        """Everything that the card tells."""
        if not name:
            return ""
        listed = self._find(name)
        card = None if listed.file is None else read_card(listed.file)
        return "\n".join(card_lines(listed, card)).replace(f"{self.studio.library}/", "")

    def rename_it(self, old: str | None, new: str) -> list[Any]:
        """The concept under another name."""
        from concepts.library import rename

        rename(self.studio.library, self._find(old).name, new.strip())
        self.jobs.renamed(str(old), new.strip())
        return [*self.refresh(new.strip()), ""]

    def remove_it(self, name: str | None, sure: bool) -> list[Any]:
        """Deletes the concept and frees its columns."""
        from concepts.library import remove

        listed = self._find(name)
        if not sure:
            raise InputError(f"Tick that you mean it: {listed.name} cannot be brought back.")
        remove(self.studio.library, listed.name)
        return [*self.refresh(), False]

    def import_it(self, file: str | None, name: str) -> list[Any]:
        """An uploaded concept file becomes part of the library."""
        from concepts.library import import_file, repair

        if file is None:
            raise InputError("Choose a concept file first.")
        self.studio.library.mkdir(parents=True, exist_ok=True)
        repair(self.studio.library)
        listed = import_file(file, self.studio.library, name.strip() or None)
        return [*self.refresh(listed.name), None, ""]

    def export_it(self, name: str | None, form: str) -> Any:
        """The concept in the format of another program, to download."""
        from spectral_diffusion.export import Options, export
        from spectral_diffusion.fused import load_any

        listed = self._find(name)
        if form not in [kind for _, kind in EXPORTS]:
            raise InputError(f"There is no format {safe(form)} here.")
        if listed.file is None:
            raise InputError(f"{listed.name} has no file to export: it is {listed.state}.")
        folder = Path(tempfile.mkdtemp(prefix="spectral-export-"))
        try:
            stem = f"{listed.name}-{form}"
            output = folder / (stem if form == "embedding" else f"{stem}.safetensors")
            preview = read_card(listed.file)["preview"] if form != "embedding" else None
            written = export(load_any(listed.file), form, output, Options(preview=preview))
            return gr.update(value=[served(path) for path in written], visible=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def command(self, name: str | None, new: str, form: str) -> str:
        """The command lines of this page's buttons."""
        library, name = self.studio.library, name or "NAME"
        at = f"--library={library}"
        return "\n".join(
            (
                commands.shown("-m", "concepts", "list", at),
                commands.shown("-m", "concepts", "samples", at),
                commands.shown("-m", "concepts", "show", name, at),
                commands.shown("-m", "concepts", "rename", name, new.strip() or "NEW", at),
                commands.shown("-m", "concepts", "remove", name, at),
                commands.export_command(library / f"{name}.safetensors", form),
            )
        )

    def _find(self, name: str | None) -> Listed:
        from concepts.library import find

        if not name:
            raise InputError("Choose a concept first.")
        return find(self.studio.library, safe(name))


def label(listed: Listed) -> str:
    """A card's line."""
    parts = [f"<{listed.name}>", listed.class_word or "", listed.place]
    parts.append(file_size(listed.size) if listed.file else "")
    parts.append(f"identity {listed.likeness}" if listed.likeness else "")
    parts.append("" if listed.state == "done" else listed.state)
    return ", ".join(filter(None, parts))


def picture(listed: Listed) -> Any:
    """A card's picture; one without a preview gets its name on grey."""
    if listed.thumbnail is not None:
        return served(listed.thumbnail)
    image = Image.new("RGB", (_SIDE, _SIDE), "#8a939c")
    ImageDraw.Draw(image).text((_SIDE / 2, _SIDE / 2), listed.name, "#101418", anchor="mm")
    return served_picture(image)
