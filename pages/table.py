"""The page Tables: grids over any setting, and many prompts from a file; it goes on where it was interrupted."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from concepts.samples import samples
from pages import choices, commands
from pages.background import AT_ONCE, Interrupted, Stops, Turns, telling
from pages.files import served
from pages.form import check_place
from pages.generate import BARE
from pages.said import connect, place
from pages.status import status
from pages.studio import Studio
from spectral_diffusion.errors import InputError, SpectralError

if TYPE_CHECKING:
    from spectral_diffusion.base import Base
    from spectral_diffusion.batch import Summary
    from spectral_diffusion.engines import Outcome, Task
    from spectral_diffusion.fused import Fused

MOST = 400  # pictures of one table; more are for the command line
MOST_BYTES = 2**20
_PATHS = ("image", "vae", "wildcards", "prompt_file")  # columns that name files, which a page must not
_SUFFIXES = (".csv", ".jsonl", ".toml")
_FAILURES = 5  # told
_EXAMPLE = """\
[[job]]
prompt = "a photo of <{name}> on the beach"
seed = [1, 2]
steps = 20
"strength.{name}" = [0, 0.5, 1]
"""


class Table:
    """The page and what its buttons do."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self._stops = studio, Stops()

    def build(self, page: gr.Blocks) -> None:
        """Lays the page out inside of the current tab."""
        name = next((file.stem for file in samples()), "rex")
        with gr.Row():
            with gr.Column(scale=2, min_width=340):
                self.file = gr.Dropdown(label="Draw with", choices=[(BARE, "")], value="", interactive=True)
                self.text = gr.Textbox(
                    label="Jobs as TOML: a list of values makes a grid, the first list is X, the second Y",
                    value=_EXAMPLE.format(name=name), lines=10, elem_classes="cli",
                )  # fmt: skip
                self.upload = gr.File(label="Or a table: .csv, .jsonl or .toml", file_types=list(_SUFFIXES))
                with gr.Row():
                    self.go = gr.Button("Draw the table", variant="primary")
                    self.again = gr.Checkbox(label="Try failed pictures again")
                    self.cancel = gr.Button("Interrupt")
                self.how = gr.HTML(status(""), elem_classes="said")
                with gr.Accordion("The command line that does the same", open=False) as self.cli_box:
                    self.cli = gr.Textbox("", label="Command line", lines=2, elem_classes="cli")
                    self.cli_place = place()
            with gr.Column(scale=3, min_width=340):
                self.sheets = gr.Gallery(
                    label="Grids and contact sheet", columns=1, height="auto", object_fit="contain",
                    interactive=False, format="png", buttons=["download", "fullscreen"],
                )  # fmt: skip
        self._connect(page)

    def _connect(self, page: gr.Blocks) -> None:
        asked = [self.file, self.text, self.upload]
        hidden = {"show_progress": "hidden"}
        shown = [self.how, self.sheets]
        connect(self.go.click, self.draw, [*asked, self.again], shown, self.how, **hidden, **AT_ONCE)
        connect(self.cancel.click, self.stop, None, self.how, self.how, queue=False)
        connect(self.cli_box.expand, self.command, asked, self.cli, self.cli_place, **hidden)
        connect(page.load, self.refresh, self.file, self.file, self.how, **hidden)

    def refresh(self, now: str) -> Any:
        """The files there are."""
        found = choices.options(self.studio, BARE)
        return gr.update(choices=found, value=now if now in [id_ for _, id_ in found] else "")

    def draw(
        self, request: gr.Request, id_: str, text: str, upload: str | None, again: bool
    ) -> Iterator[list[Any]]:
        """Draws what is not drawn yet; shows the sheets at the end."""
        outcome: list[Summary] = []
        with self._stops.of(request.session_hash) as stop:
            try:
                jobs = self._jobs(text, upload)
                path = choices.chosen(self.studio, id_).path if id_ else None
                work = functools.partial(self._work, jobs, path, again, outcome)
                for several in telling(work, stop):
                    done, failed, total = several[-1]
                    yield [status(_said(done, failed, total), done + failed, total), gr.skip()]
            except Interrupted:
                yield [status("Interrupted: drawing the same table again goes on from here."), gr.skip()]
            except SpectralError as error:
                raise InputError(str(error).replace(f"{self.studio.output}/", "")) from error
            else:
                yield self._shown(outcome[0])

    def stop(self, request: gr.Request) -> str:
        """Interrupts the table of this session."""
        found = self._stops.interrupt(request.session_hash)
        return status("Interrupting after this picture…" if found else "Nothing is being drawn.")

    def command(self, id_: str, text: str, upload: str | None) -> str:
        """The command line for the table, which is written down for it."""
        path = choices.chosen(self.studio, id_).path if id_ else None
        jobs = self._jobs(text, upload)
        return commands.batch_command(jobs, path, self.studio.given, jobs.parent)

    def _jobs(self, text: str, upload: str | None) -> Path:
        """The table as a file of a folder of its own, which the same table has the next time. Raises InputError."""
        content = Path(upload).read_bytes() if upload else text.encode()
        suffix = Path(upload).suffix.lower() if upload else ".toml"
        if suffix not in _SUFFIXES:
            raise InputError("A table is a .csv, .jsonl or .toml file.")
        if len(content) > MOST_BYTES:
            raise InputError("The table is too long: draw it on the command line.")
        digest = hashlib.sha256(content).hexdigest()[:12]
        path = self.studio.output / "tables" / digest / f"jobs{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        check_table(path)
        return path

    def _work(
        self,
        jobs: Path,
        file: Path | None,
        again: bool,
        outcome: list[Summary],
        tell: Callable[[tuple[int, int, int]], None],
    ) -> None:
        from spectral_diffusion.batch import batch
        from spectral_diffusion.fused import load_any

        tell((0, 0, 0))
        fused = load_any(file) if file else None
        latest = (0, 0, 0)

        def progress(*counts: int) -> None:
            nonlocal latest
            latest = counts
            tell(counts)

        base = self.studio.base()
        engine = InTurns(base, fused, self.studio.turns, lambda: tell(latest))
        outcome.append(
            batch(jobs, jobs.parent, base, fused, engine=engine, retry_failed=again, progress=progress)
        )

    def _shown(self, summary: Summary) -> list[Any]:
        said = f"{summary.made} drawn, {summary.kept} were there already, {len(summary.failed)} failed."
        reasons = [f"Row {row}: {reason}" for row, reason in summary.failed[:_FAILURES]]
        hidden = f"{self.studio.output}/"
        told = status(" ".join([said, *reasons]).replace(hidden, ""), wrong=bool(summary.failed))
        return [told, [(served(path), path.stem) for path in summary.sheets]]


@dataclass(frozen=True)
class InTurns:
    """Draws the tasks of a batch here, a turn for each: others draw in between. `tell` is called while waiting."""

    base: Base
    fused: Fused | None
    turns: Turns
    tell: Callable[[], None]

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """See `Engine.run`."""
        from spectral_diffusion.engines.local import LocalEngine

        for task in tasks:
            with self.turns.taken(self.tell):
                outcomes = list(LocalEngine(self.base, self.fused).run([task]))
            yield from outcomes


def check_table(path: Path) -> None:
    """Raises InputError for a table that names files of this machine, or is more than a page should draw."""
    from spectral_diffusion.jobs import jobs_of
    from spectral_diffusion.tables import BadRow, flat, read_rows

    count = 0
    for number, row in read_rows(path):
        if isinstance(row, BadRow):
            continue  # told with the outcome
        known = dict(flat(row))
        if named := [column for column in _PATHS if column in known]:
            raise InputError(f"Row {number} has {named[0]}, which names a file: draw it on the command line.")
        _check_places(known.get("regions"))
        try:
            jobs = jobs_of(number, row, path.parent)
        except (InputError, TypeError):
            continue
        count += sum(job.request.count for job in jobs)
        if count > MOST:
            raise InputError(f"The table is more than {MOST} pictures: draw it on the command line.")


def _check_places(regions: Any) -> None:
    """Every place of every region, however nested the lists of a grid are."""
    waiting = [regions]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, Mapping):
            if "where" in item:
                check_place(str(item["where"]))
        elif isinstance(item, str):
            try:
                waiting.append(json.loads(item))  # as a cell of a CSV has them
            except ValueError:
                check_place(item.partition(":")[0])


def _said(done: int, failed: int, total: int) -> str:
    if not total:
        return "Waiting for the base, or for whoever is drawing now…"
    return f"{done} of {total} pictures" + (f", {failed} failed" if failed else "")
