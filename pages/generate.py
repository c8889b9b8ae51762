"""The page Generate: prompt and settings left, pictures right."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from pages import choices, commands
from pages.background import AT_ONCE, Interrupted, Stops
from pages.canvas import canvas
from pages.draw import News, Wishes, drawing
from pages.files import served, served_picture
from pages.form import MOST_COUNT, MOST_SIDE, Form, form_of, request_of
from pages.paint import COLOURS
from pages.said import connect, place
from pages.status import status
from pages.studio import Studio
from spectral_diffusion.errors import InputError
from spectral_diffusion.samplers import SAMPLERS

MEMBERS = 12  # concepts of one file that get a chip and a slider
HISTORY = 48
BARE = "the bare base"
_EMPTY = "No concept yet: draw with the bare base, try the samples on the page Concepts, or teach one."
_PAINT = "Or paint them: a colour is a place, as in “orange: a photo of &lt;rex&gt;”"
_IDLE = "Nothing is being drawn."
_HINT = "Write a prompt, then press Draw or Ctrl+Enter."


class Generate:
    """The page and what its buttons do; one for all users, whose state is in their own browser's session."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._stops = Stops()
        self._wishes: dict[str | None, Wishes] = {}  # of each session that draws

    def build(self, page: gr.Blocks) -> None:
        """Lays the page out inside of the current tab."""
        with gr.Row():
            with gr.Column(scale=2, min_width=340):
                self._left()
            with gr.Column(scale=3, min_width=340):
                self._right()
        self._connect(page)

    def _left(self) -> None:
        self.file = gr.Dropdown(label="Draw with", choices=[(BARE, "")], value="", interactive=True)
        self.note = place()
        prompt = gr.Textbox(
            "", label="Prompt", lines=3, placeholder="a photo of <rex> on the beach", elem_id="prompt"
        )
        self._member_rows()
        negative = gr.Textbox("", label="Keep out (negative prompt)", lines=1)
        with gr.Row():
            self.go = gr.Button("Draw (Ctrl+Enter)", variant="primary", elem_id="draw", scale=2)
            self.skip = gr.Button("Skip", min_width=60)
            self.interrupt = gr.Button("Interrupt (Esc)", elem_id="interrupt", min_width=130)
        self.status = gr.HTML(status(_HINT), elem_classes="said")
        self.forever = gr.Checkbox(False, label="Go on until interrupted")
        self.fields = [prompt, negative, *self._settings()]
        with gr.Accordion("The command line that does the same", open=False) as self.cli_box:
            self.cli = gr.Textbox("", label="Command line", lines=2, elem_classes="cli")
            self.cli_place = place()

    def _member_rows(self) -> None:
        self.rows, self.chips, self.sliders = [], [], []
        for number in range(MEMBERS):
            with gr.Row(visible=False, elem_classes="chips") as row:
                chip = gr.Button(f"<{number}>", size="sm", scale=0, min_width=90)
                slider = gr.Slider(0, 2, 1, step=0.05, label=f"Strength {number + 1}", scale=1)
            self.rows.append(row)
            self.chips.append(chip)
            self.sliders.append(slider)

    def _settings(self) -> list[Any]:
        """The fields of `Form` after prompt and negative, in its order."""
        f = Form()
        with gr.Row():
            sampler = gr.Dropdown(label="Sampler", choices=list(SAMPLERS), value=f.sampler)
            steps = gr.Slider(1, 150, f.steps, step=1, label="Steps")
            guidance = gr.Slider(1, 20, f.guidance, step=0.5, label="Guidance (CFG scale)")
        with gr.Row():
            width = gr.Slider(0, MOST_SIDE, 0, step=8, label="Width (0: the base's own)")
            height = gr.Slider(0, MOST_SIDE, 0, step=8, label="Height (0: the base's own)")
        with gr.Row():
            count = gr.Slider(1, MOST_COUNT, f.count, step=1, label="Pictures")
            with gr.Column(min_width=160):
                seed = gr.Number(f.seed, label="Seed", precision=0, minimum=0)
                random = gr.Checkbox(f.random, label="A new seed every time")
        with gr.Accordion("Regions: a prompt and concepts for a part of the picture", open=False):
            regions = gr.Textbox(
                "",
                label="One region a line, place: prompt",
                lines=3,
                placeholder="left: a photo of <rex>\nright: a photo of <mia>\n0.2,0.2,0.8,0.8: a red ball",
            )
            painted = canvas(_PAINT, COLOURS, "The picture, to paint regions on", "painted")
            feather = gr.Slider(0, 0.5, f.feather, step=0.01, label="Soft edge of the regions")
        with gr.Accordion("From a picture, larger, clip skip", open=False):
            start = gr.File(label="Start picture", file_types=[".png", ".jpg", ".jpeg", ".webp"])
            denoise = gr.Slider(0, 1, f.denoise, step=0.05, label="Denoising strength")
            upscale = gr.Slider(1, 4, f.upscale, step=0.25, label="Enlarge by a second pass (1: off)")
            upscaler = gr.Dropdown(label="Enlarge with", choices=["Latent", "Lanczos"], value=f.upscaler)
            clip_skip = gr.Slider(1, 12, f.clip_skip, step=1, label="Clip skip")
        return [
            sampler, steps, guidance, width, height, count, seed, random, clip_skip, regions, feather, start,
            denoise, upscale, upscaler, painted,
        ]  # fmt: skip

    def _right(self) -> None:
        self.preview = gr.Image(
            label="On its way", visible=False, height=260, buttons=[], format="png",
            alt_text="The first picture as it would be if it ended now",
        )  # fmt: skip
        self.gallery = gr.Gallery(
            label="Pictures", columns=2, fit_columns=False, height="auto", object_fit="contain",
            interactive=False, format="png", buttons=["download", "fullscreen"],
        )  # fmt: skip
        with gr.Accordion("Earlier pictures: choose one to take its settings", open=False):
            self.history_place = place()
            self.history = gr.Gallery(
                label="Earlier pictures", columns=6, fit_columns=False, height="auto",
                allow_preview=False, interactive=False, format="png", buttons=[],
            )  # fmt: skip
        with gr.Accordion("Picture info: drop a picture to take its settings", open=False):
            self.dropped = gr.File(label="A picture made here", file_types=[".png", ".jpg", ".jpeg", ".webp"])
            self.info_place = place()
            self.info = gr.Textbox("", label="What it says of itself", lines=4, interactive=False)
        self.names = gr.State([])  # of the history's files

    def _connect(self, page: gr.Blocks) -> None:
        wide = [*self.rows, *self.chips, *self.sliders]
        prompt, *_ = self.fields
        shown = [self.status, self.preview, self.gallery, self.history, self.names, self.fields[8]]
        everything = [self.file, *self.sliders, *self.fields]
        # one event for both, so that a session draws one thing at a time
        start = functools.partial(gr.on, [self.go.click, prompt.submit])
        drawing = {**AT_ONCE, "show_progress": "hidden", "trigger_mode": "once", "hides": self.preview}
        connect(start, self.draw, [self.forever, *everything], shown, self.status, **drawing)
        connect(self.interrupt.click, self.stop, None, self.status, self.status, queue=False)
        connect(self.skip.click, self.pass_over, None, self.status, self.status, queue=False)
        # input rather than change: a recalled picture brings its own strengths
        quiet = {"show_progress": "hidden", "trigger_mode": "always_last"}
        connect(self.file.input, self.take_file, self.file, [self.note, *wide], self.note, **quiet)
        at_once = {"show_progress": "hidden", "queue": False}
        for chip in self.chips:
            connect(chip.click, self.add_word, [prompt, chip], prompt, self.note, **at_once)
        everywhere = [self.file, *wide, *self.fields, self.info]
        connect(self.history.select, self.recall, self.names, everywhere, self.history_place)
        connect(self.dropped.upload, self.read, self.dropped, everywhere, self.info_place)
        hidden = {"show_progress": "hidden"}
        connect(self.cli_box.expand, self.command, everything, self.cli, self.cli_place, **hidden)
        self.loaded = [self.file, self.note, self.history, self.names]
        connect(page.load, self.refresh, self.file, self.loaded, self.note, **hidden)

    def refresh(self, now: str) -> tuple[Any, ...]:
        """The files there are and the latest pictures."""
        found = choices.options(self.studio, BARE)
        value = now if now in [id_ for _, id_ in found] else ""
        note = status(_EMPTY) if len(found) == 1 else self._note(value)
        return gr.update(choices=found, value=value), note, *self._history()

    def take_file(self, id_: str) -> list[Any]:
        """Words and strengths of the chosen file."""
        if not id_:
            return ["", *_members([], [])]
        choice = choices.chosen(self.studio, id_)
        return [self._note(id_), *_members(choice.names, choice.strengths)]

    def draw(self, request: gr.Request, forever: bool, id_: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Draws, showing how far it is; the last of `values` are the fields of the form."""
        gone = gr.update(visible=False)
        with self._stops.of(request.session_hash) as stop:
            wishes = self._wishes[request.session_hash] = Wishes(stop)
            try:
                wish, fused = self._wish(id_, values)
                for news in drawing(self.studio, wish, fused, self.studio.output, wishes, forever):
                    yield self._shown(news)
            except Interrupted:
                yield (status("Interrupted."), gone, gr.skip(), *self._history(), gr.skip())
            finally:
                self._wishes.pop(request.session_hash, None)

    def stop(self, request: gr.Request) -> str:
        """Interrupts the drawing of this session."""
        found = self._stops.interrupt(request.session_hash)
        return status("Interrupting…" if found else _IDLE)

    def pass_over(self, request: gr.Request) -> str:
        """Skips the pictures under way in this session, and goes on with the next."""
        wishes = self._wishes.get(request.session_hash)
        if wishes:
            wishes.skip.set()
        return status("Skipping…" if wishes else _IDLE)

    @staticmethod
    def add_word(prompt: str, word: str) -> str:
        """The prompt with a concept's word behind it."""
        return f"{prompt} {word}".strip()

    def recall(self, event: gr.SelectData, names: list[str]) -> list[Any]:
        """Every setting of an earlier picture."""
        if not isinstance(event.index, int) or not 0 <= event.index < len(names):
            raise InputError("There is no such picture any more: reload the page.")
        return self._recalled(self.studio.output / names[event.index])

    def read(self, file: str | None) -> list[Any]:
        """Every setting of a picture that was dropped."""
        if file is None:
            raise InputError("Drop a picture first.")
        return self._recalled(Path(file))

    def command(self, id_: str, *values: Any) -> str:
        """The command line of what the page says."""
        wish, _ = self._wish(id_, values, load=False)
        path = choices.chosen(self.studio, id_).path if id_ else None
        return commands.generate_command(path, self.studio.given, wish, self.studio.output)

    def _note(self, id_: str) -> str:
        more = len(choices.chosen(self.studio, id_).names) - MEMBERS if id_ else 0
        return status(f"Strengths of {more} more concepts stay as they are in the file.") if more > 0 else ""

    def _wish(self, id_: str, values: tuple[Any, ...], load: bool = True) -> tuple[Any, Any]:
        """The request and the fused file it is drawn with, if any."""
        choice = choices.chosen(self.studio, id_) if id_ else None
        names = choice.names[:MEMBERS] if choice else ()
        form = Form(*values[MEMBERS:])
        if not load:
            form = form._replace(random=False)  # the seed that the page shows
        wish = request_of(form, {name: float(values[i]) for i, name in enumerate(names)})
        if not load or choice is None:
            return wish, None
        from spectral_diffusion.fused import load_any

        fused = load_any(choice.path)
        fused.check_base(self.studio.base())
        return wish, fused

    def _shown(self, news: News) -> tuple[Any, ...]:
        bar = status(news.said, news.done, news.total or 0)
        pictures = [served(file) for file in news.files] if news.files else gr.skip()
        if news.over:
            return status(news.said), gr.update(visible=False), pictures, *self._history(), news.seed
        preview = gr.update(value=served_picture(news.preview), visible=True) if news.preview else gr.skip()
        return bar, preview, pictures, gr.skip(), gr.skip(), gr.skip()

    def _history(self) -> tuple[list[str], list[str]]:
        found = [*self.studio.output.glob("*-*.png")] if self.studio.output.is_dir() else []
        latest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:HISTORY]
        return [served(path) for path in latest], [path.name for path in latest]

    def _recalled(self, file: Path) -> list[Any]:
        from spectral_diffusion.metadata import recall

        recalled = recall(file)
        then = {member["name"]: float(member["strength"]) for member in recalled.made_with["concepts"]}
        id_, missing = "", ""
        try:
            id_ = choices.with_members(self.studio, list(then))
        except InputError as error:
            missing = f"{error}\n"
        names = choices.chosen(self.studio, id_).names if id_ else ()
        members = _members(names, [then[name] for name in names])
        said = f"{missing}base {recalled.made_with['base']}, seed {recalled.seed}, " + ", ".join(
            f"<{name}> at {strength:g}" for name, strength in then.items()
        )
        return [id_, *members, *form_of(recalled), said]


def _members(names: Any, strengths: Any) -> list[Any]:
    """Rows, chips and sliders for the concepts of a file; the rest hidden."""
    shown = list(zip(names, strengths, strict=True))[:MEMBERS]
    spare = MEMBERS - len(shown)
    rows = [gr.update(visible=i < len(shown)) for i in range(MEMBERS)]
    chips = [gr.update(value=f"<{name}>") for name, _ in shown] + [gr.skip()] * spare
    sliders = [gr.update(value=s, label=f"Strength of {name}") for name, s in shown]
    return [*rows, *chips, *sliders, *[gr.skip()] * spare]
