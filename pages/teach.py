"""The page Teach: photos in, a training started as a process of its own, and watched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from concepts.presets import presets
from pages import commands, lesson
from pages.files import PHOTOS, served_picture, take_photos
from pages.jobs import Job, Jobs
from pages.masking import Masking, write_mask
from pages.said import connect, place, plain
from pages.status import status
from pages.studio import Studio
from pages.trainings import Trainings
from spectral_diffusion.errors import InputError

_NO_PHOTOS = "Drop five or more photos of one thing, on different backgrounds, or take sample photos."
_MANY = 30  # remarks shown


class Teach:
    """The page and what its buttons do."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.jobs = studio, Jobs(studio.library)
        self.trainings, self.masking = Trainings(studio), Masking()

    def build(self, page: gr.Blocks) -> None:
        """Lays the page out inside of the current tab."""
        self.draft = gr.State("")
        with gr.Row():
            with gr.Column(scale=3, min_width=340):
                self._photos()
                self._settings()
            with gr.Column(scale=2, min_width=340):
                self.trainings.build(page)
        self._connect(page)

    def _photos(self) -> None:
        self.upload = gr.File(
            label="Photos, or a zip of them (captions as .txt beside them)", file_count="multiple",
            file_types=PHOTOS, height=170,
        )  # fmt: skip
        with gr.Row():
            self.sample = gr.Dropdown(label="Sample photos", choices=lesson.samples(), value=None)
            self.clear = gr.Button("Start over", elem_classes="side")
        self.place = place()
        self.gallery = gr.Gallery(
            label="Photos as they are cropped; what a mask leaves out is veiled", columns=5, height="auto",
            interactive=False, format="png", buttons=["fullscreen"],
        )  # fmt: skip
        self.remarks = gr.Markdown(_NO_PHOTOS, elem_classes="said")
        with gr.Accordion("Captions: write <name> where the concept stands", open=False):
            self.captions = gr.Dataframe(
                headers=["photo", "caption"], datatype="str", column_count=2, static_columns=[0], type="array",
                interactive=True, wrap=True, label="Captions", buttons=[],
            )  # fmt: skip
        self.masking.build()
        with gr.Accordion("Contact sheet", open=False):
            self.sheet = gr.Image(
                label="Contact sheet", interactive=False, format="png", buttons=["fullscreen"]
            )

    def _settings(self) -> None:
        with gr.Row():
            self.name = gr.Textbox(
                "", label="Name", placeholder="rex", info="What you will write in prompts, as <rex>"
            )
            self.word = gr.Textbox(
                "", label="Class", placeholder="dog", info="The plain word for what the photos show"
            )
        about = [("The defaults", "")]
        about += [(f"{name}: {preset.about}", name) for name, preset in presets().items()]
        self.preset = gr.Dropdown(label="Preset", choices=about, value="")
        with gr.Row():
            self.steps = gr.Number(0, label="Steps", info="0: the preset's", precision=0, minimum=0)
            self.rank = gr.Number(0, label="Columns", info="0: the preset's", precision=0, minimum=0)
            self.masks = gr.Checkbox(label="Make masks from plain backgrounds")
        with gr.Accordion("More settings", open=False):
            self.more = gr.Textbox(
                "",
                label="One a line, field = value (python -m concepts train --print-config lists them)",
                lines=3,
                placeholder="form = rotational\nlayerwise = true\nprior_weight = 5",
            )
            self.anew = gr.Checkbox(label="Throw an unfinished training of this name away")
        with gr.Row():
            self.check = gr.Button("Look again")
            self.start = gr.Button("Start", variant="primary")
        self.how = place()
        self.columns = place()
        self.map = gr.Image(label="Spectrum map", visible=False, interactive=False, format="png", buttons=[])
        with gr.Accordion("The command line that does the same", open=False) as self.cli_box:
            self.cli = gr.Textbox("", label="Command line", lines=2, elem_classes="cli")
            self.cli_place = place()

    def _connect(self, page: gr.Blocks) -> None:
        asked, hidden = [self.draft, self.name, self.word, self.masks], {"show_progress": "hidden"}
        ways = [self.draft, self.masks, self.anew]
        masking = self.masking
        looked = [
            self.draft, self.gallery, self.remarks, self.captions, self.sheet, masking.photo, masking.numbers,
        ]  # fmt: skip
        wanted = [self.name, self.word, self.preset, self.steps, self.rank, self.more]
        connect(self.upload.upload, self.take, [self.upload, *asked], [*looked, self.upload], self.place)
        sampled = [*looked, self.name]
        connect(self.sample.input, self.take_sample, [self.sample, *asked], sampled, self.place)
        connect(self.clear.click, self.start_over, None, [*looked, self.sample], self.place)
        given = [self.captions, masking.photo, *asked]
        checked = connect(self.check.click, self.look, given, looked, self.how)
        columns = [self.columns, self.map]
        connect(checked.then, self.show_columns, wanted, columns, self.columns, **hidden)
        begun = [self.draft, self.trainings.job, self.how]
        connect(self.start.click, self.begin, [self.captions, *ways, *wanted], begun, self.how)
        connect(self.cli_box.expand, self.command, [*ways, *wanted], self.cli, self.cli_place, **hidden)
        # a photo is chosen in the gallery or by its name, shown with its mask, and painted on
        connect(self.gallery.select, masking.chosen, masking.numbers, masking.photo, masking.place)
        chosen = [self.draft, masking.photo, self.masks]
        connect(masking.photo.change, self.show_mask, chosen, masking.canvas, masking.place, **hidden)
        painted = [masking.photo, masking.canvas, *asked]
        connect(masking.save.click, self.save_mask, painted, [*looked, masking.place], masking.place)

    def take(self, files: list[str] | None, id_: str, name: str, word: str, masks: bool) -> list[Any]:
        """Uploaded photos join the draft, and are looked at."""
        id_ = self._draft(id_)
        take_photos(files or [], self.jobs.photos(id_))
        return [*self._looked(id_, name, word, masks), gr.update(value=None)]

    def take_sample(self, sample: str, id_: str, name: str, word: str, masks: bool) -> list[Any]:
        """Photos of the bundled folder, instead of what was there."""
        id_ = self.jobs.draft().id
        lesson.copy_sample(sample, self.jobs.photos(id_))
        name = name.strip() or lesson.free_name(self.studio.library, sample)
        return [*self._looked(id_, name, word, masks), name]

    def look(
        self, rows: list[list[Any]], photo: int | None, id_: str, name: str, word: str, masks: bool
    ) -> list[Any]:
        """Writes the captions and looks at the photos again."""
        if not id_:
            raise InputError(_NO_PHOTOS)
        lesson.write_captions(self._photos_of(id_), name, word, rows)
        return self._looked(id_, name, word, masks, photo)

    def show_mask(self, id_: str, photo: int | None, masks: bool) -> Any:
        """The chosen photo and its mask, to paint on."""
        return self.masking.shown(self._photos_of(id_) if id_ else Path(), photo if id_ else None, masks)

    def save_mask(
        self, photo: int | None, painted: str, id_: str, name: str, word: str, masks: bool
    ) -> list[Any]:
        """What is painted becomes the mask of the chosen photo."""
        if not id_:
            raise InputError(_NO_PHOTOS)
        said = write_mask(self._photos_of(id_), photo, painted)
        return [*self._looked(id_, name, word, masks, photo), status(said)]

    def start_over(self) -> list[Any]:
        """An empty page; the photos on disk are swept later."""
        return ["", [], _NO_PHOTOS, [], None, *self.masking.empty(), None]

    def show_columns(
        self, name: str, word: str, preset: str, steps: int | None, rank: int | None, more: str
    ) -> list[Any]:
        """Where on the spectrum the training would be."""
        outcome, _ = lesson.resolved(name or "new", word or "thing", preset, _given(steps, rank), more)
        settings = outcome.settings()
        said, row = lesson.columns_for(self.studio, name.strip(), settings.rank, settings.start)
        if row is None:
            return [status(said), gr.update(visible=False)]
        from concepts.spectrum_map import draw_map

        return [status(said), gr.update(value=served_picture(draw_map([row])), visible=True)]

    def begin(
        self, rows: list[list[Any]], id_: str, masks: bool, anew: bool, name: str, word: str, preset: str,
        steps: int | None, rank: int | None, more: str,
    ) -> list[Any]:  # fmt: skip
        """Puts the training into the queue; a process of its own carries it out."""
        job = self._job(id_, masks, anew, name, word, preset, steps, rank, more)
        if not id_:
            raise InputError(_NO_PHOTOS)
        lesson.write_captions(self._photos_of(id_), name, word, rows)
        report = lesson.look(self.studio, self.jobs.photos(id_), name, word, masks)
        if report.errors:
            raise InputError(f"{len(report.errors)} of the photos cannot be used: {report.errors[0]}")
        from concepts.settings import free_path

        free_path(self.studio.library, job.name)
        job = self.jobs.enqueue(job)
        self.jobs.wake()
        choices = self.trainings.labels()
        return ["", gr.update(choices=choices, value=job.id), status(f"{job.name} is in the queue.")]

    def command(
        self, id_: str, masks: bool, anew: bool, name: str, word: str, preset: str,
        steps: int | None, rank: int | None, more: str,
    ) -> str:  # fmt: skip
        """The command line of what the page says."""
        job = self._job(id_, masks, anew, name, word, preset, steps, rank, more)
        photos = self.jobs.photos(id_) if id_ else "photos/"
        return commands.shown(*commands.train_command(job, photos, self.studio.library))

    def _draft(self, id_: str) -> str:
        return id_ if id_ and self.jobs.get(id_).state == "draft" else self.jobs.draft().id

    def _photos_of(self, id_: str) -> Path:
        if self.jobs.get(id_).state != "draft":
            raise InputError("These photos are in use by a training: start over.")
        return self.jobs.photos(id_)

    def _looked(self, id_: str, name: str, word: str, masks: bool, photo: int | None = None) -> list[Any]:
        from concepts.sheet import contact_sheet

        photos = self._photos_of(id_)
        report = lesson.look(self.studio, photos, name, word, masks)
        said = lesson.remarks(report)
        lines = [f"- {plain(line)}" for line in said[:_MANY]]
        rows = lesson.caption_rows(photos, name, word)
        crops = [(served_picture(crop), line) for crop, line in lesson.pictures(report)]
        seen = [id_, crops, "\n".join(lines), rows, served_picture(contact_sheet(report))]
        return [*seen, *self.masking.offered(report, photo)]

    def _job(
        self, id_: str, masks: bool, anew: bool, name: str, word: str, preset: str,
        steps: int | None, rank: int | None, more: str,
    ) -> Job:  # fmt: skip
        given = _given(steps, rank) | ({"masks": "plain"} if masks else {})
        outcome, options = lesson.resolved(name, word, preset, given, more)
        settings = outcome.settings()
        job = self.jobs.get(id_) if id_ else Job("")
        facts = {"name": settings.name, "class_word": settings.class_word, "preset": preset or None}
        return replace(job, **vars(self.studio.given), options=options, restart=anew, **facts)


def _given(steps: int | None, rank: int | None) -> dict[str, Any]:
    return {key: value for key, value in (("steps", steps), ("rank", rank)) if value}
