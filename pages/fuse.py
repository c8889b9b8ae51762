"""The page Fuse: concepts ticked, clashes told, one file made; what each concept keeps, measured."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from concepts.samples import take_samples
from pages import choices, commands
from pages.background import telling
from pages.compare import Comparison
from pages.files import served
from pages.measure import Measure, page_of
from pages.said import connect, place, sentence
from pages.samples import offer, offered
from pages.status import status
from pages.studio import Studio
from spectral_diffusion.errors import InputError
from spectral_diffusion.slices import check_name

if TYPE_CHECKING:
    from spectral_diffusion.fused import Fused

MEMBERS = 12  # concepts that get a slider
_FEW = "Tick two or more concepts."
_EMPTY = "The library is empty: try the samples, or teach two concepts."


class Fuse:
    """The page and what its buttons do."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.panel, self.comparison = studio, Measure(studio), Comparison(studio)

    def build(self, page: gr.Blocks) -> None:
        """Lays the page out inside of the current tab."""
        with gr.Row():
            with gr.Column(scale=2, min_width=340):
                self._making()
            with gr.Column(scale=3, min_width=340):
                self._made()
        self._connect(page)

    def _making(self) -> None:
        self.ticked = gr.CheckboxGroup(label="Concepts", choices=[], value=[])
        self.said = gr.HTML(status(_FEW), elem_classes="said")
        self.try_samples = offer()
        self.sliders = [
            gr.Slider(0, 2, 1, step=0.05, label=f"Strength {i + 1}", visible=False) for i in range(MEMBERS)
        ]
        # the others come when the page is open: their modules are slow to import
        self.method = gr.Dropdown(label="Method", choices=["filtered"], value="filtered")
        self.norm = gr.Radio(
            label="Norm control", value="",
            choices=[("As the method has it", ""), ("On", "on"), ("Off", "off")],
        )  # fmt: skip
        self.name = gr.Textbox("", label="Name of the fused file", placeholder="trio")
        self.go = gr.Button("Fuse", variant="primary")
        self.place = place()
        self.result = gr.Textbox("", label="What was made", lines=5, interactive=False)
        with gr.Accordion("The command line that does the same", open=False) as self.cli_box:
            self.cli = gr.Textbox("", label="Command lines", lines=3, elem_classes="cli")
            self.cli_place = place()

    def _made(self) -> None:
        self.file = gr.Dropdown(label="Fused file", choices=[], value=None, interactive=True)
        self.recipe = gr.Textbox("", label="Its recipe", lines=6, interactive=False)
        with gr.Row():
            self.again = gr.Button("Take its concepts and strengths")
            self.download = gr.Button("Get the file")
            self.bake = gr.Button("Bake into the base")
        self.how = place()
        self.given = gr.File(label="The file", visible=False, interactive=False)
        self.panel.build(self.file)
        self.comparison.build(self.ticked)

    def _connect(self, page: gr.Blocks) -> None:
        hidden = {"show_progress": "hidden"}
        asked = [self.ticked, self.method, self.norm, self.name, *self.sliders]
        lists = [self.ticked, self.file]
        self.lists, self.shown = lists, [*lists, self.said, self.try_samples]
        connect(page.load, self.refresh, lists, self.shown, self.said, **hidden)
        connect(page.load, self.methods, None, self.method, self.place, **hidden)
        connect(self.try_samples.click, self.take_samples, lists, self.shown, self.said)
        # input rather than change: a file whose concepts are taken brings its own strengths
        quiet = {**hidden, "trigger_mode": "always_last"}  # no tick is lost, however fast
        ticked = [self.said, *self.sliders]
        connect(self.ticked.input, self.tick, self.ticked, ticked, self.said, **quiet)
        one = {"concurrency_id": "device", "concurrency_limit": 1}
        connect(self.go.click, self.fuse, asked, [self.result, *lists], self.place, **one)
        connect(self.file.change, self.show, self.file, [self.recipe, self.given], self.how, **hidden)
        taken = [self.ticked, *ticked, self.method]
        connect(self.again.click, self.take, self.file, taken, self.how)
        connect(self.download.click, self.get, self.file, self.given, self.how)
        connect(self.bake.click, self.bake_it, self.file, self.how, self.how)
        given = [self.file, self.panel.seeds, self.panel.steps, *asked]
        connect(self.cli_box.expand, self.command, given, self.cli, self.cli_place, **hidden)

    def refresh(self, ticked: list[str], file: str | None) -> list[Any]:
        """The concepts and fused files there are."""
        concepts = choices.concepts_in(self.studio)
        labels = [(f"<{c.name}> {c.class_word}, {c.place}, {c.base_name}", c.name) for c in concepts]
        there = {name for _, name in labels}
        kept = ticked if ticked and there.issuperset(ticked) else []
        files = [(c.label, c.id) for c in choices.choices(self.studio) if c.id.startswith("fused:")]
        ids = [id_ for _, id_ in files]
        return [
            gr.update(choices=labels, value=kept),
            gr.update(choices=files, value=file if file in ids else next(iter(ids), None)),
            self._clashes(kept) if concepts else status(_EMPTY),
            offered(self.studio, not concepts),
        ]

    def take_samples(self, ticked: list[str], file: str | None) -> list[Any]:
        """The bundled concepts, ready to be ticked."""
        take_samples(self.studio.library)
        return self.refresh(ticked, file)

    @staticmethod
    def methods() -> Any:
        """Every way to fuse, with a line about it."""
        from fusion.methods import METHODS

        about = [(f"{name} ({method.whose}): {method.says}", name) for name, method in METHODS.items()]
        return gr.update(choices=about)

    def tick(self, names: list[str]) -> list[Any]:
        """Clashes of the ticked concepts, and a slider for each."""
        return [self._clashes(names), *_sliders(names, {})]

    def fuse(
        self, names: list[str], method: str, norm: str, name: str, *strengths: float
    ) -> Iterator[list[Any]]:
        """Writes the fused file into the library's `fused/`, telling how far it is where that takes a while."""
        from fusion.fuse import changed, summary
        from fusion.run import run

        path = self._new_file(name)
        recipe = self._recipe(names, method, norm, strengths)
        made: list[Fused] = []

        def work(tell: Callable[[str], None]) -> None:
            def progress(what: str, done: int, total: int) -> None:
                tell(f"{what}: {done} of {total}")

            with self.studio.turns.taken(), self.studio.whole():
                made.append(run(recipe, [self.studio.library], self.studio.base, progress))

        for lines in telling(work, threading.Event()):
            yield [lines[-1], gr.skip(), gr.skip()]
        (fused,) = made
        fused.save(path)
        lines = [f"fused/{path.name}: {len(changed(fused))} layers of {fused.base_name}", *summary(fused)]
        ticked, files, *_ = self.refresh(names, f"fused:{path.stem}")
        yield ["\n".join(lines), ticked, files]

    def show(self, id_: str | None) -> list[Any]:
        """The recipe of the chosen file."""
        hidden = gr.update(value=None, visible=False)
        if not id_:
            return ["", hidden]
        from fusion.recipe import write
        from fusion.run import recipe_of
        from spectral_diffusion.fused import Fused

        return [write(recipe_of(Fused.load(choices.fused(self.studio, id_).path))), hidden]

    def take(self, id_: str | None) -> list[Any]:
        """The concepts, strengths and method of the chosen file, to go on from."""
        from fusion.run import recipe_of
        from spectral_diffusion.fused import Fused

        recipe = recipe_of(Fused.load(choices.fused(self.studio, id_).path))
        there = {listed.name for listed in choices.concepts_in(self.studio)}
        names = [one.name for one in recipe.concepts if one.name in there]
        strengths = {one.name: one.strength for one in recipe.concepts}
        return [names, self._clashes(names), *_sliders(names, strengths), recipe.method]

    def get(self, id_: str | None) -> Any:
        """The chosen file, to download."""
        return gr.update(value=served(choices.fused(self.studio, id_).path), visible=True)

    def bake_it(self, id_: str | None) -> str:
        """The base with the chosen file merged in, as a diffusers folder of the library's `baked/`."""
        from spectral_diffusion.fused import Fused
        from spectral_diffusion.merged import save_folder

        choice = choices.fused(self.studio, id_)
        folder, fused, base = self._baked(choice), Fused.load(choice.path), self.studio.base()
        with self.studio.turns.taken(), self.studio.whole():
            save_folder(base, fused, folder)
        words = ", ".join(f"<{name}-1> <{name}-2> for <{name}>" for name in fused.names)
        return status(f"baked/{folder.name} in the library is a diffusers folder: write {words}.")

    def _baked(self, choice: choices.Choice) -> Path:
        return self.studio.library / "baked" / choice.path.stem

    def command(
        self, id_: str | None, seeds: int, steps: int, names: list[str], method: str, norm: str, name: str,
        *strengths: float,
    ) -> str:  # fmt: skip
        """The command lines of this page's buttons."""
        library, base = self.studio.library, self.studio.given
        output = self.studio.fused / f"{name.strip() or 'NAME'}.safetensors"
        given = dict(zip(names, strengths, strict=False))
        lines = [commands.fuse_command(names or ["NAME"], given, method, library, output, base, norm)]
        if id_:
            choice = choices.fused(self.studio, id_)
            photos = self.panel.photos(choice)
            how = (library, base, int(seeds), int(steps))
            lines.append(commands.report_command(choice.path, page_of(choice), photos, *how))
            lines.append(commands.bake_command(choice.path, self._baked(choice), base))
        if names:
            lines.append(self.comparison.command(names))
        return "\n".join(lines)

    def _recipe(self, names: list[str], method: str, norm: str, strengths: tuple[float, ...]) -> Any:
        from fusion.recipe import Ingredient, Recipe

        there = {listed.name for listed in choices.concepts_in(self.studio)}
        if strangers := [name for name in names or [] if name not in there]:
            raise InputError(f"The library has no concept {choices.safe(strangers[0])}: reload the page.")
        if not names:
            raise InputError(_FEW)
        given = [*strengths[: len(names)], *[1.0] * (len(names) - MEMBERS)]
        parts = tuple(Ingredient(name, float(given[i])) for i, name in enumerate(names))
        control = {"on": True, "off": False}.get(norm)
        return Recipe(parts, method, norm_control=control)

    def _clashes(self, names: list[str]) -> str:
        """Why these cannot live together, or that they can; nothing is computed but checks."""
        from fusion.fuse import check_together, open_concepts

        if len(names) < 2:
            return status(_FEW)
        there = {listed.name for listed in choices.concepts_in(self.studio)}
        try:
            check_together(open_concepts([name for name in names if name in there], self.studio.library))
        except Exception as error:
            return status(f"They cannot be fused: {sentence(error)}", wrong=True)
        more = f" Only the first {MEMBERS} have sliders." if len(names) > MEMBERS else ""
        return status(f"One base, disjoint columns: these {len(names)} can be fused.{more}")

    def _new_file(self, name: str) -> Path:
        path = self.studio.fused / f"{check_name(name.strip())}.safetensors"
        if path.exists():
            raise InputError(f"There is a fused file {path.stem} already: pick another name.")
        return path


def _sliders(names: list[str], strengths: dict[str, float]) -> list[Any]:
    shown = [
        gr.update(visible=True, value=strengths.get(name, 1.0), label=f"Strength of {name}")
        for name in names[:MEMBERS]
    ]
    return [*shown, *[gr.update(visible=False)] * (MEMBERS - len(shown))]
